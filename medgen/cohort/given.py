"""What a covariate is asked to be: one value, a range, or one of some levels."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from medgen.cohort.schema import Covariate


@dataclass(frozen=True)
class Fixed:
    """Exactly this number or level."""

    value: float | str


@dataclass(frozen=True)
class Range:
    """A number from ``low`` to ``high``, both included; None leaves a side open.

    ``below`` excludes ``high`` itself, which keeps neighbouring bins apart. On a periodic column ``low > high`` wraps
    around (22 to 4 o'clock).
    """

    low: float | None = None
    high: float | None = None
    below: bool = False

    def holds(self, value: float | np.ndarray) -> Any:
        """Whether a number lies in the range; for an array, which of its numbers do."""
        over = np.asarray(value) >= (-np.inf if self.low is None else self.low)
        high = np.inf if self.high is None else self.high
        under = np.asarray(value) < high if self.below else np.asarray(value) <= high
        wraps = self.low is not None and self.high is not None and self.low > self.high
        return over | under if wraps else over & under


@dataclass(frozen=True)
class OneOf:
    """Any of these levels."""

    levels: tuple[str, ...]


Given = Fixed | Range | OneOf
GivenMap = Mapping[str, Given]


def levels_of(given: Given, covariate: Covariate) -> tuple[str, ...]:
    """The levels that a request leaves possible for a categorical or ordinal column."""
    if isinstance(given, Fixed):
        return (str(given.value),)
    return given.levels if isinstance(given, OneOf) else covariate.levels
