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


def drawn(
    model: Model,
    shape: Sequence[int],
    cond: Condition,
    sampler: Sampler,
    noise: Noise,
    sigmas: torch.Tensor,
    *,
    unit: bool = False,
) -> torch.Tensor:
    """Draw latents along noise levels: what every process's ``sample`` ends in.

    Args:
        model: the denoiser.
        shape: (B, C, X, Y, Z).
        cond: what is asked.
        sampler: the solver.
        noise: streams of the batch.
        sigmas: (N + 1,) falling, on any device.
        unit: start from sqrt(1 + sigma^2) * noise, the spread of noisy data of unit variance, not from sigma * noise.
    """
    sigmas = sigmas.to(cond.values.device)
    x = ((1 + sigmas[0] ** 2).sqrt() if unit else sigmas[0]) * noise(0)
    assert tuple(x.shape) == tuple(shape), f"noise of shape {tuple(x.shape)} for latents of shape {tuple(shape)}"
    return sampler(model, x, sigmas, cond, noise=noise)


def rho_levels(high: float, low: float, steps: int, rho: float) -> torch.Tensor:
    """Noise levels (steps,) from ``high`` to ``low``, even in their rho-th root (Karras et al. 2022, equation 5)."""
    start, end = high ** (1 / rho), low ** (1 / rho)
    return (start + torch.linspace(0, 1, steps, dtype=torch.float64) * (end - start)) ** rho


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
