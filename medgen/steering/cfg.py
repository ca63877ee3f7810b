"""Classifier-free guidance (Ho & Salimans 2022, arXiv:2207.12598)."""

from collections.abc import Sequence
from typing import Any

import torch

from medgen.errors import InputError
from medgen.models.condition import Condition
from medgen.models.seam import Model, Prediction
from medgen.steering.context import Known
from medgen.steering.passes import check_interval, together, within

NEEDS_NULL = "all"


def wrap(model: Model, *, scale: float = 1.0, interval: Sequence[float] = (), rescale: float = 0.0) -> Model:
    """Extrapolate from the unconditional to the conditional estimate: x0 = x0(null) + scale (x0(cond) - x0(null)).

    Args:
        model: the model to steer.
        scale: 1 is the model itself (one pass a call), 0 the unconditional model, above 1 follows the condition
            harder at the price of diversity. Both passes run as one batch.
        interval: [low, high]: guide only where low < sigma <= high (Kynkäänniemi et al. 2024, arXiv:2404.07724);
            one pass elsewhere. sigma is the noise beside data of unit variance; for rectified flow t / (1 - t).
        rescale: from 0 to 1, how far each sample's standard deviation is brought back to that of the conditional
            estimate, against overexposure (Lin et al. 2023, arXiv:2305.08891, equations 15 and 16).
    """
    if scale == 1.0:
        return model

    def guided(x: torch.Tensor, sigma: torch.Tensor, cond: Condition, *, taps: Sequence[str] = ()) -> Prediction:
        asked, free = together(model, x, sigma, [cond, cond.null()], taps)
        x0 = free.x0 + scale * (asked.x0 - free.x0)
        return Prediction(_rescaled(x0, asked.x0, rescale) if rescale else x0, features=asked.features)

    return within(interval, guided, model)


def _rescaled(x0: torch.Tensor, like: torch.Tensor, share: float) -> torch.Tensor:
    """``x0`` with each row's standard deviation moved by ``share`` towards that of ``like``'s row."""
    axes = tuple(range(1, x0.ndim))
    ratio = like.std(axes, correction=0, keepdim=True) / x0.std(axes, correction=0, keepdim=True).clamp(min=1e-12)
    return x0 * (share * ratio + 1 - share)


def check(known: Known | None, *, interval: Sequence[float], rescale: float, **_: Any) -> None:
    """Check the options' values.

    Raises:
        InputError: an interval or a rescale out of bounds.
    """
    check_interval("cfg", interval)
    if not 0 <= rescale <= 1:
        raise InputError(f"option 'rescale' of steering 'cfg' lies between 0 and 1, not {rescale}")
