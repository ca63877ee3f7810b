"""The KL codec: MONAI's AutoencoderKL over image and label together."""

from collections.abc import Mapping, Sequence

import torch
from monai.networks.blocks import UpSample
from monai.networks.nets import AutoencoderKL
from monai.networks.nets.autoencoderkl import AEKLDownsample, AEKLResBlock
from torch import nn

from medgen.errors import InputError
from medgen.models import labelled
from medgen.models.chain import Chain
from medgen.models.checkpointing import checkpoint_blocks
from medgen.models.codec import Codec, Decoded, Encoded, Gaussian, Serves
from medgen.models.links import links_of
from medgen.models.losses import kl_to_standard_normal

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
        checkpointing: bool,
    ) -> None:
        super().__init__()
        self.image_channels, self.labels = image_channels, labels
        self.stride = 2 ** (len(channels) - 1)
        self.latent_channels = latent_channels
        self.halo = None  # each GroupNorm looks at the whole volume
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
        if checkpointing:
            checkpoint_blocks(self.net, AEKLResBlock, AEKLDownsample, UpSample)

    def encode(self, image: torch.Tensor, label: torch.Tensor | None) -> Gaussian:
        """Encode.

        Args:
            image: (B, C, X, Y, Z) in [-1, 1], extents multiples of ``stride``.
            label: (B, X, Y, Z) ids from 0; -1 where a case has no label; None where no case has one.
        """
        return self._posterior(self.net.encoder(self._joined(image, label)))

    def decode(self, latent: torch.Tensor) -> Decoded:
        """Decode latents (B, C, x, y, z)."""
        return self._parted(self.net.decode(latent))

    def encoding(self) -> Chain:
        """(image, label) -> posterior, link by link."""
        return Chain(self._joined, links_of(self.net.encoder), self._posterior)

    def decoding(self) -> Chain:
        """Latent -> image and label logits, link by link."""
        return Chain(self.net.post_quant_conv, links_of(self.net.decoder), self._parted)

    def regulariser(self, encoded: Encoded) -> Mapping[str, torch.Tensor]:
        """KL to the standard normal."""
        return {"kl": kl_to_standard_normal(encoded)}

    def label_rows(self) -> Mapping[str, Serves]:
        """The label table, the encoder's first convolution and the decoder's last."""
        table = self.label_embedding
        outputs = (0, labelled.outputs(self.image_channels, self.labels))
        last = f"net.decoder.blocks.{len(list(self.net.decoder.get_submodule('blocks').children())) - 1}.conv"
        return {
            **labelled.table_rows(table, self.labels),
            "net.encoder.blocks.0.conv.weight": (1, labelled.inputs(self.image_channels, table)),
            f"{last}.weight": outputs,
            f"{last}.bias": outputs,
        }

    def _joined(self, image: torch.Tensor, label: torch.Tensor | None) -> torch.Tensor:
        return labelled.joined(self.label_embedding, image, label)

    def _posterior(self, hidden: torch.Tensor) -> Gaussian:
        logvar = self.net.quant_conv_log_sigma(hidden).clamp(*LOGVAR_RANGE)
        # MONAI's layer gives log sigma^2: its own encode() takes exp(log_var / 2).
        return Gaussian(self.net.quant_conv_mu(hidden), logvar)

    def _parted(self, out: torch.Tensor) -> Decoded:
        return labelled.parted(out, self.image_channels, self.labels)


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
    checkpointing: bool = False,
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
        checkpointing: compute activations again in the backward pass: less memory, a third more time.
    """
    if any(c % norm_groups for c in channels):
        raise InputError(
            f"autoencoder.options: channels {list(channels)} must be multiples of norm_groups {norm_groups}"
        )
    return KLCodec(
        image_channels, labels, tuple(channels), latent_channels, res_blocks, norm_groups, label_width, checkpointing
    )
