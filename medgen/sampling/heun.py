"""Heun's method on the probability-flow ODE (Karras et al. 2022, arXiv:2206.00364, algorithm 1 without churn).

Order 2, two evaluations a step and one in a step that ends at sigma = 0, where the slope is undefined. Not adaptive.
"""

from itertools import pairwise

import torch

from medgen.models.condition import Condition
from medgen.models.seam import Model, Noise, expand


def sample(model: Model, x: torch.Tensor, sigmas: torch.Tensor, cond: Condition, *, noise: Noise) -> torch.Tensor:
    """Integrate ``x`` (B, C, X, Y, Z) along ``sigmas`` (N + 1,), which may fall or rise; noise is not used."""

    def slope(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        sigma_B = sigma.expand(x.shape[0])
        return (x - model(x, sigma_B, cond).x0) / expand(sigma_B, x)

    for sigma, to in pairwise(sigmas):
        if sigma == 0:
            sigma = to * 1e-3
        first = slope(x, sigma)
        euler = x + first * (to - sigma)
        x = euler if to == 0 else x + 0.5 * (first + slope(euler, to)) * (to - sigma)
    return x
