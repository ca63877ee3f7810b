"""Heun's method on the probability-flow ODE (Karras et al. 2022, arXiv:2206.00364, algorithm 1 without churn).

Order 2, two evaluations a step and one in a step that ends at sigma = 0, where the slope is undefined. Not adaptive.

The trapezoid is taken in the straight-line variables of rectified flow, t = sigma / (1 + sigma) and
x_t = x / (1 + sigma), by default, whatever the process: the ODE is the same, but t is bounded. In sigma itself a first
step from a few hundreds down to ten multiplies the small change of slope by hundreds and is worse than Euler's.
``variable="sigma"`` is the paper's algorithm, for schedules whose sigmas fall by modest ratios.
"""

from itertools import pairwise

import torch

from medgen.errors import InputError
from medgen.models.condition import Condition
from medgen.models.seam import Model, Noise, expand


def sample(
    model: Model, x: torch.Tensor, sigmas: torch.Tensor, cond: Condition, *, noise: Noise, variable: str = "time"
) -> torch.Tensor:
    """Integrate ``x`` (B, C, X, Y, Z) along ``sigmas`` (N + 1,), which may fall or rise; noise is not used.

    Raises:
        InputError: ``variable`` is neither "time" nor "sigma".
    """
    if variable not in ("time", "sigma"):
        raise InputError(f"option 'variable' of sampling 'heun' is time or sigma, not '{variable}'")
    straight = variable == "time"

    def scale(sigma: torch.Tensor) -> torch.Tensor:
        return 1 + sigma if straight else torch.ones_like(sigma)

    def slope(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        """Of x / scale with respect to sigma / scale."""
        sigma_B = sigma.expand(x.shape[0])
        x0 = model(x, sigma_B, cond).x0
        direction = (x - x0) / expand(sigma_B, x)
        return direction - x0 if straight else direction

    for sigma, to in pairwise(sigmas):
        if sigma == to:
            continue
        if sigma == 0:  # rising from clean data: the direction is undefined at 0
            sigma = to * 1e-3
        step = to / scale(to) - sigma / scale(sigma)
        start, first = x / scale(sigma), slope(x, sigma)
        x = (start + first * step) * scale(to)
        if to != 0:
            x = (start + 0.5 * (first + slope(x, to)) * step) * scale(to)
    return x
