"""The codec seam: what encodes an image with its label, and decodes both."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn

IMAGE, UNLABELLED, LABELS = -1, -2, -3
"""What a row of a weight serves, beside label ids: the image, "no label here", or the labels' embedding as a whole."""

Serves = tuple[int, tuple[int, ...]]
"""(axis of a weight, what each of its rows along that axis serves)."""


class Encoded(Protocol):
    """What every codec's ``encode`` gives: enough to store, to diffuse and to decode, whatever the codec's kind."""

    @property
    def mean(self) -> torch.Tensor:
        """The latent (B, C, x, y, z) that is stored and diffused."""
        ...

    @property
    def logvar(self) -> torch.Tensor:
        """Log of its variance, of the same shape."""
        ...

    @property
    def figures(self) -> Mapping[str, torch.Tensor]:
        """Figures worth logging, scalars without gradient."""
        ...

    def sample(self, noise: torch.Tensor) -> torch.Tensor:
        """What training decodes, for given standard normal noise."""
        ...


@dataclass(frozen=True)
class Gaussian:
    """A diagonal posterior over latents: mean and logvar of shape (B, C, x, y, z)."""

    mean: torch.Tensor
    logvar: torch.Tensor

    @property
    def figures(self) -> Mapping[str, torch.Tensor]:
        """None of its own."""
        return {}

    def sample(self, noise: torch.Tensor) -> torch.Tensor:
        """The reparameterised draw (Kingma & Welling 2014, arXiv:1312.6114) for given standard normal noise."""
        return self.mean + torch.exp(0.5 * self.logvar) * noise


@dataclass(frozen=True)
class Tokens:
    """Entries of a codebook, and the latent they were chosen for.

    The latent before quantisation is what is stored and diffused (Rombach et al. 2022, section 3.1: quantisation is
    a layer of the decoder), so that a continuous process serves; ``indices`` serve a discrete one.

    Attributes:
        indices: (B, x, y, z), int64.
        mean: the latent before quantisation (B, C, x, y, z).
        embedded: the codebook's vectors at ``indices``, of the same shape; no gradient.
        perplexity: exp of the entropy of the batch's indices: how many entries are in use, a scalar.
    """

    indices: torch.Tensor
    mean: torch.Tensor
    embedded: torch.Tensor
    perplexity: torch.Tensor

    @property
    def logvar(self) -> torch.Tensor:
        """A latent that is known: the variance is 1e-13."""
        return torch.full_like(self.mean, -30.0)

    @property
    def figures(self) -> Mapping[str, torch.Tensor]:
        """How much of the codebook is in use."""
        return {"perplexity": self.perplexity}

    def sample(self, noise: torch.Tensor) -> torch.Tensor:
        """The latent itself: there is nothing to draw, and ``decode`` quantises it."""
        return self.mean


@dataclass(frozen=True)
class Decoded:
    """An image (B, C, X, Y, Z) in [-1, 1] (not clamped) and label logits (B, L, X, Y, Z), None without labels."""

    image: torch.Tensor
    label_logits: torch.Tensor | None


class Codec(nn.Module):
    """The interface of a codec. It derives from ``nn.Module`` and holds no code of its own.

    Attributes:
        image_channels: C.
        labels: label ids with background, 0 for none.
        latent_channels: channels of the latent.
        stride: voxels per latent along each axis.
        halo: how far the codec looks, in latents: with this many more on each side of a tile, its interior is what
            the whole volume gives, encoding and decoding. None where norms or attention look everywhere.
    """

    image_channels: int
    labels: int
    latent_channels: int
    stride: int
    halo: int | None

    def encode(self, image: torch.Tensor, label: torch.Tensor | None) -> Encoded:
        """Image (B, C, X, Y, Z) in [-1, 1] and label ids (B, X, Y, Z), -1 where unlabelled, to a posterior."""
        raise NotImplementedError

    def decode(self, latent: torch.Tensor) -> Decoded:
        """Latents (B, c, X / stride, Y / stride, Z / stride) to image and label logits."""
        raise NotImplementedError

    def regulariser(self, encoded: Encoded) -> Mapping[str, torch.Tensor]:
        """The codec's own loss terms by name, scalars with gradient.

        ``kl`` is unweighted, for the experiment gives its weight; every other term comes weighted.
        """
        raise NotImplementedError

    def label_rows(self) -> Mapping[str, Serves]:
        """The weights whose shape the label set gives, by name: which row serves what.

        A codec for another label set takes over the rows of the labels that both know
        (:mod:`medgen.models.inherit`).
        """
        raise NotImplementedError
