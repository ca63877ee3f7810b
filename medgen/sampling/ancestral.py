"""Ancestral sampling: a step down to the estimate's noise level, and fresh noise up to the next.

    sigma_up = eta sqrt(to^2 (sigma^2 - to^2) / sigma^2),    sigma_down = sqrt(to^2 - sigma_up^2)
    x <- x0 + sigma_down / sigma (x - x0) + sigma_up noise

This is DDIM with eta (Song et al. 2021, arXiv:2010.02502, equations 12 and 16), written in sigma: ``eta=0`` is DDIM and
Euler's method. At ``eta=1`` the step draws from the exact posterior q(x_to | x, x0) of DDPM (Ho et al. 2020,
arXiv:2006.11239, equations 6 and 7), whose mean in sigma is x0 + (to / sigma)^2 (x - x0) and whose variance is
sigma_up^2; every DDPM timestep visited, it is the paper's algorithm 2. It is also k-diffusion's
``sample_euler_ancestral``. One evaluation a step; order 1 for ``eta=0``, weak order 1 otherwise.
"""

from itertools import pairwise

import torch

from medgen.errors import InputError
from medgen.models.condition import Condition
from medgen.models.seam import Model, Noise


def sample(
    model: Model, x: torch.Tensor, sigmas: torch.Tensor, cond: Condition, *, noise: Noise, eta: float = 1.0
) -> torch.Tensor:
    """Bring ``x`` (B, C, X, Y, Z) along ``sigmas`` (N + 1,), which may rise where ``eta`` is 0.

    Raises:
        InputError: ``eta`` is not between 0 and 1, or noise is asked for on a way that rises.
    """
    if not 0 <= eta <= 1:
        raise InputError(f"option 'eta' of sampling 'ancestral' lies between 0 (DDIM) and 1 (DDPM), not at {eta}")
    if eta > 0 and (sigmas.diff() > 0).any():
        raise InputError("sampling 'ancestral' follows rising noise levels only with eta 0")
    for step, (sigma, to) in enumerate(pairwise(sigmas), 1):
        if sigma == to:
            continue
        if sigma == 0:  # rising from clean data: the direction is undefined at 0
            sigma = to * 1e-3
        x0 = model(x, sigma.expand(x.shape[0]), cond).x0
        ratio = to / sigma
        fresh = eta * (1 - ratio**2).clamp(min=0).sqrt() if eta > 0 else torch.zeros_like(to)  # sigma_up / to
        x = x0 + ratio * (1 - fresh**2).sqrt() * (x - x0)
        if eta > 0 and to != 0:
            x = x + to * fresh * noise(step)
    return x
