"""What a cohort covers, in words."""

from typing import TYPE_CHECKING

import numpy as np

from medgen.cohort.given import Fixed, Given, GivenMap, Range, levels_of
from medgen.cohort.marginal import Marginal

if TYPE_CHECKING:
    from medgen.cohort.joint import Joint


def covers(joint: "Joint", given: GivenMap) -> str | None:
    """None where the cohort covers each single thing asked for; else a sentence with the cohort's range."""
    for name, asked in given.items():
        c, m = joint.schema[name], joint.marginals.get(name)
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
