"""How a score is spread over real cases, in five plain numbers, and the interval in which a new real case lies."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.stats import t as student_t

from medgen.errors import InputError

LEAST = 3
"""Cases below which nothing is said of a score."""


@dataclass(frozen=True)
class Law:
    """A score over the cohort's training cases.

    Attributes:
        n: cases that have the score.
        mean: over them.
        std: their standard deviation (n - 1).
        minimum: the least.
        maximum: the largest.
    """

    n: int
    mean: float
    std: float
    minimum: float
    maximum: float

    @staticmethod
    def of(values: Sequence[float]) -> "Law":
        """The law of at least one value."""
        a = np.asarray(values, dtype=np.float64)
        std = float(a.std(ddof=1)) if len(a) > 1 else 0.0
        return Law(len(a), float(a.mean()), std, float(a.min()), float(a.max()))

    def bounds(self, level: float) -> tuple[float, float]:
        """The interval outside of which a new real case lies with the chance ``level``, at most about.

        It is the prediction interval of a normal law, widened to what the cohort has itself: scores may be skewed.

        Reference:
            Hahn and Meeker (1991), "Statistical Intervals", section 4.7.
        """
        if self.n < LEAST:
            return -math.inf, math.inf
        half = float(student_t.isf(level / 2, self.n - 1)) * self.std * math.sqrt(1 + 1 / self.n)
        return min(self.minimum, self.mean - half), max(self.maximum, self.mean + half)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON, rounded to six digits."""
        return {key: float(f"{value:.6g}") if key != "n" else value for key, value in asdict(self).items()}


def fit(rows: Iterable[Mapping[str, float]]) -> dict[str, Law]:
    """The law of each score over the cases that have it."""
    columns: dict[str, list[float]] = {}
    for row in rows:
        for name, value in row.items():
            columns.setdefault(name, []).append(value)
    return {name: Law.of(values) for name, values in sorted(columns.items())}


def outside(scores: Mapping[str, float], laws: Mapping[str, Law], level: float) -> dict[str, str]:
    """Score -> how it leaves the cohort, for those that do; ``level`` is shared out over all scores that are known."""
    known = [name for name in scores if name in laws]
    faults = {}
    for name in known:
        low, high = laws[name].bounds(level / len(known))
        if not low - slack(low) <= scores[name] <= high + slack(high):
            faults[name] = f"{name} is {scores[name]:.4g}, the cohort's lies between {low:.4g} and {high:.4g}"
    return faults


def check_within(kind: str, option: str, value: float, low: float, high: float = math.inf) -> None:
    """Refuse an option's value outside of its range.

    Raises:
        InputError: naming gate, option and range.
    """
    if not low <= value <= high:
        reach = f"{low:g} or more" if math.isinf(high) else f"between {low:g} and {high:g}"
        raise InputError(f"gate '{kind}': option {option} is {reach}, not {value:g}")


def check_level(kind: str, level: float) -> None:
    """Refuse a chance of rejecting a real case that is none: at 0 nothing is rejected, and half is a coin.

    Raises:
        InputError: naming the gate.
    """
    if not 0 < level < 0.5:
        raise InputError(
            f"gate '{kind}': option level is the chance of rejecting a real case, above 0 and below 0.5, "
            f"such as 0.001, not {level:g}"
        )


def slack(bound: float) -> float:
    """What rounding to six digits may have moved a bound by."""
    return 1e-5 * abs(bound) + 1e-9 if math.isfinite(bound) else 0.0
