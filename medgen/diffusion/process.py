"""The process seam: how data becomes noise, what the network learns, and how samples are drawn."""

from collections.abc import Sequence
from typing import Protocol

import torch

from medgen.models.condition import Condition
from medgen.models.seam import Model, Network, Noise, Sampler


class Process(Protocol):
    """One kind of diffusion; a module of this room holds one and its ``build(**options)``."""

    def loss(
        self,
        net: Network,
        x0: torch.Tensor,
        cond: Condition,
        noise: torch.Tensor,
        uniform_B: torch.Tensor,
        *,
        weight: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Training loss of each row (B,), a pure function of noise and of the uniform numbers that choose times.

        Args:
            net: the trainable network.
            x0: (B, C, X, Y, Z) standardised latents.
            cond: their condition.
            noise: standard normal, the shape of ``x0``.
            uniform_B: uniform numbers (B,) that choose the times.
            weight: (B, 1, X, Y, Z) or what broadcasts to ``x0``: how much each latent counts, 0 for padding; all
                alike without it.
        """
        ...

    def as_model(self, net: Network) -> Model:
        """The network as a denoiser in the samplers' convention."""
        ...

    def sample(
        self, model: Model, shape: Sequence[int], cond: Condition, sampler: Sampler, noise: Noise, *, steps: int
    ) -> torch.Tensor:
        """Draw latents of ``shape``; all that generation calls."""
        ...


def row_means(error: torch.Tensor, weight: torch.Tensor | None = None) -> torch.Tensor:
    """Mean of each row (B, ...), (B,): weighted where a weight that broadcasts to ``error`` is given.

    A row whose weights are all 0 has mean 0.
    """
    if weight is None:
        return error.flatten(1).mean(dim=1)
    weight = weight.to(error).expand_as(error)
    total = weight.flatten(1).sum(dim=1)
    # An infinite error in the padding must not become NaN.
    kept = torch.where(weight > 0, error * weight, torch.zeros_like(error)).flatten(1).sum(dim=1)
    return kept / total.clamp(min=torch.finfo(error.dtype).tiny)
