"""Agreement of what was asked with what came."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Agreement:
    """Paired figures of ``n`` pairs.

    Attributes:
        n: pairs.
        r: Pearson's correlation, NaN below 3 pairs or without spread.
        ccc: Lin's (1989) concordance correlation: 1 only where every pair is equal.
        slope: of measured on asked, least squares.
        mae: mean absolute difference, in the unit of the values.
        bias: mean of measured minus asked.
    """

    n: int
    r: float
    ccc: float
    slope: float
    mae: float
    bias: float


def agreement(asked: np.ndarray, measured: np.ndarray) -> Agreement:
    """Compare two arrays (n,)."""
    x, y = np.asarray(asked, dtype=np.float64), np.asarray(measured, dtype=np.float64)
    assert x.shape == y.shape and x.ndim == 1, f"arrays of shapes {x.shape} and {y.shape}"
    mae = float(np.abs(y - x).mean()) if len(x) else float("nan")
    bias = float((y - x).mean()) if len(x) else float("nan")
    if len(x) < 3 or x.var() == 0 or y.var() == 0:
        return Agreement(len(x), float("nan"), float("nan"), float("nan"), mae, bias)
    covariance = float(((x - x.mean()) * (y - y.mean())).mean())
    r = covariance / float(np.sqrt(x.var() * y.var()))
    ccc = 2 * covariance / float(x.var() + y.var() + (x.mean() - y.mean()) ** 2)
    return Agreement(len(x), r, ccc, covariance / float(x.var()), mae, bias)
