"""The adversary of a codec: a patch discriminator on Haar bands.

Isola et al. 2017 (arXiv:1611.07004) judge patches; Gal et al. 2021 (SWAGAN, arXiv:2102.06108) judge wavelet bands,
where the detail that a reconstruction lacks is a channel of its own and nothing is computed at full resolution.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from monai.networks.nets import PatchDiscriminator
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from medgen.models import haar


class BandDiscriminator(nn.Module):
    """MONAI's PatchDiscriminator on the bands of an image.

    Every convolution is spectrally normalised (Miyato et al. 2018, arXiv:1802.05957) and nothing else is: a
    discriminator of bounded slope cannot leave the codec without a gradient.

    Args:
        image_channels: C.
        width: channels of its first layer.
        layers: strided layers; each doubles the patch that one judgement sees.
    """

    def __init__(self, image_channels: int, width: int = 32, layers: int = 2) -> None:
        super().__init__()
        self.net = PatchDiscriminator(
            spatial_dims=3,
            channels=width,
            in_channels=8 * image_channels,
            num_layers_d=layers,
            norm=("instance", {"affine": False}),
        )
        for parent in list(self.net.modules()):
            for name, child in list(parent.named_children()):
                if isinstance(child, nn.InstanceNorm3d):
                    setattr(parent, name, nn.Identity())
                elif isinstance(child, nn.Conv3d):
                    setattr(parent, name, spectral_norm(child))

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, Sequence[torch.Tensor]]:
        """Judgements of patches (B, 1, x, y, z), higher for real, and the features before them."""
        *features, logits = self.net(haar.analyse(image))
        return logits, features


def smallest_patch(layers: int) -> int:
    """The least extent of a patch, in voxels, that gives one judgement: kernels of 4, padded by 1."""
    bands = 3  # what the last two kernels, of stride 1, make one judgement of
    for _ in range(layers):
        bands *= 2
    return 2 * bands


def hinge_real(logits: torch.Tensor) -> torch.Tensor:
    """What real patches cost the discriminator (Lim & Ye 2017, arXiv:1705.02894)."""
    return F.relu(1.0 - logits.float()).mean()


def hinge_made(logits: torch.Tensor) -> torch.Tensor:
    """What made patches cost it."""
    return F.relu(1.0 + logits.float()).mean()


def feature_matching(made: Sequence[torch.Tensor], real: Sequence[torch.Tensor]) -> torch.Tensor:
    """Mean absolute difference of features, each in units of the real one's (Wang et al. 2018, arXiv:1711.11585)."""
    parts = [
        (m.float() - r.float()).abs().mean() / r.float().abs().mean().clamp(min=1e-6)
        for m, r in zip(made, real, strict=True)
    ]
    return torch.stack(parts).mean()
