"""The KL codec: MONAI's AutoencoderKL over image and label together."""

from collections.abc import Sequence

import torch
from monai.networks.nets import AutoencoderKL
from torch import nn

from medgen.errors import InputError
from medgen.models.codec import Codec, Decoded, Gaussian

LOGVAR_RANGE = (-30.0, 20.0)


class KLCodec(Codec):
    """Image and label in one latent (Rombach et al. 2022; Pinaya et al. 2022, arXiv:2209.07162).

    The label enters as learned embeddings of its ids beside the image channels, with one more id for "no label
    here", and leaves as logits.
    """

    def __init__(
        self,
        image_channels: int,
        labels: int,
        channels: tuple[int, ...],
        latent_channels: int,
        res_blocks: int,
        norm_groups: int,
        label_width: int,
    ) -> None:
        super().__init__()
        self.image_channels, self.labels = image_channels, labels
        self.stride = 2 ** (len(channels) - 1)
        self.latent_channels = latent_channels
        self.label_embedding = nn.Embedding(labels + 1, label_width) if labels else None
        self.net = AutoencoderKL(
            spatial_dims=3,
            in_channels=image_channels + (label_width if labels else 0),
            out_channels=image_channels + labels,
            channels=channels,
            num_res_blocks=(res_blocks,) * len(channels),
            latent_channels=latent_channels,
            attention_levels=(False,) * len(channels),
            norm_num_groups=norm_groups,
            with_encoder_nonlocal_attn=False,
            with_decoder_nonlocal_attn=False,
        )

    def encode(self, image: torch.Tensor, label: torch.Tensor | None) -> Gaussian:
        """Encode.

        Args:
            image: (B, C, X, Y, Z) in [-1, 1], extents multiples of ``stride``.
            label: (B, X, Y, Z) ids from 0; -1 where a case has no label; None where no case has one.
        """
        x = image
        if self.label_embedding is not None:
            ids = torch.full_like(image[:, 0], -1) if label is None else label
            ids = torch.where(ids < 0, self.labels, ids).long()
            x = torch.cat([image, self.label_embedding(ids).movedim(-1, 1).to(image.dtype)], dim=1)
        hidden = self.net.encoder(x)
        logvar = self.net.quant_conv_log_sigma(hidden).clamp(*LOGVAR_RANGE)
        # MONAI's layer gives log sigma^2: its own encode() takes exp(log_var / 2).
        return Gaussian(self.net.quant_conv_mu(hidden), logvar)

    def decode(self, latent: torch.Tensor) -> Decoded:
        """Decode latents (B, C, x, y, z)."""
        out = self.net.decode(latent)
        return Decoded(out[:, : self.image_channels], out[:, self.image_channels :] if self.labels else None)


def stride(*, channels: Sequence[int] = (16, 32, 64)) -> int:
    """Voxels per latent along each axis."""
    return int(2 ** (len(channels) - 1))


def build(
    image_channels: int,
    labels: int,
    *,
    channels: Sequence[int] = (16, 32, 64),
    latent_channels: int = 4,
    res_blocks: int = 1,
    norm_groups: int = 8,
    label_width: int = 4,
) -> KLCodec:
    """Build the codec.

    Args:
        image_channels: C.
        labels: number of label ids with background, 0 for a cohort without labels.
        channels: width of each level; the stride is 2 ** (levels - 1).
        latent_channels: channels of the latent.
        res_blocks: residual blocks a level.
        norm_groups: groups of each GroupNorm.
        label_width: width of the label embedding.
    """
    if any(c % norm_groups for c in channels):
        raise InputError(
            f"autoencoder.options: channels {list(channels)} must be multiples of norm_groups {norm_groups}"
        )
    return KLCodec(image_channels, labels, tuple(channels), latent_channels, res_blocks, norm_groups, label_width)
