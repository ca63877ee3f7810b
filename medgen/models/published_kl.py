"""Autoencoders with published weights: MONAI's AutoencoderKL and MAISI's, over the image alone.

Made by ``medgen model import``. The weights fix every width, and so the options are lists of one entry a level.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from monai.apps.generation.maisi.networks.autoencoderkl_maisi import AutoencoderKlMaisi
from monai.networks.nets import AutoencoderKL

from medgen.errors import InputError
from medgen.models.chain import Chain
from medgen.models.codec import Codec, Decoded, Encoded, Gaussian
from medgen.models.kl import LOGVAR_RANGE
from medgen.models.links import links_of
from medgen.models.losses import kl_to_standard_normal

VARIANTS = ("monai", "maisi")


class PublishedKL(Codec):
    """An image-only KL autoencoder (Pinaya et al. 2022, arXiv:2209.07162; Guo et al. 2024, arXiv:2409.11169).

    Published models work on images in [low, high], mostly [0, 1]; the seam's images are in [-1, 1], and the linear map
    between the two is part of this codec.
    """

    def __init__(self, net: AutoencoderKL, image_channels: int, levels: int, image_range: tuple[float, float]) -> None:
        super().__init__()
        self.net = net
        self.image_channels, self.labels = image_channels, 0
        self.latent_channels = int(net.latent_channels)
        self.stride = 2 ** (levels - 1)
        self.halo = None  # GroupNorm and attention look at the whole volume
        self.low, self.high = image_range

    def encode(self, image: torch.Tensor, label: torch.Tensor | None) -> Gaussian:
        """Images (B, C, X, Y, Z) in [-1, 1] to a posterior; ``label`` is not looked at, for the codec knows none."""
        return self._posterior(self.net.encoder(self._scaled(image, label)))

    def decode(self, latent: torch.Tensor) -> Decoded:
        """Latents (B, C, x, y, z) to images in [-1, 1], not clamped."""
        return self._restored(self.net.decode(latent))

    def encoding(self) -> Chain:
        """(image, label) -> posterior, link by link."""
        return Chain(self._scaled, links_of(self.net.encoder), self._posterior)

    def decoding(self) -> Chain:
        """Latent -> image, link by link."""
        return Chain(self.net.post_quant_conv, links_of(self.net.decoder), self._restored)

    def regulariser(self, encoded: Encoded) -> Mapping[str, torch.Tensor]:
        """KL to the standard normal."""
        return {"kl": kl_to_standard_normal(encoded)}

    def _scaled(self, image: torch.Tensor, label: torch.Tensor | None) -> torch.Tensor:
        return self.low + (image + 1.0) * ((self.high - self.low) / 2.0)

    def _posterior(self, hidden: torch.Tensor) -> Gaussian:
        logvar = self.net.quant_conv_log_sigma(hidden).clamp(*LOGVAR_RANGE)
        return Gaussian(self.net.quant_conv_mu(hidden), logvar)

    def _restored(self, out: torch.Tensor) -> Decoded:
        return Decoded((out - self.low) * (2.0 / (self.high - self.low)) - 1.0, None)


def stride(*, channels: Sequence[int] = (64, 128, 128, 128)) -> int:
    """Voxels per latent along each axis."""
    return int(2 ** (len(channels) - 1))


def build(
    image_channels: int,
    labels: int,
    *,
    variant: str = "monai",
    channels: Sequence[int] = (64, 128, 128, 128),
    latent_channels: int = 3,
    res_blocks: Sequence[int] = (2, 2, 2, 2),
    attention: Sequence[bool] = (False, False, False, False),
    encoder_attention: bool = False,
    decoder_attention: bool = False,
    include_fc: bool = False,
    norm_groups: int = 32,
    norm_eps: float = 1e-6,
    image_low: float = 0.0,
    image_high: float = 1.0,
) -> PublishedKL:
    """Build the codec; the defaults are the brain LDM's.

    Args:
        image_channels: C.
        labels: must be 0.
        variant: "monai" or "maisi" (its norms and interpolation differ).
        channels: width of each level.
        latent_channels: channels of the latent.
        res_blocks: residual blocks of each level.
        attention: which levels attend.
        encoder_attention: attention behind the encoder's last level.
        decoder_attention: attention before the decoder's first level.
        include_fc: a linear layer behind each attention. MONAI Generative made one and never applied it, so that its
            weights need False: True is wrong and says nothing.
        norm_groups: groups of each GroupNorm.
        norm_eps: epsilon of each GroupNorm.
        image_low: what the network calls the darkest intensity.
        image_high: what it calls the brightest.

    Raises:
        InputError: labels, an unknown variant, or widths that do not fit each other.
    """
    if labels:
        raise InputError("autoencoder 'published_kl' knows no labels; choose another kind, or a cohort without labels")
    if variant not in VARIANTS:
        raise InputError(f"option 'variant' of models 'published_kl' is one of {', '.join(VARIANTS)}, not '{variant}'")
    if not len(channels) == len(res_blocks) == len(attention) or any(c % norm_groups for c in channels):
        raise InputError(
            f"models 'published_kl': channels {list(channels)}, res_blocks and attention need one entry a level each, "
            f"and channels must be multiples of norm_groups {norm_groups}"
        )
    shared: dict[str, Any] = {
        "spatial_dims": 3,
        "in_channels": image_channels,
        "out_channels": image_channels,
        "num_res_blocks": tuple(res_blocks),
        "attention_levels": tuple(attention),
        "latent_channels": latent_channels,
        "norm_num_groups": norm_groups,
        "norm_eps": norm_eps,
        "with_encoder_nonlocal_attn": encoder_attention,
        "with_decoder_nonlocal_attn": decoder_attention,
        "include_fc": include_fc,
    }
    net = (
        AutoencoderKL(channels=tuple(channels), **shared)
        if variant == "monai"
        # One split and float32 norms: the same figures; MAISI splits and halves to save memory only.
        else AutoencoderKlMaisi(num_channels=tuple(channels), num_splits=1, save_mem=False, **shared)
    )
    return PublishedKL(net, image_channels, len(channels), (image_low, image_high))
