"""The codec seam: what encodes an image with its label, and decodes both."""

from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class Gaussian:
    """A diagonal posterior over latents: mean and logvar of shape (B, C, x, y, z)."""

    mean: torch.Tensor
    logvar: torch.Tensor

    def sample(self, noise: torch.Tensor) -> torch.Tensor:
        """The reparameterised draw (Kingma & Welling 2014, arXiv:1312.6114) for given standard normal noise."""
        return self.mean + torch.exp(0.5 * self.logvar) * noise


@dataclass(frozen=True)
class Decoded:
    """An image (B, C, X, Y, Z) in [-1, 1] (not clamped) and label logits (B, L, X, Y, Z), None without labels."""

    image: torch.Tensor
    label_logits: torch.Tensor | None


class Codec(nn.Module):
    """The interface of a codec. It derives from ``nn.Module`` and holds no code of its own."""

    image_channels: int
    labels: int
    latent_channels: int
    stride: int

    def encode(self, image: torch.Tensor, label: torch.Tensor | None) -> Gaussian:
        """Image (B, C, X, Y, Z) in [-1, 1] and label ids (B, X, Y, Z), -1 where unlabelled, to a posterior."""
        raise NotImplementedError

    def decode(self, latent: torch.Tensor) -> Decoded:
        """Latents (B, c, X / stride, Y / stride, Z / stride) to image and label logits."""
        raise NotImplementedError
