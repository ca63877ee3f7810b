"""Regression on the teacher's own path, segment by segment.

At the start of each of its steps the student learns the mean velocity that brings the teacher's state there to the
teacher's state at the step's end (Luhman & Luhman 2021, arXiv:2101.02388, for one step; what progressive distillation,
Salimans & Ho 2022, arXiv:2202.00512, approaches by halving). The target is a function of the state, and so least
squares have the teacher's map itself as optimum, not its mean; and the student is asked at S times only.
"""

import torch

from medgen.diffusion.process import row_means
from medgen.models.seam import Model, expand
from medgen.training.distil.objective import Batch
from medgen.training.distil.straight import velocity


def loss(student: Model, batch: Batch) -> torch.Tensor:
    """Squared error of the mean velocity of a segment, (B,)."""
    k, _ = batch.segment()
    rows = torch.arange(len(k), device=k.device)
    start, end = batch.path[rows, k], batch.path[rows, k + 1]
    target = (start - end) / expand(batch.times[k] - batch.times[k + 1], start)
    return row_means((velocity(student, start, batch.times[k], batch.cond) - target).square())
