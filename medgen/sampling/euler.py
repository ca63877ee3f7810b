"""Euler's method on the probability-flow ODE dx/dsigma = (x - x0(x, sigma)) / sigma.

Order 1, one evaluation a step (Song et al. 2021, arXiv:2011.13456; the ODE as in Karras et al. 2022,
arXiv:2206.00364, equation 4). In these variables it is DDIM with eta = 0, and for rectified flow Euler in t.
"""

from itertools import pairwise

import torch

from medgen.models.condition import Condition
from medgen.models.seam import Model, Noise, expand


def sample(model: Model, x: torch.Tensor, sigmas: torch.Tensor, cond: Condition, *, noise: Noise) -> torch.Tensor:
    """Integrate ``x`` (B, C, X, Y, Z) along ``sigmas`` (N + 1,), which may fall or rise; noise is not used."""
    for sigma, to in pairwise(sigmas):
        if sigma == to:
            continue
        if sigma == 0:  # rising from clean data: the ODE's direction is undefined at 0, x0 = x there
            sigma = to * 1e-3
        sigma_B = sigma.expand(x.shape[0])
        slope = (x - model(x, sigma_B, cond).x0) / expand(sigma_B, x)
        x = x + slope * (to - sigma)
    return x
