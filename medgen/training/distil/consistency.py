"""Multistep consistency distillation (Song et al. 2023, arXiv:2303.01469; Heek et al. 2024, arXiv:2403.06807)."""

import torch

from medgen.diffusion.process import row_means
from medgen.models.seam import Model, expand
from medgen.training.distil.objective import Batch
from medgen.training.distil.straight import velocity


def loss(student: Model, teacher: Model, batch: Batch, *, substeps: int = 4) -> torch.Tensor:
    k, within = batch.segment()
    a, b = batch.times[k], batch.times[k + 1]
    step = (a - b) / substeps
    t = a - within * (a - b)
    t = torch.maximum(t, b + 0.02 * (a - b))
    to = torch.maximum(t - step, b)
    x0 = batch.path[:, -1]
    z = (1 - expand(t, x0)) * x0 + expand(t, x0) * batch.noise
    with torch.no_grad():
        v = velocity(teacher, z, t, batch.cond)
        z_to = z - expand(t - to, z) * v
        at_end = to <= b + 1e-6
        u = velocity(student, z_to, torch.where(at_end, t, to), batch.cond)
        share = expand((t - to) / (t - b), z)
        target = share * v + (1 - share) * u
    return row_means((velocity(student, z, t, batch.cond) - target).square())
