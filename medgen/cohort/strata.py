"""Strata of the joint: bins of numeric columns by levels of the others, and which of them a cohort covers."""

import re
from collections.abc import Sequence

import numpy as np

from medgen.cohort.given import Fixed, Given, GivenMap, Range
from medgen.cohort.joint import Joint
from medgen.cohort.schema import Covariate, Value
from medgen.cohort.where import known
from medgen.errors import InputError

_QUARTILES = (0.25, 0.5, 0.75)
_MAX_BINS = 1000

Axis = tuple[Covariate, np.ndarray | None]  # a covariate and its bin edges; None: its levels


def real_axes(joint: Joint, rows: Sequence[dict[str, Value]]) -> list[Axis]:
    """Every column of levels, and the first continuous one cut at the quartiles of ``rows`` (draws of the joint)."""
    axes: list[Axis] = [(c, None) for c in joint.schema.covariates if not c.is_numeric and c.name in joint.covered]
    numeric = next((c for c in joint.schema.covariates if c.kind == "continuous" and c.name in joint.covered), None)
    if numeric is not None:
        x = np.array([row[numeric.name] for row in rows], float)
        axes.append((numeric, np.unique([-np.inf, *np.quantile(x, _QUARTILES), np.inf])))
    return axes


def balance_axes(text: str, joint: Joint, rows: Sequence[dict[str, Value]]) -> list[Axis]:
    """Axes from words such as ``age:10y,sex``; bins are aligned on multiples of their width.

    Raises:
        InputError: unknown or repeated names, a width that is missing, not above 0, or in another unit.
    """
    axes: list[Axis] = []
    for item in text.split(","):
        name, colon, width_text = (part.strip() for part in item.partition(":"))
        c = known(name, joint.schema, "balance")
        if any(c.name == other.name for other, _ in axes):
            raise InputError(f"balance names '{name}' twice; give it once")
        if c.is_text:
            raise InputError(f"balance: '{name}' holds texts, which cannot be counted; leave it out")
        if c.name not in joint.covered:
            raise InputError(f"balance: the cohort has no value of '{name}'; leave it out")
        if not c.is_numeric:
            if colon:
                raise InputError(f"balance: '{name}' has levels and takes no width; write '{name}' alone")
            axes.append((c, None))
            continue
        found = re.fullmatch(r"(\d+\.?\d*|\.\d+)\s*([a-zA-Z]*)", width_text)
        width = float(found[1]) if found else 0.0
        if found is None or width <= 0:
            raise InputError(f"balance: '{name}' is a number and needs the width of its bins, for example {name}:10")
        if found[2] and c.unit and not c.unit.lower().startswith(found[2].lower()):
            raise InputError(f"balance: the width of '{name}' is in '{found[2]}', but the cohort has it in {c.unit}")
        x = np.array([row[name] for row in rows], float)
        if np.ptp(x) / width > _MAX_BINS:
            raise InputError(f"balance: bins of {width:g} cut '{name}' into more than {_MAX_BINS}; widen them")
        edges = np.arange(np.floor(x.min() / width), np.floor(x.max() / width) + 2) * width
        axes.append((c, edges))
    return axes


def strata(
    joint: Joint, given: GivenMap, axes: Sequence[Axis], rows: Sequence[dict[str, Value]], *, even: bool
) -> tuple[tuple[GivenMap, float], ...]:
    """Strata with their share of the draws, in a fixed order.

    A stratum counts as covered where the joint expects at least half a patient of a cohort of this size in it:
    balancing must not blow up what the smoothing alone makes possible.

    Args:
        joint: the cohort's.
        given: what the request says for all samples; axes that it fixes are left out.
        axes: columns to cut.
        rows: draws of the joint under ``given``.
        even: keep only covered strata.

    Raises:
        InputError: a periodic axis that the request narrows, or strata too fine for the cohort.
    """
    axes = [axis for axis in axes if not isinstance(given.get(axis[0].name), Fixed)]
    for c, _ in axes:
        if c.kind == "periodic" and c.name in given:
            raise InputError(f"'{c.name}' goes round, so it cannot be balanced and asked for as a range; drop one")
    keys: list[np.ndarray] = []
    for c, edges in axes:
        values = [row[c.name] for row in rows]
        keys.append(
            np.array([c.levels.index(str(v)) for v in values], int)
            if edges is None
            else np.clip(np.digitize(np.array(values, float), edges) - 1, 0, len(edges) - 2)
        )
    if not axes:
        return ()
    found, counts = np.unique(np.stack(keys, axis=1), axis=0, return_counts=True)
    keep = counts / counts.sum() * joint.n >= (0.5 if even else 0.0)
    if not keep.any():
        raise InputError(f"balance: the strata are too fine for a cohort of {joint.n} cases; widen the bins")
    result: list[tuple[GivenMap, float]] = []
    for key, count in zip(found[keep], counts[keep], strict=True):
        pairs = zip(axes, key, strict=True)
        added = {c.name: _cell(c, edges, int(k), given.get(c.name)) for (c, edges), k in pairs}
        result.append((added, float(count / counts[keep].sum())))
    return tuple(result)


def _cell(c: Covariate, edges: np.ndarray | None, k: int, given: Given | None) -> Given:
    """Level or bin k of an axis, cut to what the request already says."""
    if edges is None:
        return Fixed(c.levels[k])
    low, high, below = float(edges[k]), float(edges[k + 1]), True
    if isinstance(given, Range):
        low = low if given.low is None else max(low, given.low)
        if given.high is not None and given.high < high:
            high, below = given.high, given.below
    return Range(low if np.isfinite(low) else None, high if np.isfinite(high) else None, below)
