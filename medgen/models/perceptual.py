"""A perceptual loss from weights that the user has: MedicalNet's residual networks. Nothing is downloaded."""

from pathlib import Path

import torch
import torch.nn.functional as F
from monai.networks.nets.resnet import ResNetFeatures
from torch import nn

from medgen.errors import InputError
from medgen.models.weights import read_weights

_DEPTHS = (10, 18, 34, 50, 101, 152, 200)


class Perceptual(nn.Module):
    """Distance of features, unit-normed over channels and averaged over space (Zhang et al. 2018, arXiv:1801.03924).

    Args:
        features: image (B, 1, X, Y, Z) to a list of feature maps, frozen.
    """

    def __init__(self, features: nn.Module) -> None:
        super().__init__()
        self.features = features.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> "Perceptual":
        """Stays in evaluation mode: the network's batch statistics are part of its weights."""
        return super().train(False)

    def forward(self, made: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        """Distance of two images (B, C, X, Y, Z), averaged over batch, channels and layers: a scalar."""
        both = torch.cat([made, real]).flatten(0, 1)[:, None]
        # MedicalNet standardises each volume; a background that fills a patch has no spread.
        both = (both - both.mean((2, 3, 4), keepdim=True)) / both.std((2, 3, 4), keepdim=True).clamp(min=1e-3)
        distances = []
        for feature in self.features(both):
            a, b = F.normalize(feature.float(), dim=1).chunk(2)
            distances.append((a - b).square().sum(1).mean())
        return torch.stack(distances).mean()


def load_perceptual(path: Path) -> Perceptual:
    """A perceptual loss from a MedicalNet file (Chen et al. 2019, arXiv:1904.00625), .pth or .safetensors.

    The depth (10 to 200) is told by the weights, which must fit it strictly.

    Raises:
        InputError: the file is missing, is not weights alone, or fits no depth.
    """
    raw = read_weights(path)
    inner = raw.get("state_dict", raw)
    state = {
        key.removeprefix("module."): tensor
        for key, tensor in inner.items()
        if isinstance(tensor, torch.Tensor) and not key.removeprefix("module.").startswith(("fc.", "conv_seg."))
    }
    for depth in _DEPTHS:
        network = ResNetFeatures(f"resnet{depth}", pretrained=False, spatial_dims=3, in_channels=1)
        expected = network.state_dict()
        if set(expected) == set(state) and all(expected[k].shape == v.shape for k, v in state.items()):
            network.load_state_dict(state, strict=True)
            return Perceptual(network)
    depths = ", ".join(map(str, _DEPTHS))
    raise InputError(f"{path} does not hold a MedicalNet residual network of depth {depths}; give such a file")
