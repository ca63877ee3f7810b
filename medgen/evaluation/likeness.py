"""How near samples come to a cohort, as distances between distributions of features, with intervals."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from medgen.evaluation.reference import Measured, Reference
from medgen.measure.bootstrap import percentile_interval
from medgen.measure.frechet import frechet
from medgen.measure.mmd import median_bandwidth, mmd2, polynomial, rbf
from medgen.measure.prdc import prdc


def likeness(
    reference: Reference, made: Measured, *, neighbours: int = 5, resamples: int = 500, seed: int = 0
) -> dict[str, Any]:
    """Floor, samples and excess at equal numbers.

    Args:
        reference: the cohort.
        made: its samples.
        neighbours: of precision, recall, density and coverage.
        resamples: bootstrap draws.
        seed: of them.

    Returns:
        See :func:`medgen.evaluation.fidelity.fidelity`: ``n``, ``floor``, ``samples`` and ``excess``.
    """
    project = reference.projection
    real, train, ours = (project(m.features) for m in (reference.held_out, reference.train, made))
    # A segmenter tells cases that it has seen from others: the floor is best that of cases that it has not.
    floor = train[reference.floor_rows]
    n = min(map(len, (real, floor, ours)))
    bandwidth = median_bandwidth(train)
    sides = {name: _side(bandwidth, real, other) for name, other in (("floor", floor), ("samples", ours))}
    rng = np.random.default_rng([seed, 1])
    values: dict[str, list[dict[str, float]]] = {name: [] for name in (*sides, "excess")}
    replicates: dict[str, list[dict[str, float]]] = {name: [] for name in (*sides, "excess")}
    for _ in range(resamples):
        # One draw of the held-out cases serves both sides: their excess does not suffer from its chance.
        once = rng.permutation(len(real))[:n]
        again = rng.choice(len(real), n)
        for name, side in sides.items():
            rows = rng.permutation(len(side.other))[:n]
            items = prdc(real[once], side.other[rows], min(neighbours, n - 1))
            values[name].append({**side.distances(once, rows), **items.means()})
            resampled = {k: float(rng.choice(v, n).mean()) for k, v in vars(items).items()}
            replicates[name].append({**side.distances(again, rng.choice(len(side.other), n)), **resampled})
        for found in (values, replicates):
            above = {k: found["samples"][-1][k] - found["floor"][-1][k] for k in ("mmd", "mmd_poly", "frechet")}
            found["excess"].append(above)
    figures: dict[str, Any] = {"n": n}
    for name, draws in values.items():
        figures[name] = {}
        for key in draws[0]:
            value = float(np.mean([d[key] for d in draws]))
            spread = np.array([r[key] for r in replicates[name]])
            figures[name][key] = percentile_interval(value, spread, recentre=True).to_json()
    return figures


def nearer(
    reference: Reference, first: Measured, second: Measured, *, resamples: int = 500, seed: int = 0
) -> dict[str, Any]:
    """By how much one set of samples is nearer to the held-out cases than another, at equal numbers.

    Two intervals that overlap do not say that the sets are alike: both hold the chance of which real cases there were
    to compare with. Here one draw of these serves both sets, and the floor, which both have, falls out.

    Args:
        reference: the cohort.
        first: samples.
        second: others.
        resamples: bootstrap draws, of held-out cases and of each set.
        seed: of them.

    Returns:
        ``mmd``, ``mmd_poly`` and ``frechet``: the second set's distance less the first's, ``{"value", "low", "high"}``.
    """
    project = reference.projection
    real, train, *both = (project(m.features) for m in (reference.held_out, reference.train, first, second))
    bandwidth = median_bandwidth(train)
    sides = [_side(bandwidth, real, other) for other in both]
    n = min(map(len, (real, *both)))
    rng = np.random.default_rng([seed, 2])
    values: list[dict[str, float]] = []
    replicates: list[dict[str, float]] = []
    for _ in range(resamples):
        once, again = rng.permutation(len(real))[:n], rng.choice(len(real), n)
        for found, rows in (
            (values, [(once, rng.permutation(len(side.other))[:n]) for side in sides]),
            (replicates, [(again, rng.choice(len(side.other), n)) for side in sides]),
        ):
            mine, theirs = (side.distances(*of) for side, of in zip(sides, rows, strict=True))
            found.append({key: theirs[key] - mine[key] for key in mine})
    return {
        key: percentile_interval(
            float(np.mean([d[key] for d in values])), np.array([d[key] for d in replicates]), recentre=True
        ).to_json()
        for key in values[0]
    }


@dataclass(frozen=True, eq=False)
class _Side:
    """Real cases against others, with the kernel matrices of each MMD."""

    real: np.ndarray
    other: np.ndarray
    kernels: Mapping[str, tuple[np.ndarray, np.ndarray, np.ndarray]]

    def distances(self, rows: np.ndarray, others: np.ndarray) -> dict[str, float]:
        found = {name: mmd2(*matrices, rows, others) for name, matrices in self.kernels.items()}
        return {**found, "frechet": frechet(self.real[rows], self.other[others])}


def _kernels(
    kernel: Callable[[np.ndarray, np.ndarray], np.ndarray], x: np.ndarray, y: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return kernel(x, x), kernel(y, y), kernel(x, y)


def _side(bandwidth: float, real: np.ndarray, other: np.ndarray) -> _Side:
    gaussian = partial(rbf, bandwidth=bandwidth)
    return _Side(real, other, {"mmd": _kernels(gaussian, real, other), "mmd_poly": _kernels(polynomial, real, other)})
