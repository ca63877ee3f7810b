"""The VQ codec: MONAI's VQVAE over image and label together, with a codebook whose entries all stay in use."""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from monai.networks.layers.vector_quantizer import EMAQuantizer
from monai.networks.nets import VQVAE
from monai.networks.nets.vqvae import VQVAEResidualUnit
from torch import nn

from medgen.errors import InputError
from medgen.models import codebook, labelled
from medgen.models.chain import Chain, halo
from medgen.models.checkpointing import checkpoint_blocks
from medgen.models.codec import Codec, Decoded, Encoded, Serves, Tokens
from medgen.models.links import links_of


class VQCodec(Codec):
    """Image and label as entries of a codebook (van den Oord et al. 2017; Tudosiu et al. 2022, arXiv:2209.03177).

    The encoder's output is what is stored and diffused; the decoder's first step replaces each vector of it by the
    nearest code (Rombach et al. 2022, VQ-regularised latents). No layer normalises over the extent, so that tiles
    give what the whole gives.
    """

    def __init__(
        self,
        image_channels: int,
        labels: int,
        channels: tuple[int, ...],
        latent_channels: int,
        codes: int,
        res_layers: int,
        commitment: float,
        decay: float,
        label_width: int,
        checkpointing: bool,
    ) -> None:
        super().__init__()
        self.image_channels, self.labels = image_channels, labels
        self.stride, self.latent_channels = 2 ** len(channels), latent_channels
        self.commitment = commitment
        self.label_embedding = nn.Embedding(labels + 1, label_width) if labels else None
        self.net = VQVAE(
            spatial_dims=3,
            in_channels=image_channels + (label_width if labels else 0),
            out_channels=image_channels + labels,
            channels=channels,
            num_res_layers=res_layers,
            num_res_channels=channels,
            downsample_parameters=((2, 4, 1, 1),) * len(channels),
            upsample_parameters=((2, 4, 1, 1, 0),) * len(channels),
            num_embeddings=codes,
            embedding_dim=latent_channels,
            commitment_cost=commitment,
            decay=decay,
        )
        self.halo = halo(self.encoding(), self.decoding())
        if checkpointing:
            checkpoint_blocks(self.net, VQVAEResidualUnit)

    @property
    def book(self) -> EMAQuantizer:
        """The codebook and its running sums."""
        return self.net.quantizer.quantizer

    def encode(self, image: torch.Tensor, label: torch.Tensor | None) -> Tokens:
        """Encode; in training the codebook learns from what it is shown.

        Args:
            image: (B, C, X, Y, Z) in [-1, 1], extents multiples of ``stride``.
            label: (B, X, Y, Z) ids from 0; -1 where a case has no label; None where no case has one.
        """
        tokens = self._tokens(self.net.encoder(self._joined(image, label)))
        if self.training and torch.is_grad_enabled():
            codebook.learn(self.book, tokens.mean.detach(), tokens.indices)
        return tokens

    def decode(self, latent: torch.Tensor) -> Decoded:
        """Quantise and decode latents (B, C, x, y, z), which need not be codes."""
        return self._parted(self.net.decoder(self._quantised(latent)))

    def decode_tokens(self, indices: torch.Tensor) -> Decoded:
        """Decode entries of the codebook (B, x, y, z)."""
        return self._parted(self.net.decoder(codebook.embed(indices, self.book.embedding.weight)))

    def encoding(self) -> Chain:
        """(image, label) -> tokens, link by link."""
        return Chain(self._joined, links_of(self.net.encoder), self._tokens)

    def decoding(self) -> Chain:
        """Latent -> image and label logits, link by link."""
        return Chain(self._quantised, links_of(self.net.decoder), self._parted)

    def regulariser(self, encoded: Encoded) -> Mapping[str, torch.Tensor]:
        """Commitment draws the latent to its code. The codes follow the latents by running means, without a loss."""
        assert isinstance(encoded, Tokens)
        return {"commitment": self.commitment * F.mse_loss(encoded.mean.float(), encoded.embedded.float())}

    def label_rows(self) -> Mapping[str, Serves]:
        """The label table, the encoder's first convolution and the decoder's last, which is transposed."""
        table = self.label_embedding
        outputs = labelled.outputs(self.image_channels, self.labels)
        last = f"net.decoder.blocks.{len(list(self.net.decoder.get_submodule('blocks').children())) - 1}.conv"
        return {
            **labelled.table_rows(table, self.labels),
            "net.encoder.blocks.0.conv.weight": (1, labelled.inputs(self.image_channels, table)),
            f"{last}.weight": (1, outputs),
            f"{last}.bias": (0, outputs),
        }

    def _joined(self, image: torch.Tensor, label: torch.Tensor | None) -> torch.Tensor:
        return labelled.joined(self.label_embedding, image, label)

    def _tokens(self, latent: torch.Tensor) -> Tokens:
        codes = self.book.embedding.weight
        indices = codebook.nearest(latent.detach(), codes)
        return Tokens(
            indices, latent, codebook.embed(indices, codes), codebook.perplexity(indices, self.book.num_embeddings)
        )

    def _quantised(self, latent: torch.Tensor) -> torch.Tensor:
        codes = self.book.embedding.weight
        return codebook.straight_through(latent, codebook.embed(codebook.nearest(latent.detach(), codes), codes))

    def _parted(self, out: torch.Tensor) -> Decoded:
        return labelled.parted(out, self.image_channels, self.labels)


def stride(*, channels: Sequence[int] = (32, 64)) -> int:
    """Voxels per latent along each axis."""
    return int(2 ** len(channels))


def build(
    image_channels: int,
    labels: int,
    *,
    channels: Sequence[int] = (32, 64),
    latent_channels: int = 4,
    codes: int = 512,
    res_layers: int = 1,
    commitment: float = 0.25,
    decay: float = 0.99,
    label_width: int = 4,
    checkpointing: bool = False,
) -> VQCodec:
    """Build the codec.

    Args:
        image_channels: C.
        labels: number of label ids with background, 0 for a cohort without labels.
        channels: width of each level; the stride is 2 ** levels.
        latent_channels: length of a code.
        codes: entries of the codebook.
        res_layers: residual units a level.
        commitment: weight of the commitment loss.
        decay: of the running means that the codes are.
        label_width: width of the label embedding.
        checkpointing: compute activations again in the backward pass: less memory, a third more time.

    Raises:
        InputError: numbers that do not make a codec.
    """
    if not channels or min(*channels, latent_channels, codes, label_width) < 1 or res_layers < 0:
        raise InputError("autoencoder.options: channels, latent_channels, codes and label_width must be 1 or more")
    if not 0 < decay < 1:
        raise InputError(f"autoencoder.options: decay {decay} must lie between 0 and 1")
    return VQCodec(
        image_channels,
        labels,
        tuple(channels),
        latent_channels,
        codes,
        res_layers,
        commitment,
        decay,
        label_width,
        checkpointing,
    )
