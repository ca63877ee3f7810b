"""Static and dynamic thresholding of the denoised estimate (Saharia et al. 2022, arXiv:2205.11487, section 2.3)."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from medgen.errors import InputError
from medgen.models.condition import Condition
from medgen.models.seam import Model, Prediction, expand
from medgen.steering.context import Known


def wrap(model: Model, *, limit: float = 4.0, quantile: float = 0.0) -> Model:
    """Keep x0 within bounds that data keep, against the overshoot of strong guidance.

    The paper's bound of 1 is that of pixels; standardised latents have unit variance and no such bound, so that
    ``limit``, in standard deviations, takes its place.

    Args:
        model: the model to steer.
        limit: static: x0 is clipped to [-limit, limit].
        quantile: above 0, dynamic: a sample's own bound s is this quantile of its |x0|, where that exceeds ``limit``;
            x0 is clipped to [-s, s] and shrunk to [-limit, limit]. 0.995 is usual.
    """

    def bounded(x: torch.Tensor, sigma: torch.Tensor, cond: Condition, *, taps: Sequence[str] = ()) -> Prediction:
        out = model(x, sigma, cond, taps=taps)
        if not quantile:
            return replace(out, x0=out.x0.clamp(-limit, limit))
        size = out.x0.detach().abs().flatten(1)
        rank = min(max(math.ceil(quantile * size.shape[1]), 1), size.shape[1])
        # kthvalue, because torch.quantile refuses more than 2^24 numbers
        s = expand(size.kthvalue(rank, dim=1).values.clamp(min=limit), out.x0)
        return replace(out, x0=out.x0.clamp(-s, s) * (limit / s))

    return bounded


def check(known: Known | None, *, limit: float, quantile: float, **_: Any) -> None:
    """Check the options' values.

    Raises:
        InputError: a limit or a quantile out of bounds.
    """
    if limit <= 0:
        raise InputError(f"option 'limit' of steering 'threshold' is above 0 (in standard deviations), not {limit}")
    if not 0 <= quantile <= 1:
        raise InputError(f"option 'quantile' of steering 'threshold' lies between 0 and 1, not {quantile}")
