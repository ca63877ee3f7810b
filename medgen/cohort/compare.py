"""How close draws from the fitted joint come to the cohort's own distribution."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
from scipy.stats import ks_2samp, spearmanr

from medgen.cohort.joint import Joint
from medgen.cohort.schema import Covariate, Value

_MIN_PAIRS = 5


def compare(joint: Joint, rows: Sequence[Mapping[str, Value]], n: int = 10_000, seed: int = 0) -> dict[str, Any]:
    """Compare unconditional draws with rows of the cohort.

    Entries that are missing in the cohort are left out of its side, so that a gap that depends on other columns shows
    here although the joint has rightly filled it.

    Args:
        joint: fitted.
        rows: of the cohort, the same as in the fit or held out.
        n: draws.
        seed: of the draws.

    Returns:
        ``ks`` by numeric column with ``ks_max`` and ``ks_95``, what sampling alone exceeds in 5% of columns without
        gaps; ``spearman`` by pair of numeric columns (difference of the correlations) with ``spearman_max``;
        ``levels`` by level column (largest difference of a level's frequency) with ``levels_max``; ``shift`` by level
        and numeric column (largest difference of a level's mean, in standard deviations, levels with at least five
        rows) with ``shift_max``. A maximum over nothing is None.
    """
    drawn = joint.many(np.random.default_rng(seed), n)
    columns = [c for c in joint.schema.covariates if c.name in joint.covered]
    real = {c.name: _column(c, rows) for c in columns}
    fake = {c.name: _column(c, drawn) for c in columns}
    numeric = [c.name for c in columns if c.kind != "categorical"]
    level = [c for c in columns if not c.is_numeric]
    ks = {a: float(ks_2samp(_seen(real[a]), fake[a]).statistic) for a in numeric}
    spearman = {}
    for a, b in combinations(numeric, 2):
        both = ~np.isnan(real[a]) & ~np.isnan(real[b])
        if both.sum() >= _MIN_PAIRS and all(np.ptp(x[both]) > 0 for x in (real[a], real[b])):
            gap = spearmanr(fake[a], fake[b]).statistic - spearmanr(real[a][both], real[b][both]).statistic
            spearman[f"{a}~{b}"] = float(abs(gap))
    levels, shift = {}, {}
    for c in level:
        seen = _seen(real[c.name])
        levels[c.name] = max(abs(float((seen == k).mean() - (fake[c.name] == k).mean())) for k in range(len(c.levels)))
        for b in numeric:
            gaps = [_mean_gap(real, fake, c.name, k, b) for k in range(len(c.levels))]
            if b != c.name and any(g is not None for g in gaps):
                shift[f"{c.name}~{b}"] = max(g for g in gaps if g is not None)
    result: dict[str, Any] = {
        "n_cohort": len(rows),
        "n_draws": n,
        "ks_95": float(1.36 * np.sqrt(1 / len(rows) + 1 / n)),
    }
    for name, figures in {"ks": ks, "spearman": spearman, "levels": levels, "shift": shift}.items():
        result |= {name: figures, f"{name}_max": max(figures.values(), default=None)}
    return result


def _column(c: Covariate, rows: Sequence[Mapping[str, Value]]) -> np.ndarray:
    cells = [row.get(c.name) for row in rows]
    return np.array([np.nan if v is None else float(v) if c.is_numeric else c.levels.index(str(v)) for v in cells])


def _seen(x: np.ndarray) -> np.ndarray:
    return x[~np.isnan(x)]


def _mean_gap(
    real: Mapping[str, np.ndarray], fake: Mapping[str, np.ndarray], level: str, k: int, numeric: str
) -> float | None:
    a = _seen(real[numeric][real[level] == k])
    b = fake[numeric][fake[level] == k]
    sd = _seen(real[numeric]).std()
    return float(abs(a.mean() - b.mean()) / sd) if len(a) >= _MIN_PAIRS and len(b) and sd > 0 else None
