"""Several scores taken together: how far a case lies from the cohort in the scores' own correlations."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.stats import f as fisher

SHRINKAGE = 0.1
"""Of the correlations towards none: small cohorts do not know them well."""
_PER_SCORE = 4


@dataclass(frozen=True)
class Cloud:
    """Some scores over the cohort's training cases.

    Attributes:
        names: of the scores.
        n: cases that have them all.
        mean: of each.
        std: of each.
        correlation: between them, shrunk.
        far: squared distance within which most cases lie from all others.
    """

    names: tuple[str, ...]
    n: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    correlation: tuple[tuple[float, ...], ...]
    far: float

    @staticmethod
    def of(names: Sequence[str], rows: Sequence[Mapping[str, float]], *, kept: float = 0.99) -> "Cloud | None":
        """The cloud of the cases that have all scores; None where they are too few or a score never varies.

        Args:
            names: of the scores.
            rows: scores of each case.
            kept: share of the cases that ``far`` takes in.
        """
        points = np.array([[row[n] for n in names] for row in rows if all(n in row for n in names)], dtype=np.float64)
        if len(points) < _PER_SCORE * len(names) or (points.std(axis=0) == 0).any():
            return None
        mean, std, correlation = _moments(points)
        plain = [tuple(float(f"{v:.6g}") for v in line) for line in (mean, std, *correlation)]
        others = [np.delete(points, i, axis=0) for i in range(len(points))]
        # A score that all cases but one share says nothing of how far that one lies.
        known = [(p, o) for p, o in zip(points, others, strict=True) if (np.ptp(o, axis=0) > 0).all()]
        distances = [_squared(p, *_moments(o)) for p, o in known]
        return Cloud(
            names=tuple(names),
            n=len(points),
            mean=plain[0],
            std=plain[1],
            correlation=tuple(plain[2:]),
            far=float(f"{np.quantile(distances, kept):.6g}"),
        )

    def distance(self, scores: Mapping[str, float]) -> float | None:
        """Mahalanobis distance of a case; None where it lacks a score."""
        if any(n not in scores for n in self.names):
            return None
        point = np.array([scores[n] for n in self.names])
        return math.sqrt(_squared(point, np.array(self.mean), np.array(self.std), np.array(self.correlation)))

    def bound(self, level: float) -> float:
        """The distance beyond which a new real case lies with the chance ``level``, at most about.

        That of a normal law, or where the cohort has heavier tails, what most of its own cases keep.

        Reference:
            Hotelling (1931), "The generalization of Student's ratio", for a new case.
        """
        n, p = self.n, len(self.names)
        normal = p * (n - 1) * (n + 1) / (n * (n - p)) * float(fisher.isf(level, p, n - p))
        return math.sqrt(max(normal, self.far))

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return asdict(self)

    @staticmethod
    def from_json(raw: Mapping[str, Any]) -> "Cloud":
        """From what :meth:`to_json` gave."""
        lists = {key: tuple(raw[key]) for key in ("names", "mean", "std")}
        correlation = tuple(tuple(line) for line in raw["correlation"])
        return Cloud(n=int(raw["n"]), far=float(raw["far"]), correlation=correlation, **lists)


def _moments(points: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    mean, std = points.mean(axis=0), points.std(axis=0, ddof=1)
    correlation = np.atleast_2d(np.corrcoef(points.T))
    return mean, std, (1 - SHRINKAGE) * correlation + SHRINKAGE * np.eye(points.shape[1])


def _squared(point: np.ndarray, mean: np.ndarray, std: np.ndarray, correlation: np.ndarray) -> float:
    z = (point - mean) / std
    return float(z @ np.linalg.solve(correlation, z))
