"""Silent traps between MONAI Generative's weights and MONAI core's networks, each shown and each avoided."""

import inspect

import monai.networks.nets as core
import pytest
import torch
from generative.networks.nets import AutoencoderKL, DiffusionModelUNet

from medgen.compat.bundle import Declared, told
from medgen.compat.rename import renamed
from medgen.compat.verify import TOLERANCE, difference
from medgen.errors import InputError
from tests.compat import published

AUTOENCODER = {k: v for k, v in published.BRAIN_AUTOENCODER.items() if k != "num_channels"}
UNET = {
    "spatial_dims": 3,
    "in_channels": 3,
    "out_channels": 3,
    "num_res_blocks": 1,
    "attention_levels": (False, True),
    "norm_num_groups": published.GROUPS,
    "num_head_channels": (0, 8),
}


def core_autoencoder(**options):
    return core.AutoencoderKL(channels=(4, 8, 8), **AUTOENCODER, **options).eval()


@torch.no_grad()
def test_autoencoder_attention_needs_no_projection():
    """The old layer ``proj_attn`` has weights but is never applied; MONAI's default applies it and says nothing."""
    old = published.random_weights(AutoencoderKL(**published.BRAIN_AUTOENCODER))
    x = torch.rand((1, 1, 16, 16, 16), generator=torch.Generator().manual_seed(0))
    expected = old.encode(x)[0]
    assert inspect.signature(core.AutoencoderKL).parameters["include_fc"].default is True
    silently_wrong = core_autoencoder()
    silently_wrong.load_old_state_dict(dict(old.state_dict()))
    assert (silently_wrong.encode(x)[0] - expected).abs().max() > 1e-2
    right = core_autoencoder(include_fc=False)
    right.load_state_dict(renamed(old.state_dict()), strict=True)
    torch.testing.assert_close(right.encode(x)[0], expected, atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("updown", [False, True])
def test_an_unconditional_unet_needs_no_projection(updown):
    old = DiffusionModelUNet(num_channels=(8, 16), resblock_updown=updown, **UNET)
    published.random_weights(old)
    x, t = torch.randn((1, 3, 8, 8, 8), generator=torch.Generator().manual_seed(0)), torch.tensor([500])
    expected = old(x, t)
    silently_wrong = core.DiffusionModelUNet(channels=(8, 16), resblock_updown=updown, include_fc=True, **UNET).eval()
    silently_wrong.load_old_state_dict(dict(old.state_dict()))
    assert (silently_wrong(x, t) - expected).abs().max() > 1e-3
    right = core.DiffusionModelUNet(channels=(8, 16), resblock_updown=updown, include_fc=False, **UNET).eval()
    right.load_state_dict(renamed(old.state_dict()), strict=True)
    torch.testing.assert_close(right(x, t), expected, atol=1e-5, rtol=0)


@torch.no_grad()
def test_a_unet_with_cross_attention_needs_its_projection():
    options = {k: v for k, v in published.BRAIN_UNET.items() if k not in ("num_channels", "use_flash_attention")}
    old = published.random_weights(DiffusionModelUNet(**published.BRAIN_UNET))
    x, t = torch.randn((1, 7, 8, 8, 8), generator=torch.Generator().manual_seed(0)), torch.tensor([500])
    context = torch.tensor([[[0.0, 0.1, 0.2, 0.4]]])
    expected = old(x, t, context=context)
    right = core.DiffusionModelUNet(channels=(8, 16), include_fc=True, **options).eval()
    right.load_state_dict(renamed(old.state_dict()), strict=True)
    torch.testing.assert_close(right(x, t, context=context), expected, atol=1e-5, rtol=0)
    wrong = core.DiffusionModelUNet(channels=(8, 16), include_fc=False, **options)
    with pytest.raises(RuntimeError, match="Unexpected key"):
        wrong.load_state_dict(renamed(old.state_dict()), strict=True)


def test_monais_loader_empties_what_it_is_given_and_ours_does_not():
    state = published.random_weights(AutoencoderKL(**published.BRAIN_AUTOENCODER)).state_dict()
    given, before = dict(state), dict(state)
    ours = renamed(given)
    assert given.keys() == before.keys()
    net = core_autoencoder(include_fc=False)
    net.load_old_state_dict(given)
    assert len(given) < len(before)  # the trap: give it a copy
    loaded = net.state_dict()
    assert loaded.keys() == ours.keys() and all(torch.equal(loaded[k], ours[k]) for k in ours)


def test_monais_loader_leaves_what_is_missing_at_random():
    """Why it is not used: a file without one of its convolutions loads."""
    state = dict(published.random_weights(AutoencoderKL(**published.BRAIN_AUTOENCODER)).state_dict())
    del state["encoder.blocks.0.conv.weight"]
    core_autoencoder(include_fc=False).load_old_state_dict(dict(state))
    with pytest.raises(RuntimeError, match="Missing key"):
        core_autoencoder(include_fc=False).load_state_dict(renamed(state), strict=True)


def test_a_difference_above_the_tolerance_is_refused(tmp_path):
    a = torch.zeros(4)
    assert difference(a, a + TOLERANCE / 2, "UNet", tmp_path) == pytest.approx(TOLERANCE / 2)
    assert difference(a + 100, a + 100 + 5e-4, "UNet", tmp_path) < TOLERANCE  # of the largest output
    for wrong in (a + 2 * TOLERANCE, a + torch.nan):
        with pytest.raises(InputError, match=r"differ by .* nothing was written"):
            difference(a, wrong, "UNet", tmp_path)


def test_a_bundles_code_is_never_run_nor_taken_for_a_value(tmp_path):
    from medgen.compat.bundle import read_bundle

    path = tmp_path / "inference.json"
    path.write_text(
        '{"groups": 8, "autoencoder_def": {"norm_num_groups": "@groups", "norm_eps": "$__import__(\'os\').abort()"},'
        ' "network_def": {"norm_num_groups": 4}}'
    )
    declared = read_bundle(path)
    assert isinstance(declared, Declared)
    assert told(declared, "autoencoder", "norm_num_groups", 32) == 8
    assert told(declared, "autoencoder", "norm_eps", 1e-6) == 1e-6
