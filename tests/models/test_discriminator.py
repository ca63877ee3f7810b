"""The adversary's network and losses."""

import pytest
import torch

from medgen.models.codec import Decoded
from medgen.models.discriminator import (
    BandDiscriminator,
    feature_matching,
    hinge_made,
    hinge_real,
    smallest_patch,
)
from medgen.models.losses import spectral


def test_hinge_losses_are_zero_beyond_the_margin() -> None:
    assert float(hinge_real(torch.tensor([1.0, 3.0]))) == 0 == float(hinge_made(torch.tensor([-1.0, -3.0])))
    assert float(hinge_real(torch.tensor([0.0]))) == 1 == float(hinge_made(torch.tensor([0.0])))


def test_feature_matching_of_equals_is_zero_and_has_no_scale() -> None:
    real = [torch.randn(2, 4, 3, 3, 3)]
    made = [real[0] + 0.5]
    assert float(feature_matching(real, real)) == 0
    torch.testing.assert_close(feature_matching(made, real), feature_matching([10 * made[0]], [10 * real[0]]))


def test_spectral_norm_bounds_every_convolution() -> None:
    torch.manual_seed(0)
    net = BandDiscriminator(1, width=8, layers=1)
    for _ in range(30):  # one power iteration each
        net(torch.randn(1, 1, 16, 16, 16))
    for module in net.modules():
        if isinstance(module, torch.nn.Conv3d):
            assert torch.linalg.matrix_norm(module.weight.flatten(1), 2) < 1.1


def test_it_learns_to_tell_blurred_from_sharp() -> None:
    torch.manual_seed(0)
    net = BandDiscriminator(1, width=8, layers=1)
    optimiser = torch.optim.AdamW(net.parameters(), lr=2e-3, betas=(0.5, 0.99))
    for _ in range(30):
        sharp = torch.randn(4, 1, 16, 16, 16)
        blurred = torch.nn.functional.avg_pool3d(sharp, 3, 1, 1)
        loss = hinge_real(net(sharp)[0]) + hinge_made(net(blurred)[0])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert float(loss.detach()) < 1.0


def test_spectral_loss_sees_strength_and_not_place() -> None:
    torch.manual_seed(0)
    image = torch.randn(2, 1, 16, 16, 16)
    other = torch.randn(2, 1, 16, 16, 16)
    smooth = torch.nn.functional.avg_pool3d(image, 3, 1, 1)

    def of(x: torch.Tensor) -> float:
        return float(spectral(Decoded(x, None), image))

    assert of(image) == 0
    assert of(other) < 0.5 * of(smooth)
    assert of(image.repeat(1, 1, 1, 1, 1) * 0) > of(smooth)


@pytest.mark.parametrize("extent", [1, 2, 3, 6, 9])
def test_spectral_loss_takes_any_extent(extent: int) -> None:
    image = torch.randn(1, 1, extent, 8, 8)
    assert torch.isfinite(spectral(Decoded(image * 0, None), image))


@pytest.mark.parametrize("layers", [1, 2])
def test_the_smallest_patch_gives_one_judgement(layers: int) -> None:
    net, n = BandDiscriminator(1, width=4, layers=layers), smallest_patch(layers)
    assert net(torch.randn(1, 1, n, n, n))[0].shape == (1, 1, 1, 1, 1)
    with pytest.raises(RuntimeError):
        net(torch.randn(1, 1, n - 2, n - 2, n - 2))
