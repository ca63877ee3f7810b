"""Classifier-free guidance with a scale of its own for each column."""

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch

from medgen.errors import InputError
from medgen.models.condition import Condition
from medgen.models.seam import Model, Prediction
from medgen.steering.context import Known
from medgen.steering.passes import check_interval, together, within

NEEDS_NULL = "some"


def wrap(model: Model, *, weights: Mapping[str, float] = MappingProxyType({}), interval: Sequence[float] = ()) -> Model:
    """Weigh what each column adds to the others: x0 = x0(all) + sum_k (w_k - 1) (x0(all) - x0(all but k)).

    The difference in the sum is the score of p(column k | x, other columns). For columns independent of each other
    given x the sum is the product p(x) prod_k p(column k | x)^w_k, as is the sum over columns asked alone (Liu et al.
    2022, arXiv:2206.01714). But for dependent columns, and those of a cohort are (age, volumes), that one counts
    twice what they share, while this one stays exact at weights of 1 and, for one column, at 0.

    Args:
        model: the model to steer.
        weights: column -> weight: 1 as trained, above 1 obeyed harder, 0 as if not asked. Each one that is not 1
            costs a pass, all in one batch.
        interval: [low, high]: weigh only where low < sigma <= high.
    """
    parts = {name: float(weight) for name, weight in weights.items() if weight != 1}
    if not parts:
        return model

    def guided(x: torch.Tensor, sigma: torch.Tensor, cond: Condition, *, taps: Sequence[str] = ()) -> Prediction:
        whole, *without = together(model, x, sigma, [cond, *(cond.drop(name) for name in parts)], taps)
        x0 = whole.x0
        for weight, less in zip(parts.values(), without, strict=True):
            x0 = x0 + (weight - 1) * (whole.x0 - less.x0)
        return Prediction(x0, features=whole.features)

    return within(interval, guided, model)


def check(known: Known | None, *, weights: Mapping[str, float], interval: Sequence[float], **_: Any) -> None:
    """Check the options' values.

    Raises:
        InputError: a weight that is no number, or a column that the model does not know.
    """
    check_interval("per_covariate", interval)
    for name, weight in weights.items():
        if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not math.isfinite(weight):
            raise InputError(f"steering 'per_covariate': the weight of '{name}' is a finite number, not {weight!r}")
        if known is not None:
            known.require(name, "steering 'per_covariate'")
