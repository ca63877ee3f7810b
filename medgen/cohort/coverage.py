"""What a cohort covers: column by column, and all that is asked taken together."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from scipy.stats import chi2

from medgen.cohort.given import Fixed, Given, GivenMap, Range, levels_of
from medgen.cohort.marginal import Marginal

UNLIKELY = 1e-3
"""Below this plausibility a request counts as extrapolation: of a thousand cases, one is as far out."""

if TYPE_CHECKING:
    from medgen.cohort.joint import Joint


def covers(joint: "Joint", given: GivenMap) -> str | None:
    """None where the cohort covers each single thing asked for; else a sentence with the cohort's range."""
    for name, asked in given.items():
        c, m = joint.schema[name], joint.marginals.get(name)
        if c.is_text:
            continue  # nothing is kept of the cohort's texts that a new one could be held against
        if name not in joint.covered:
            return f"the cohort has no value of '{name}'"
        if m is None or c.kind == "ordinal":
            seen = seen_levels(joint, name)
            if not set(levels_of(asked, c)) & set(seen):
                what = " or ".join(levels_of(asked, c))
                return f"the cohort has no case with {name}={what} (it has {', '.join(seen)})"
        elif not _meets(m, asked):
            unit = f" {c.unit}" if c.unit else ""
            return f"the cohort's {name} runs from {m.low:g} to {m.high:g}{unit}; {_said(asked)} lies outside it"
    return None


def outside(joint: "Joint", given: Mapping[str, Fixed]) -> tuple[str, ...]:
    """The columns whose value lies outside the cohort's range or levels."""
    return tuple(name for name, fixed in given.items() if covers(joint, {name: fixed}) is not None)


def plausibility(joint: "Joint", given: Mapping[str, Fixed]) -> float:
    """Share of cases like the cohort's that lie at least as far from its middle as what is asked, taken together.

    Each value may be ordinary while the cohort has nobody like all of them: a young brain with an old one's ventricles.
    The distance is Mahalanobis' in the joint's normal scores, over the numeric, ordinal and periodic columns that are
    asked for, from the nearest cell of levels that the request leaves possible; its square is chi-square distributed
    over the cohort. A cell that the cohort lacks is left to :func:`covers`.

    Args:
        joint: the cohort's.
        given: values asked for; columns that the joint does not model count for nothing.

    Returns:
        1 where nothing that has a distance is asked for.

    Reference:
        Mahalanobis 1936, On the generalised distance in statistics.
    """
    known, z = joint.scores_of({n: f.value for n, f in given.items() if n in joint.marginals})
    if not len(known):
        return 1.0
    means = joint.cell_means(given)[:, known]
    S = joint.location.covariance[np.ix_(known, known)]
    far = z - means
    squared = np.einsum("cd,cd->c", far, np.linalg.solve(S, far.T).T).min()
    return float(chi2.sf(squared, len(known)))


def seen_levels(joint: "Joint", name: str) -> tuple[str, ...]:
    """Levels of a categorical or ordinal column that the cohort has."""
    levels = joint.schema[name].levels
    if name in joint.marginals:
        return tuple(levels[i] for i in sorted({round(q) for q in joint.marginals[name].q}))
    if name in joint.loose:
        return tuple(v for v, p in zip(levels, joint.loose[name], strict=True) if p > 0)
    axis = joint.tabled.index(name)
    others = tuple(a for a in range(len(joint.tabled)) if a != axis)
    shares = joint.location.probabilities.sum(axis=others)
    return tuple(v for v, p in zip(levels, shares, strict=True) if p > 1e-9)


def _meets(m: Marginal, asked: Given) -> bool:
    """Whether a value lies in the cohort's range, or a range overlaps it."""
    if isinstance(asked, Range):
        low = m.low if asked.low is None else asked.low
        high = m.high if asked.high is None else asked.high
        if m.period:
            start, length = float(m.unwrap(np.array(low))), (high - low) % m.period
            return start <= m.q[-1] or start + length >= m.period
        return low <= m.high and high >= m.low and not (asked.below and high <= m.low)
    value = asked.value if isinstance(asked, Fixed) else asked.levels[0]
    return bool(m.unwrap(np.array(float(value))) <= m.q[-1]) if m.period else m.low <= float(value) <= m.high


def _said(asked: Given) -> str:
    if isinstance(asked, Range):
        low = "" if asked.low is None else f"{asked.low:g}"
        return f"{low}..{'' if asked.high is None else f'{asked.high:g}'}"
    return f"{asked.value:g}" if isinstance(asked, Fixed) and isinstance(asked.value, float) else str(asked)
