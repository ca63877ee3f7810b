"""Reflow (Liu et al. 2023, arXiv:2209.03003): flow matching on the teacher's pairs of noise and sample."""

import torch

from medgen.diffusion.process import row_means
from medgen.models.seam import Model, expand
from medgen.training.distil.objective import Batch
from medgen.training.distil.straight import velocity


def loss(student: Model, teacher: Model, batch: Batch, *, piecewise: bool = False) -> torch.Tensor:
    k, within = batch.segment()
    rows = torch.arange(len(k), device=k.device)
    if piecewise:
        start, end, a, b = batch.path[rows, k], batch.path[rows, k + 1], batch.times[k], batch.times[k + 1]
        share = (1 - within).clamp(min=1e-3)
    else:
        start, end, a, b = batch.path[:, 0], batch.path[:, -1], batch.times[:1].expand(len(k)), batch.times[-1:].expand(len(k))
        share = (1 - batch.uniform_B).clamp(min=1e-3)
    z = end + expand(share, end) * (start - end)
    target = (start - end) / expand(a - b, start)
    return row_means((velocity(student, z, b + share * (a - b), batch.cond) - target).square())
