"""DPM-Solver++(2M) (Lu et al. 2022, arXiv:2211.01095, algorithm 2), and its SDE form.

A linear multistep method on the denoised estimate in lambda = -log sigma: exact in the linear part, with the estimate
extrapolated from this step and the last. One evaluation a step; order 2 for ``eta=0``. Not adaptive. The first step,
and one that ends at sigma = 0, are of order 1.

``eta`` above 0 adds noise and takes as much more away: SDE-DPM-Solver++(2M) of the paper's section 5 at 1, and
between them as in k-diffusion's ``sample_dpmpp_2m_sde`` (midpoint).
"""

from itertools import pairwise

import torch

from medgen.errors import InputError
from medgen.models.condition import Condition
from medgen.models.seam import Model, Noise


def sample(
    model: Model, x: torch.Tensor, sigmas: torch.Tensor, cond: Condition, *, noise: Noise, eta: float = 0.0
) -> torch.Tensor:
    """Integrate ``x`` (B, C, X, Y, Z) along ``sigmas`` (N + 1,), which may rise where ``eta`` is 0.

    Raises:
        InputError: ``eta`` is negative, or noise is asked for on a way that rises.
    """
    if eta < 0:
        raise InputError(f"option 'eta' of sampling 'dpmpp' is 0 or more, not {eta}")
    if eta > 0 and (sigmas.diff() > 0).any():
        raise InputError("sampling 'dpmpp' follows rising noise levels only with eta 0")
    last: tuple[torch.Tensor, torch.Tensor] | None = None  # the last estimate and the step it made in lambda
    for step, (sigma, to) in enumerate(pairwise(sigmas), 1):
        if sigma == to:
            continue
        if sigma == 0:  # rising from clean data: lambda is infinite at 0
            sigma = to * 1e-3
        x0 = model(x, sigma.expand(x.shape[0]), cond).x0
        if to == 0:
            x, last = x0, None
            continue
        h = (sigma / to).log()
        ahead = x0
        if last is not None:
            ahead = x0 + 0.5 * (h / last[1]) * (x0 - last[0])
        x = (to / sigma) * torch.exp(-eta * h) * x - torch.expm1(-(1 + eta) * h) * ahead
        if eta > 0:
            x = x + to * (-torch.expm1(-2 * eta * h)).sqrt() * noise(step)
        last = (x0, h)
    return x
