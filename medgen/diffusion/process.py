"""The process seam: how data becomes noise, what the network learns, and how samples are drawn."""

from collections.abc import Sequence
from typing import Protocol

import torch

from medgen.models.condition import Condition
from medgen.models.seam import Model, Network, Noise, Sampler


class Process(Protocol):
    """One kind of diffusion; a module of this room holds one and its ``build(**options)``."""

    def loss(
        self, net: Network, x0: torch.Tensor, cond: Condition, noise: torch.Tensor, uniform_B: torch.Tensor
    ) -> torch.Tensor:
        """Training loss of each row (B,), a pure function of noise and of the uniform numbers that choose times."""
        ...

    def as_model(self, net: Network) -> Model:
        """The network as a denoiser in the samplers' convention."""
        ...

    def sample(
        self, model: Model, shape: Sequence[int], cond: Condition, sampler: Sampler, noise: Noise, *, steps: int
    ) -> torch.Tensor:
        """Draw latents of ``shape``; all that generation calls."""
        ...
