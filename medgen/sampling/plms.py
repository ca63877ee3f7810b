"""PLMS, the pseudo linear multistep method (Liu et al. 2022, arXiv:2202.09778), as published latent models use it.

The noise estimate eps = (x - x0) / sigma is combined over up to four steps with the Adams-Bashforth coefficients of
equal steps, and the DDIM transfer of the paper's equation 11 carries x by it, which in these variables is
x + (to - sigma) eps. The first step is a trapezoid (two evaluations), as in latent diffusion's ``PLMSSampler`` and in
diffusers' ``PNDMScheduler(skip_prk_steps=True)``, where the paper starts by Runge-Kutta.

The coefficients suppose that ``sigmas`` lie evenly in some smooth variable, as the timesteps of ``vp`` with spacing
"leading" or "linspace" do. They average eps over the step's time but not over its sigma, and so the order is 2 (the
paper's theorem), not the 4 of Adams and Bashforth. One evaluation a step, and one more in the first. Not adaptive.
"""

from itertools import pairwise

import torch

from medgen.models.condition import Condition
from medgen.models.seam import Model, Noise, expand

# Newest first, for 1 to 4 estimates (the paper's equation 12 has 4).
_ADAMS_BASHFORTH = (
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)


def sample(model: Model, x: torch.Tensor, sigmas: torch.Tensor, cond: Condition, *, noise: Noise) -> torch.Tensor:
    """Integrate ``x`` (B, C, X, Y, Z) along ``sigmas`` (N + 1,), which may fall or rise; noise is not used."""

    def estimate(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        sigma_B = sigma.expand(x.shape[0])
        return (x - model(x, sigma_B, cond).x0) / expand(sigma_B, x)

    history: list[torch.Tensor] = []  # newest first
    rising: bool | None = None
    for sigma, to in pairwise(sigmas):
        if sigma == to:
            continue
        if sigma == 0:  # rising from clean data: the direction is undefined at 0
            sigma = to * 1e-3
        if rising is not bool(to > sigma):  # the coefficients suppose one direction
            rising, history = bool(to > sigma), []
        first = estimate(x, sigma)
        history = [first, *history[:3]]
        eps = torch.zeros_like(x)
        for factor, old in zip(_ADAMS_BASHFORTH[len(history) - 1], history, strict=True):
            eps = eps + factor * old
        if len(history) == 1 and to != 0:
            eps = 0.5 * (first + estimate(x + (to - sigma) * first, to))
        x = x + (to - sigma) * eps
    return x
