"""Mean flow (Geng et al. 2025, arXiv:2505.13447) distilled, with the mean taken to the end of the step t lies in."""

import torch

from medgen.diffusion.process import row_means
from medgen.models.seam import Model, expand
from medgen.training.distil.objective import Batch
from medgen.training.distil.straight import velocity


def loss(student: Model, teacher: Model, batch: Batch, *, forward: bool = True) -> torch.Tensor:
    k, within = batch.segment()
    a, b = batch.times[k], batch.times[k + 1]
    t = torch.maximum(a - within * (a - b), b + 0.02 * (a - b))
    x0 = batch.path[:, -1]
    z = (1 - expand(t, x0)) * x0 + expand(t, x0) * batch.noise
    with torch.no_grad():
        v = velocity(teacher, z, t, batch.cond)
        if forward:
            with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
                _, slope = torch.func.jvp(lambda z, t: velocity(student, z, t, batch.cond), (z, t), (v, torch.ones_like(t)))
        else:
            h = 5e-3
            slope = (velocity(student, z, t, batch.cond) - velocity(student, z - h * v, t - h, batch.cond)) / h
        target = v - expand(t - b, z) * slope
    u = velocity(student, z, t, batch.cond)
    error = (u - target).square().flatten(1).mean(1)
    return error / (error.detach() + 1e-3).sqrt()
