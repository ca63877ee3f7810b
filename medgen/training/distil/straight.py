"""The straight-line variables that all objectives are written in, whatever the process.

A state x = x0 + sigma noise is z = x / (1 + sigma) at t = sigma / (1 + sigma): z_t = (1 - t) x0 + t noise, as in
rectified flow. A denoiser D at (x, sigma) is then a velocity v = (x - D) / sigma - D = (z_t - D) / t, and one step of
Euler from t to r, in sigma or in t alike, is z_r = z_t - (t - r) v.
"""

import torch

from medgen.models.condition import Condition
from medgen.models.seam import Model, expand


def time_of(sigma: torch.Tensor) -> torch.Tensor:
    """Times in [0, 1) of noise levels."""
    return sigma / (1 + sigma)


def velocity(model: Model, z: torch.Tensor, t_B: torch.Tensor, cond: Condition) -> torch.Tensor:
    """Velocity (B, C, X, Y, Z) of a denoiser at states ``z`` of times ``t_B`` in (0, 1)."""
    t = expand(t_B, z)
    return (z - model(z / (1 - t), t_B / (1 - t_B), cond).x0) / t
