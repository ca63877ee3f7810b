"""The distribution of one numeric column, held as a few averaged quantiles, and its normal scores.

Privacy: a knot is the mean of at least three neighbouring patients' values (microaggregation), at most 31 of them, so
no knot but the two ends is one patient's value (below six patients even that cannot hold). The ends are the cohort's
smallest and largest value, which the covariate schema states anyway.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from scipy.special import ndtr, ndtri

MAX_WINDOWS = 31
MIN_PER_WINDOW = 3
_MAX_DECIMALS = 3
_MAX_SCORE = 5.0
_TINY = 1e-12


@dataclass(frozen=True)
class Marginal:
    """A quantile function, piecewise linear in the normal score (of a periodic column: in the probability).

    A line in the score is a normal distribution, so that few knots hold a tail that is close to one.

    Attributes:
        u: (K,) probabilities, not decreasing; below the first and above the last, draws are the ends of the range.
        q: (K,) values at them, not decreasing; of a periodic column, distances from ``origin``.
        n: patients behind it.
        decimals: draws are rounded to it, as the cohort's values are (ages in whole years); None: not rounded.
        origin: where a periodic column is cut open: the end of its widest gap.
        period: of a periodic column.
    """

    u: np.ndarray
    q: np.ndarray
    n: int
    decimals: int | None = None
    origin: float = 0.0
    period: float | None = None

    def unwrap(self, x: np.ndarray) -> np.ndarray:
        """Distance from the origin along the circle; of a column that is not periodic, the value itself."""
        return np.mod(np.asarray(x, float) - self.origin, self.period) if self.period else np.asarray(x, float)

    def quantile(self, u: np.ndarray) -> np.ndarray:
        """Values at probabilities."""
        x = np.interp(self._axis(u), self._axis(self.u), self.q)
        if self.period:
            x = np.mod(x + self.origin, self.period)
        return x if self.decimals is None else np.round(x, self.decimals)

    def _axis(self, u: np.ndarray) -> np.ndarray:
        """What interpolation is linear in."""
        return np.asarray(u, float) if self.period else ndtri(np.clip(u, _TINY, 1 - _TINY))

    def position(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Interval of probabilities that each value takes up: a point, or wider where patients share the value."""
        y, t, last = self.unwrap(x), self._axis(self.u), len(self.q) - 1
        left, right = np.searchsorted(self.q, y, "left"), np.searchsorted(self.q, y, "right")
        a, b = np.clip(left - 1, 0, last), np.clip(left, 0, last)
        gap = np.where(self.q[b] > self.q[a], self.q[b] - self.q[a], 1.0)
        between = t[a] + (t[b] - t[a]) * np.clip((y - self.q[a]) / gap, 0, 1)
        point = between if self.period else ndtr(between)
        shared = right - left > 1
        low = np.where(shared, np.where(left == 0, 0.0, self.u[b]), point)
        high = np.where(shared, np.where(right > last, 1.0, self.u[np.clip(right - 1, 0, last)]), point)
        return low, high

    def score(self, x: np.ndarray) -> np.ndarray:
        """Normal scores: the mean of a standard normal over the interval that the value takes up.

        Beyond the cohort's range the score goes on with one unit a standard deviation, so that a forced request
        leans on the column's dependences as far as they are known.
        """
        low, high = self.position(x)
        edge = 0.5 / self.n
        middle = np.clip((low + high) / 2, edge, 1 - edge)
        width = high - low
        z = ndtri(middle)
        wide = width > 1e-9
        mean = (_density(ndtri(low)) - _density(ndtri(high))) / np.where(wide, width, 1.0)
        z = np.where(wide, mean, z)
        y = self.unwrap(x)
        if self.scale > 0:
            z = z + (np.maximum(y - self.q[-1], 0) + np.minimum(y - self.q[0], 0)) / self.scale
        return np.clip(z, -_MAX_SCORE, _MAX_SCORE)

    def angle(self, x: np.ndarray) -> np.ndarray:
        """Of a periodic column: (..., 2) a point on the circle of radius sqrt(2), uniform over the cohort."""
        low, high = self.position(x)
        return on_circle(np.pi * (low + high))

    @cached_property
    def scale(self) -> float:
        """Standard deviation of the column."""
        return float(np.std(np.interp(self._axis(_GRID), self._axis(self.u), self.q)))

    @cached_property
    def retained(self) -> float:
        """Share of a standard normal's variance that survives in the scores: below 1 where patients share values."""
        edge = 0.5 / self.n
        whole = np.var(ndtri(np.clip(_GRID, edge, 1 - edge)))
        return float(np.var(self.score(self.quantile(_GRID))) / whole) if whole > 0 else 1.0

    @property
    def low(self) -> float:
        """Smallest value (of a periodic column: where its widest gap ends)."""
        return float(self.quantile(np.array(0.0)))

    @property
    def high(self) -> float:
        """Largest value (of a periodic column: where its widest gap begins)."""
        return float(self.quantile(np.array(1.0)))

    def to_json(self) -> dict[str, Any]:
        """As plain JSON."""
        return {
            "u": self.u.tolist(),
            "q": self.q.tolist(),
            "n": self.n,
            "decimals": self.decimals,
            "origin": self.origin,
            "period": self.period,
        }

    @staticmethod
    def from_json(value: dict[str, Any]) -> "Marginal":
        """From what :meth:`to_json` gave."""
        return Marginal(**{**value, "u": np.array(value["u"], float), "q": np.array(value["q"], float)})


_GRID = (np.arange(1024) + 0.5) / 1024


def _density(z: np.ndarray) -> np.ndarray:
    """Of a standard normal."""
    return np.exp(-0.5 * z**2) / np.sqrt(2 * np.pi)


def on_circle(phi: np.ndarray) -> np.ndarray:
    """(..., 2) points of radius sqrt(2), so that each coordinate of a uniform angle has unit variance."""
    return np.sqrt(2) * np.stack([np.cos(phi), np.sin(phi)], axis=-1)


def fit(values: Sequence[float] | np.ndarray, n: int | None = None, period: float | None = None) -> Marginal:
    """Fit a continuous or periodic column.

    Args:
        values: at least one; may repeat each patient (with imputed values beside), equally often.
        n: patients behind the values; their number by default.
        period: of a periodic column.
    """
    x = np.asarray(values, float)
    n = len(x) if n is None else n
    decimals = next((d for d in range(_MAX_DECIMALS + 1) if np.array_equal(np.round(x, d), x)), None)
    origin = 0.0
    if period:
        x = np.mod(x, period)
        ring = np.unique(x)
        origin = float(ring[np.argmax(np.diff(ring, prepend=ring[-1] - period))])
        x = np.mod(x - origin, period)
    x = np.sort(x)
    windows = np.array_split(x, min(MAX_WINDOWS, max(1, n // MIN_PER_WINDOW)))
    edges = np.cumsum([0, *map(len, windows)]) / len(x)
    if period:
        u = np.concatenate([[0.0], (edges[1:] + edges[:-1]) / 2, [1.0]])
    else:  # a window's mean stands at the mean of a standard normal over the window
        u = ndtr(-np.diff(_density(ndtri(edges))) / np.diff(edges))
        u = np.concatenate([[min(0.5 / n, u[0])], u, [max(1 - 0.5 / n, u[-1])]])
    q = np.array([x[0], *(w[0] if w[0] == w[-1] else w.mean() for w in windows), x[-1]])
    return Marginal(u, np.maximum.accumulate(q), n, decimals, origin, period)


def fit_ordinal(indices: Sequence[float] | np.ndarray, levels: int, n: int | None = None) -> Marginal:
    """Fit an ordinal column given as level indices: a quantile function of steps."""
    x = np.asarray(indices, int)
    share = np.cumsum(np.bincount(x, minlength=levels)) / len(x)
    share[-1] = 1.0
    seen = np.flatnonzero(np.bincount(x, minlength=levels))
    u = np.stack([np.concatenate([[0.0], share[seen][:-1]]), share[seen]], axis=1).ravel()
    return Marginal(u, np.repeat(seen.astype(float), 2), len(x) if n is None else n, 0)
