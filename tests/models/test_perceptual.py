"""The perceptual loss takes MedicalNet's layout from a file, strictly, and measures distance."""

from pathlib import Path

import pytest
import torch
from monai.networks.nets.resnet import ResNetFeatures
from safetensors.torch import save_file

from medgen.errors import InputError
from medgen.models.perceptual import load_perceptual


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights as MedicalNet's files hold them: DataParallel's prefix inside ``state_dict``."""
    torch.manual_seed(0)
    network = ResNetFeatures("resnet10", pretrained=False, spatial_dims=3, in_channels=1)
    path = tmp_path_factory.mktemp("weights") / "resnet_10_23dataset.pth"
    torch.save({"state_dict": {f"module.{k}": v for k, v in network.state_dict().items()}}, path)
    return path


def test_distance_is_zero_between_equals_and_rises(weights: Path) -> None:
    loss = load_perceptual(weights)
    image = torch.randn(1, 1, 32, 32, 32)
    assert float(loss(image, image)) < 1e-6
    near, far = (float(loss(image + s * torch.randn_like(image), image)) for s in (0.1, 2.0))
    assert 0 < near < far


def test_gradient_reaches_the_image_and_not_the_network(weights: Path) -> None:
    loss = load_perceptual(weights).train()
    image = torch.randn(1, 2, 32, 32, 32, requires_grad=True)
    loss(image, torch.randn_like(image)).backward()
    assert image.grad is not None and image.grad.abs().sum() > 0
    assert not any(p.requires_grad for p in loss.parameters())


def test_the_same_weights_as_safetensors(weights: Path, tmp_path: Path) -> None:
    state = torch.load(weights, weights_only=True)["state_dict"]
    save_file({k.removeprefix("module."): v for k, v in state.items()}, tmp_path / "w.safetensors")
    a, b = torch.randn(2, 1, 1, 32, 32, 32)
    torch.testing.assert_close(load_perceptual(weights)(a, b), load_perceptual(tmp_path / "w.safetensors")(a, b))


def test_other_weights_are_refused(tmp_path: Path) -> None:
    save_file({"conv1.weight": torch.zeros(64, 1, 7, 7, 7)}, tmp_path / "w.safetensors")
    with pytest.raises(InputError, match="MedicalNet"):
        load_perceptual(tmp_path / "w.safetensors")
    with pytest.raises(InputError, match="does not exist"):
        load_perceptual(tmp_path / "none.pth")
