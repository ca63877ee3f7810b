"""Precision, recall, density and coverage: whether samples look real, and whether they reach all that is real."""

from dataclasses import dataclass

import numpy as np
from scipy.spatial.distance import cdist


@dataclass(frozen=True, eq=False)
class Prdc:
    """The four figures, each as the values whose mean it is.

    Attributes:
        precision: (m,) per sample: it lies in the ball of some real case.
        recall: (n,) per real case: it lies in the ball of some sample.
        density: (m,) per sample: real balls it lies in, divided by k; 1 is usual, more is possible.
        coverage: (n,) per real case: some sample lies in its ball.
    """

    precision: np.ndarray
    recall: np.ndarray
    density: np.ndarray
    coverage: np.ndarray

    def means(self) -> dict[str, float]:
        """The four figures."""
        return {name: float(getattr(self, name).mean()) for name in ("precision", "recall", "density", "coverage")}


def prdc(real: np.ndarray, made: np.ndarray, neighbours: int = 5) -> Prdc:
    """Compare samples with real cases in a feature space.

    The ball of a point reaches to its ``neighbours``-th nearest point of its own set.

    Args:
        real: (n, d) features of real cases, n above ``neighbours``.
        made: (m, d) features of samples, m above ``neighbours``.
        neighbours: k.

    Reference:
        Kynkäänniemi et al. (2019), arXiv:1904.06991, for precision and recall; Naeem et al. (2020),
        arXiv:2002.09797, for density and coverage.
    """
    assert min(len(real), len(made)) > neighbours >= 1, f"{neighbours} neighbours of {len(real)} and {len(made)} points"
    between = cdist(real, made)
    in_real = between <= _radii(real, neighbours)[:, None]
    in_made = between <= _radii(made, neighbours)[None, :]
    return Prdc(
        precision=in_real.any(axis=0),
        recall=in_made.any(axis=1),
        density=in_real.sum(axis=0) / neighbours,
        coverage=in_real.any(axis=1),
    )


def _radii(points: np.ndarray, neighbours: int) -> np.ndarray:
    """Distance of each point to its k-th nearest other point."""
    # The point itself, at distance 0, is the first of its row.
    return np.partition(cdist(points, points), neighbours, axis=1)[:, neighbours]
