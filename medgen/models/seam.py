"""The types that connect networks, processes, samplers and steering.

Legend of shape suffixes: B batch, C channels, X Y Z space, K covariate columns, T tokens, D token width.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from medgen.models.condition import Condition


@dataclass(frozen=True)
class Prediction:
    """What a denoiser says of a noisy batch.

    Attributes:
        x0: the denoised estimate E[x0 | x], shape (B, C, X, Y, Z), float32.
        logvar: log of its uncertainty, where the model gives one.
        features: activations asked for by ``taps``.
    """

    x0: torch.Tensor
    logvar: torch.Tensor | None = None
    features: dict[str, torch.Tensor] | None = None


class Model(Protocol):
    """A denoiser in the variance-exploding convention x = x0 + sigma * noise.

    ``sigma`` has shape (B,); every process is brought to this form, so that samplers and steering need one.
    """

    def __call__(
        self, x: torch.Tensor, sigma: torch.Tensor, cond: Condition, *, taps: Sequence[str] = ()
    ) -> Prediction:
        """Denoise ``x`` (B, C, X, Y, Z)."""
        ...


Network = Callable[[torch.Tensor, torch.Tensor, Condition], torch.Tensor]
"""A trainable network: (x (B, C, X, Y, Z), time (B,), condition) -> (B, C, X, Y, Z)."""

Noise = Callable[[int], torch.Tensor]
"""Step number -> standard normal noise for the batch, every row from its own stream."""

Sampler = Callable[..., torch.Tensor]
"""(model, x, sigmas, cond, *, noise, **options) -> x."""


def expand(values_B: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Reshape (B,) so that it broadcasts over ``like`` (B, ...)."""
    return values_B.reshape(-1, *[1] * (like.ndim - 1))
