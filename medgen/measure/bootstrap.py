"""Intervals by resampling."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Interval:
    """A figure with its interval.

    Attributes:
        value: of the data as they are.
        low: lower end.
        high: upper end.
    """

    value: float
    low: float
    high: float

    def to_json(self) -> dict[str, float | None]:
        """As plain JSON, null for what is undefined."""
        values = {"value": self.value, "low": self.low, "high": self.high}
        return {name: round(v, 6) if np.isfinite(v) else None for name, v in values.items()}


def bootstrap(
    statistic: Callable[[np.ndarray], float],
    n: int,
    *,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap of a figure over ``n`` cases.

    Args:
        statistic: (n,) row numbers to a figure. Rows of several arrays that are indexed by the same numbers stay
            paired.
        n: cases.
        resamples: draws of n cases with replacement. Those with an undefined figure are left out.
        level: share of the replicates inside the interval.
        seed: of the draws.

    Reference:
        Efron & Tibshirani (1993), An Introduction to the Bootstrap, chapter 13.
    """
    rng = np.random.default_rng(seed)
    replicates = np.array([statistic(rng.integers(0, n, n)) for _ in range(resamples)], dtype=np.float64)
    return percentile_interval(float(statistic(np.arange(n))), replicates, level=level)


def percentile_interval(
    value: float, replicates: np.ndarray, *, level: float = 0.95, recentre: bool = False
) -> Interval:
    """The interval between the quantiles of replicates.

    Args:
        value: the figure.
        replicates: (R,) bootstrap replicates; those that are not finite are left out.
        level: share of them inside.
        recentre: move the interval so that the replicates' mean falls on ``value``. For figures that resampling
            itself shifts, such as distances between samples, of which a resample holds fewer different cases.
    """
    kept = replicates[np.isfinite(replicates)]
    if len(kept) == 0 or not np.isfinite(value):
        return Interval(value, float("nan"), float("nan"))
    shift = value - float(kept.mean()) if recentre else 0.0
    low, high = np.quantile(kept, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, float(low) + shift, float(high) + shift)


def nanmean(values: np.ndarray) -> np.ndarray:
    """Mean over the last axis of what is finite; NaN where nothing is."""
    finite = np.isfinite(values)
    with np.errstate(divide="ignore", invalid="ignore"):
        mean: np.ndarray = np.where(finite, values, 0.0).sum(axis=-1) / finite.sum(axis=-1)
    return mean
