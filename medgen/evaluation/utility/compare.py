"""Intervals over held-out cases and seeds, of one arm and of the difference between two."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from medgen.measure.bootstrap import Interval, nanmean, percentile_interval

METRICS = ("dice", "hd95_mm", "volume_error_ml", "volume_error_percent")


@dataclass(frozen=True, eq=False)
class Scores:
    """Figures of one setting.

    Attributes:
        values: by metric (S, N, L) over seeds, held-out cases and labels; NaN where undefined.
        seeds: (S,) in order.
    """

    values: Mapping[str, np.ndarray]
    seeds: tuple[int, ...]

    def mean(self, metric: str) -> np.ndarray:
        """(S, N) mean over the labels that are defined."""
        return nanmean(self.values[metric])


def scores(results: Sequence[Mapping[str, Any]], names: Sequence[str]) -> Scores:
    """From the results of one setting, a seed each.

    Args:
        results: of :func:`medgen.evaluation.utility.run.run_trial`.
        names: of the labels.
    """
    results = sorted(results, key=lambda r: int(r["trial"]["seed"]))

    def table(key: str) -> np.ndarray:
        rows = [[[row[key][name] for name in names] for row in result["cases"]] for result in results]
        return np.array(rows, dtype=np.float64)

    true, found = table("true_ml"), table("found_ml")
    off = np.abs(found - true)
    with np.errstate(divide="ignore", invalid="ignore"):
        percent = np.where(true > 0, 100 * off / true, np.nan)
    values = {"dice": table("dice"), "hd95_mm": table("hd95_mm"), "volume_error_ml": off}
    return Scores({**values, "volume_error_percent": percent}, tuple(int(r["trial"]["seed"]) for r in results))


def two_way_bootstrap(
    values: np.ndarray, groups: Sequence[str], *, resamples: int = 2000, level: float = 0.95, seed: int = 0
) -> Interval:
    """Percentile bootstrap of a mean over seeds and cases, both drawn with replacement.

    Subjects are drawn, and bring all of their cases; seeds are drawn beside them. So the interval speaks of other
    patients and of other trainings. For a difference, give the differences: case and seed then stay paired. With one
    seed it speaks of patients alone.

    Args:
        values: (S, N) of seeds and cases; NaN is left out.
        groups: (N,) subject of each case.
        resamples: draws.
        level: share of the replicates inside the interval.
        seed: of the draws.

    Reference:
        Owen (2007), The pigeonhole bootstrap, Annals of Applied Statistics 1(2).
    """
    finite = np.isfinite(values)
    if not finite.any():
        return Interval(float("nan"), float("nan"), float("nan"))
    rng = np.random.default_rng(seed)
    subjects, which = np.unique(np.asarray(groups), return_inverse=True)
    counts = [rng.multinomial(n, np.full(n, 1 / n), size=resamples) for n in (len(values), len(subjects))]
    by_seed, by_case = counts[0].astype(np.float64), counts[1][:, which].astype(np.float64)
    total = np.einsum("rs,sn,rn->r", by_seed, np.where(finite, values, 0.0), by_case, optimize=True)
    weight = np.einsum("rs,sn,rn->r", by_seed, finite.astype(np.float64), by_case, optimize=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        replicates = total / weight
    return percentile_interval(float(values[finite].mean()), replicates, level=level)


def figures(found: Scores, groups: Sequence[str], strata: Sequence[str], names: Sequence[str]) -> dict[str, Any]:
    """Every metric with its interval: over all labels, by label and, of Dice, by stratum.

    Args:
        found: of one arm.
        groups: (N,) subjects.
        strata: (N,) names, empty for no strata.
        names: of the labels.
    """
    said: dict[str, Any] = {m: two_way_bootstrap(found.mean(m), groups).to_json() for m in METRICS}
    said["by_label"] = {
        name: {m: two_way_bootstrap(found.values[m][..., k], groups).to_json() for m in METRICS}
        for k, name in enumerate(names)
    }
    said["by_stratum"] = _by_stratum(found.mean("dice"), groups, strata)
    said["dice_by_seed"] = {str(s): _number(row) for s, row in zip(found.seeds, found.mean("dice"), strict=True)}
    return said


def difference(
    ours: Scores, theirs: Scores, groups: Sequence[str], strata: Sequence[str], names: Sequence[str]
) -> dict[str, Any]:
    """The paired difference, ours less theirs, over the seeds that both have; see :func:`figures`."""
    seeds = [s for s in ours.seeds if s in theirs.seeds]
    pairs = [(ours.seeds.index(s), theirs.seeds.index(s)) for s in seeds]
    left, right = [p[0] for p in pairs], [p[1] for p in pairs]
    of = {m: ours.values[m][left] - theirs.values[m][right] for m in METRICS}
    # Means over labels first. What is undefined is so on both sides: the case itself lacks the label.
    means = {m: ours.mean(m)[left] - theirs.mean(m)[right] for m in METRICS}
    said: dict[str, Any] = {m: two_way_bootstrap(means[m], groups).to_json() for m in METRICS}
    said["by_label"] = {
        name: {m: two_way_bootstrap(of[m][..., k], groups).to_json() for m in METRICS} for k, name in enumerate(names)
    }
    said["by_stratum"] = _by_stratum(means["dice"], groups, strata)
    return {**said, "seeds": len(seeds)}


def _by_stratum(values: np.ndarray, groups: Sequence[str], strata: Sequence[str]) -> dict[str, Any]:
    found = {}
    for name in dict.fromkeys(strata):
        chosen = [i for i, own in enumerate(strata) if own == name]
        interval = two_way_bootstrap(values[:, chosen], [groups[i] for i in chosen])
        found[name] = {"cases": len(chosen), **interval.to_json()}
    return dict(sorted(found.items()))


def _number(values: np.ndarray) -> float | None:
    mean = float(nanmean(values))
    return round(mean, 6) if np.isfinite(mean) else None
