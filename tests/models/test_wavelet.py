"""The Haar transform and the codec between its two ends."""

import pytest
import torch

from medgen.errors import InputError
from medgen.models import haar
from medgen.models.wavelet import build, stride


def test_haar_inverts_and_keeps_energy() -> None:
    x = torch.randn(2, 3, 8, 4, 6, dtype=torch.float64)
    bands = haar.analyse(x)
    assert bands.shape == (2, 24, 4, 2, 3)
    torch.testing.assert_close(haar.synthesise(bands), x)
    torch.testing.assert_close(bands.square().sum(), x.square().sum())


def test_haar_low_pass_is_the_scaled_mean_of_a_cube() -> None:
    x = torch.randn(1, 2, 4, 4, 4, dtype=torch.float64)
    low = haar.analyse(x)[:, :2]
    torch.testing.assert_close(low, torch.nn.functional.avg_pool3d(x, 2) * 8**0.5)


def test_a_constant_has_no_detail() -> None:
    bands = haar.analyse(torch.full((1, 1, 4, 4, 4), 3.0))
    assert bands[:, 1:].abs().max() == 0


@pytest.mark.parametrize(("channels", "expected"), [((8,), 2), ((8, 16), 4), ((8, 8, 16), 8)])
def test_stride_is_what_the_latent_shows(channels: tuple[int, ...], expected: int) -> None:
    codec = build(1, 3, channels=channels, latent_channels=2, encoder_blocks=[1], decoder_blocks=[1])
    image, label = torch.randn(1, 1, 16, 24, 16), torch.randint(-1, 3, (1, 16, 24, 16))
    posterior = codec.encode(image, label)
    assert stride(channels=channels) == codec.stride == expected
    assert posterior.mean.shape == (1, 2, 16 // expected, 24 // expected, 16 // expected)
    decoded = codec.decode(posterior.mean)
    assert decoded.image.shape == image.shape
    assert decoded.label_logits is not None and decoded.label_logits.shape == (1, 3, *label.shape[1:])


def _shaken(codec: torch.nn.Module) -> torch.nn.Module:
    """Weights that are not zero anywhere, so that every convolution carries its neighbourhood on."""
    torch.manual_seed(0)
    for p in codec.parameters():
        torch.nn.init.normal_(p, std=0.2)
    return codec


@torch.no_grad()
def test_beyond_its_halo_it_sees_nothing() -> None:
    codec = _shaken(build(1, 2, channels=(4, 8), latent_channels=2, decoder_blocks=(1, 1)))
    x = torch.randn(1, 2, 24, 4, 4)
    changed = x.clone()
    changed[:, :, 12 + codec.halo + 1 :] += 1.0
    near, far = codec.decode(x).image, codec.decode(changed).image
    torch.testing.assert_close(near[:, :, : 13 * 4], far[:, :, : 13 * 4], rtol=0, atol=1e-5)
    assert not torch.allclose(near, far)


@torch.no_grad()
def test_the_extent_changes_nothing_inside() -> None:
    codec = _shaken(build(1, 0, channels=(4, 8), latent_channels=2, decoder_blocks=(1, 1)))
    x = torch.randn(1, 2, 2 * codec.halo + 4, 4, 4)
    whole = codec.decode(x).image
    part = codec.decode(x[:, :, 2:]).image
    inside = slice(4 * (codec.halo + 2), None)
    torch.testing.assert_close(whole[:, :, inside], part[:, :, 4 * codec.halo :], rtol=0, atol=1e-5)


def test_a_missing_label_is_one_more_id() -> None:
    codec = _shaken(build(1, 3, channels=(4, 8), latent_channels=2))
    image = torch.randn(1, 1, 8, 8, 8)
    missing = torch.full((1, 8, 8, 8), -1)
    torch.testing.assert_close(codec.encode(image, missing).mean, codec.encode(image, None).mean)
    assert not torch.allclose(codec.encode(image, torch.zeros_like(missing)).mean, codec.encode(image, None).mean)


def test_label_rows_name_weights_by_what_they_serve() -> None:
    codec = build(2, 3, channels=(4, 8), latent_channels=2, label_width=5)
    state = codec.state_dict()
    for name, (axis, serves) in codec.label_rows().items():
        assert state[name].shape[axis] == len(serves), name


@torch.no_grad()
def test_output_rows_of_a_label_move_its_logits_alone() -> None:
    codec = _shaken(build(1, 3, channels=(4,), latent_channels=2, encoder_blocks=[1], decoder_blocks=[1]))
    latent = torch.randn(1, 2, 4, 4, 4)
    before = codec.decode(latent)
    rows = codec.label_rows()
    for name, (_, serves) in rows.items():
        if name.endswith("conv.bias"):
            codec.state_dict()[name][torch.tensor([s == 1 for s in serves])] += 1.0
    after = codec.decode(latent)
    assert before.label_logits is not None and after.label_logits is not None
    torch.testing.assert_close(after.image, before.image)
    moved = (after.label_logits - before.label_logits).abs().amax((0, 2, 3, 4))
    assert moved[1] > 0 and moved[0] == moved[2] == 0


def test_checkpointing_changes_no_gradient() -> None:
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        codec = _shaken(build(1, 2, channels=(4, 8), latent_channels=2, checkpointing=checkpointing))
        decoded = codec.decode(codec.encode(torch.linspace(-1, 1, 512).reshape(1, 1, 8, 8, 8), None).mean)
        decoded.image.square().mean().backward()
        gradients.append([p.grad.clone() for p in codec.parameters() if p.grad is not None])
    for plain, again in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, again)


@pytest.mark.parametrize("options", [{"channels": []}, {"encoder_blocks": [1, 1, 1]}, {"latent_channels": 0}])
def test_options_that_make_no_codec_are_refused(options: dict) -> None:
    with pytest.raises(InputError, match=r"autoencoder\.options"):
        build(1, 2, **options)
