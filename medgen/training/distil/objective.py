"""What an objective is given, and what it gives."""

from dataclasses import dataclass
from typing import Protocol

import torch

from medgen.models.condition import Condition
from medgen.models.seam import Model


@dataclass(frozen=True)
class Batch:
    """Paths of the teacher, and the random numbers of a step.

    Attributes:
        path: (B, S + 1, C, X, Y, Z) states of the teacher's ODE at the S + 1 levels between the student's steps, from
            noise to sample, in the straight-line variables of :mod:`medgen.training.distil.straight`.
        times: (S + 1,) of those states, falling to 0.
        cond: their conditions.
        uniform: numbers (B,) in [0, 1) that choose times.
    """

    path: torch.Tensor
    times: torch.Tensor
    cond: Condition
    uniform: torch.Tensor

    def segment(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Number of a segment (B,), and how far into it (B,) in [0, 1), by the uniform numbers."""
        place = self.uniform * (len(self.times) - 1)
        k = place.long().clamp(max=len(self.times) - 2)
        return k, place - k


class Objective(Protocol):
    """The function ``loss`` of a kind's module."""

    def __call__(self, student: Model, batch: Batch) -> torch.Tensor:
        """Loss of each row, (B,).

        Args:
            student: trained.
            batch: see :class:`Batch`; what the teacher has to say is in it.
        """
        ...
