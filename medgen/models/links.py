"""MONAI's autoencoder blocks as links of a chain."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from monai.apps.generation.maisi.networks.autoencoderkl_maisi import (
    MaisiConvolution,
    MaisiDownsample,
    MaisiResBlock,
    MaisiUpsample,
)
from monai.networks.blocks import Convolution, SpatialAttentionBlock, UpSample
from monai.networks.nets.autoencoderkl import AEKLDownsample, AEKLResBlock
from monai.networks.nets.vqvae import VQVAEResidualUnit
from torch import nn

from medgen.models.chain import Link


def links_of(network: nn.Module) -> tuple[Link, ...]:
    """The blocks of a MONAI encoder or decoder, in order."""
    blocks = network.blocks
    assert isinstance(blocks, nn.ModuleList)
    return tuple(link for block in blocks for link in _links(block))


def _links(block: nn.Module) -> tuple[Link, ...]:
    width = max((max(p.shape[:2]) for p in block.parameters() if p.ndim == 5), default=1)
    if isinstance(block, AEKLResBlock | MaisiResBlock):
        return (
            Link(_silu_then(block.conv1), reach=1, width=width, norm=block.norm1, opens=True),
            Link(_silu_then(block.conv2), reach=1, width=width, norm=block.norm2, closes=block.nin_shortcut),
        )
    if isinstance(block, VQVAEResidualUnit):
        return (Link(block, reach=2, width=width),)
    if isinstance(block, AEKLDownsample | MaisiDownsample):  # pads one voxel behind, then a kernel of 3 at stride 2
        return (Link(block, down=2, reach=1, width=width),)
    if isinstance(block, SpatialAttentionBlock):
        return (Link(block, reach=None, width=width),)
    if isinstance(block, nn.GroupNorm):
        return (Link(nn.Identity(), width=block.num_channels, norm=block),)
    interpolates = (isinstance(block, UpSample) and not hasattr(block, "deconv")) or (
        isinstance(block, MaisiUpsample) and not block.use_convtranspose
    )
    if interpolates:  # nearest or linear, then a kernel of 3
        return (Link(block, up=2, reach=1, width=width),)
    if isinstance(block, UpSample | MaisiUpsample | Convolution | MaisiConvolution):
        return (_convolution(block, width),)
    raise TypeError(f"no link is known for a {type(block).__name__}")


def _silu_then(conv: nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda x: conv(F.silu(x))


def _convolution(block: nn.Module, width: int) -> Link:
    """A block with one convolution, and perhaps an activation behind it."""
    conv = next(m for m in block.modules() if isinstance(m, nn.Conv3d | nn.ConvTranspose3d))
    size, stride, dilation, padding = conv.kernel_size[0], conv.stride[0], conv.dilation[0], conv.padding[0]
    assert isinstance(padding, int)
    if isinstance(conv, nn.ConvTranspose3d):
        # Outputs 0 to stride - 1 come from the inputs i with 0 <= output + padding - i stride < size.
        low, high = -((size - 1 - padding) // stride), (stride - 1 + padding) // stride
        return Link(block, up=stride, reach=max(-low, high), width=width)
    reach = max(padding, dilation * (size - 1) - padding - stride + 1)
    return Link(block, down=stride, reach=reach, width=width)
