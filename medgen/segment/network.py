"""The segmenter's network: MONAI's residual UNet."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from monai.networks.nets import UNet
from torch import nn

from medgen.errors import InputError


@dataclass(frozen=True)
class Architecture:
    """What a segmenter's network is built from.

    Attributes:
        image_channels: C.
        labels: label ids with background.
        widths: channels of each level; each but the first halves the grid. The default has 1.2 million parameters.
    """

    image_channels: int
    labels: int
    widths: tuple[int, ...] = (16, 32, 64, 128)

    def __post_init__(self) -> None:
        if self.labels < 2:
            raise InputError("a segmenter needs at least one label beside the background; this cohort has none")
        if len(self.widths) < 2:
            raise InputError(f"a segmenter needs at least two widths, not {list(self.widths)}")

    @property
    def factor(self) -> int:
        """What the extents of the network's input must be multiples of."""
        return int(2 ** (len(self.widths) - 1))


def build(architecture: Architecture) -> UNet:
    """The network with fresh weights: two convolutions a residual unit, instance norm, PReLU.

    Reference:
        Kerfoot et al. (2019), Left-Ventricle Quantification Using Residual U-Net.
    """
    return UNet(
        spatial_dims=3,
        in_channels=architecture.image_channels,
        out_channels=architecture.labels,
        channels=architecture.widths,
        strides=(2,) * (len(architecture.widths) - 1),
        num_res_units=2,
        norm="INSTANCE",
    )


def bottleneck(net: UNet, image: torch.Tensor) -> torch.Tensor:
    """Activations (B, widths[-1], x, y, z) of the deepest level for images (B, C, X, Y, Z)."""
    # MONAI nests (down, skip(rest), up): the way down is the first of each, the last rest has no further level.
    level: Any = net.model
    while isinstance(level, nn.Sequential):
        image = level[0](image)
        level = level[1].submodule
    out: torch.Tensor = level(image)
    return out


def padding(extent: Sequence[int], factor: int) -> tuple[int, ...]:
    """Zeros and amounts, as ``torch.nn.functional.pad`` takes them, that fill extents up to a multiple of a factor."""
    amounts: list[int] = []
    for n in reversed(extent):
        amounts += [0, -n % factor]
    return tuple(amounts)
