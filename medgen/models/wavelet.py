"""The wavelet codec: a KL autoencoder that never computes at full resolution.

A Haar transform, which is invertible and costs next to nothing, takes the place of the first and the last layers: the
networks begin and end at half the resolution, where a convolution costs an eighth. In the spirit of LiteVAE (Sadat et
al. 2024, arXiv:2405.14477) and the Cosmos tokenizer (NVIDIA 2025, arXiv:2501.03575). Norms are taken over channels
alone, at each voxel, so that what a voxel becomes depends on its neighbourhood and not on the extent of the volume: a
volume decoded in tiles equals the volume decoded whole.
"""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import nn

from medgen.errors import InputError
from medgen.models import haar, labelled
from medgen.models.chain import Chain, Link, halo
from medgen.models.checkpointing import checkpoint_blocks
from medgen.models.codec import Codec, Decoded, Encoded, Gaussian, Serves
from medgen.models.losses import kl_to_standard_normal

LOGVAR_RANGE = (-12.0, 4.0)
"""The floor of -12 keeps the latents' precision finite, and so their diffusion well posed; 4 keeps exp() tame."""


class ChannelNorm(nn.Module):
    """Layer norm over the channels of each voxel (Ba et al. 2016, arXiv:1607.06450), without a bias."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise (B, C, X, Y, Z); in one pass where channels lie last in memory."""
        last = x.movedim(1, -1)
        return F.layer_norm(last, last.shape[-1:], self.weight.to(x.dtype)).movedim(-1, 1)


class Block(nn.Module):
    """Pre-norm residual block of two convolutions (He et al. 2016, arXiv:1603.05027), the identity at the start."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = ChannelNorm(channels), ChannelNorm(channels)
        self.conv1 = nn.Conv3d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv3d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)  # type: ignore[arg-type]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, X, Y, Z) to the same shape."""
        h = self.conv1(F.silu(self.norm1(x)))
        return x + self.conv2(F.silu(self.norm2(h)))


class Analysis(nn.Module):
    """Half the extents by a Haar transform, and a linear map of its bands to ``outputs`` channels."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.mix = nn.Conv3d(8 * inputs, outputs, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, inputs, 2 x, 2 y, 2 z) to (B, outputs, x, y, z)."""
        return self.mix(channels_last(haar.analyse(x)))


class Synthesis(nn.Module):
    """Twice the extents: a linear map to Haar bands, and the inverse transform."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.bands = nn.Conv3d(inputs, 8 * outputs, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, inputs, x, y, z) to (B, outputs, 2 x, 2 y, 2 z)."""
        return channels_last(haar.synthesise(self.bands(x)))


class Head(nn.Module):
    """Norm, nonlinearity and the convolution that ends a network."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.norm = ChannelNorm(inputs)
        self.conv = nn.Conv3d(inputs, outputs, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, inputs, X, Y, Z) to (B, outputs, X, Y, Z)."""
        return self.conv(F.silu(self.norm(x)))


def channels_last(x: torch.Tensor) -> torch.Tensor:
    """The same tensor with channels last in memory, which norms over channels and convolutions like best."""
    return x.contiguous(memory_format=torch.channels_last_3d)


class WaveletCodec(Codec):
    """Image and label in one latent; see the module's text."""

    def __init__(
        self,
        image_channels: int,
        labels: int,
        channels: tuple[int, ...],
        latent_channels: int,
        encoder_blocks: tuple[int, ...],
        decoder_blocks: tuple[int, ...],
        label_width: int,
        checkpointing: bool,
    ) -> None:
        super().__init__()
        self.image_channels, self.labels = image_channels, labels
        self.latent_channels, self.stride = latent_channels, 2 ** len(channels)
        self.label_embedding = nn.Embedding(labels + 1, label_width) if labels else None
        inputs, outputs = image_channels + (label_width if labels else 0), image_channels + labels
        encoder: list[nn.Module] = [nn.Conv3d(8 * inputs, channels[0], 3, padding=1)]
        decoder: list[nn.Module] = [nn.Conv3d(latent_channels, channels[-1], 3, padding=1)]
        for level, width in enumerate(channels):
            encoder += [Analysis(channels[level - 1], width)] if level else []
            encoder += [Block(width) for _ in range(encoder_blocks[level])]
        for level in reversed(range(len(channels))):
            decoder += [Block(channels[level]) for _ in range(decoder_blocks[level])]
            decoder += [Synthesis(channels[level], channels[level - 1])] if level else []
        self.encoder = nn.ModuleList([*encoder, Head(channels[-1], 2 * latent_channels)])
        self.decoder = nn.ModuleList([*decoder, Head(channels[0], 8 * outputs)])
        self._bands_in, self._bands_out = 8 * inputs, 8 * outputs
        self.halo = halo(self.encoding(), self.decoding())
        self.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        if checkpointing:
            checkpoint_blocks(self, Block)

    def encode(self, image: torch.Tensor, label: torch.Tensor | None) -> Gaussian:
        """Encode.

        Args:
            image: (B, C, X, Y, Z) in [-1, 1], extents multiples of ``stride``.
            label: (B, X, Y, Z) ids from 0; -1 where a case has no label; None where no case has one.
        """
        x = _bands(self._joined(image, label))
        for module in self.encoder:
            x = module(x)
        return _posterior(x)

    def decode(self, latent: torch.Tensor) -> Decoded:
        """Decode latents (B, C, x, y, z)."""
        x = channels_last(latent)
        for module in self.decoder:
            x = module(x)
        return self._parted(haar.synthesise(x))

    def encoding(self) -> Chain:
        """(image, label) -> posterior, link by link."""
        return Chain(self._joined, (Link(_bands, down=2, width=self._bands_in), *map(_link, self.encoder)), _posterior)

    def decoding(self) -> Chain:
        """Latent -> image and label logits, link by link."""
        return Chain(
            channels_last, (*map(_link, self.decoder), Link(haar.synthesise, up=2, width=self._bands_out)), self._parted
        )

    def regulariser(self, encoded: Encoded) -> Mapping[str, torch.Tensor]:
        """KL to the standard normal."""
        return {"kl": kl_to_standard_normal(encoded)}

    def label_rows(self) -> Mapping[str, Serves]:
        """The label table, the encoder's first convolution and the decoder's last; each has the eight bands."""
        table = self.label_embedding
        outputs = (0, labelled.outputs(self.image_channels, self.labels) * 8)
        last = f"decoder.{len(self.decoder) - 1}.conv"
        return {
            **labelled.table_rows(table, self.labels),
            "encoder.0.weight": (1, labelled.inputs(self.image_channels, table) * 8),
            f"{last}.weight": outputs,
            f"{last}.bias": outputs,
        }

    def _joined(self, image: torch.Tensor, label: torch.Tensor | None) -> torch.Tensor:
        return labelled.joined(self.label_embedding, image, label)

    def _parted(self, out: torch.Tensor) -> Decoded:
        return labelled.parted(out, self.image_channels, self.labels)


def _bands(x: torch.Tensor) -> torch.Tensor:
    return channels_last(haar.analyse(x))


def _posterior(hidden: torch.Tensor) -> Gaussian:
    mean, logvar = hidden.chunk(2, dim=1)
    return Gaussian(mean, logvar.clamp(*LOGVAR_RANGE))


def _link(module: nn.Module) -> Link:
    width = max(max(p.shape[:2]) for p in module.parameters() if p.ndim == 5)
    match module:
        case Analysis():
            return Link(module, down=2, width=width)
        case Synthesis():
            return Link(module, up=2, width=width)
        case Block():
            return Link(module, reach=2, width=width)
        case _:  # one convolution
            return Link(module, reach=1, width=width)


def stride(*, channels: Sequence[int] = (32, 64)) -> int:
    """Voxels per latent along each axis: the Haar transform halves once, each level but the first once more."""
    return int(2 ** len(channels))


def build(
    image_channels: int,
    labels: int,
    *,
    channels: Sequence[int] = (32, 64),
    latent_channels: int = 4,
    encoder_blocks: Sequence[int] = (1,),
    decoder_blocks: Sequence[int] = (1,),
    label_width: int = 4,
    checkpointing: bool = False,
) -> WaveletCodec:
    """Build the codec.

    Args:
        image_channels: C.
        labels: number of label ids with background, 0 for a cohort without labels.
        channels: width of each level, from half the resolution down; the stride is 2 ** levels.
        latent_channels: channels of the latent.
        encoder_blocks: residual blocks of each level on the way down; a missing level has the last one's.
        decoder_blocks: likewise on the way up.
        label_width: width of the label embedding.
        checkpointing: compute activations again in the backward pass: less memory, a third more time.

    Raises:
        InputError: widths or numbers of blocks that do not make a codec.
    """
    if not channels or min(*channels, latent_channels, label_width) < 1:
        raise InputError("autoencoder.options: channels, latent_channels and label_width must be 1 or more")
    blocks = []
    for name, given in (("encoder_blocks", encoder_blocks), ("decoder_blocks", decoder_blocks)):
        if not given or min(given) < 0 or len(given) > len(channels):
            raise InputError(
                f"autoencoder.options: {name} {list(given)} needs one number for each level of channels "
                f"{list(channels)}, 0 or more"
            )
        blocks.append((*given, *[given[-1]] * (len(channels) - len(given))))
    return WaveletCodec(
        image_channels, labels, tuple(channels), latent_channels, blocks[0], blocks[1], label_width, checkpointing
    )
