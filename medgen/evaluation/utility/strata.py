"""Held-out cases in groups, by one column of the cohort."""

import difflib
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from medgen.errors import InputError
from medgen.store.prepared import Prepared

_PARTS = 3
_LEAST = 2  # cases a part


def strata_of(store: Prepared, cases: Sequence[int], column: str) -> tuple[str, ...]:
    """The stratum of each case: a level of the column, or one of the three parts that its tertiles make.

    Too few cases for tertiles are cut at the median, or not at all.

    Args:
        store: the prepared cohort, volumes of its labels among the columns.
        cases: positions in it.
        column: its name.

    Raises:
        InputError: no such column, or one of texts.
    """
    if column not in store.schema:
        near = difflib.get_close_matches(column, store.schema.names, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"it has: {', '.join(store.schema.names) or 'none'}"
        raise InputError(f"utility.strata: the cohort has no column '{column}'; {hint}")
    about = store.schema[column]
    if about.is_text:
        raise InputError(f"utility.strata: '{column}' holds texts; name a column of numbers or levels")
    values = [store.cases[i].covariates.get(column) for i in cases]
    if not about.is_numeric:
        return tuple(f"{column} unknown" if v is None else f"{column} {v}" for v in values)
    known = np.array([float(v) for v in values if v is not None])
    parts = min(_PARTS, len(known) // _LEAST)
    cuts = np.unique(np.quantile(known, [k / parts for k in range(1, parts)])) if parts > 1 else np.array([])
    unit = f" {about.unit}" if about.unit else ""
    names = _names(column, [f"{cut:.3g}" for cut in cuts], unit)
    return tuple(f"{column} unknown" if v is None else names[int(np.searchsorted(cuts, v, "right"))] for v in values)


def _names(column: str, cuts: Sequence[str], unit: str) -> list[str]:
    if not cuts:
        return [f"{column} any"]
    between = [f"{column} {low} to {high}{unit}" for low, high in pairwise(cuts)]
    return [f"{column} below {cuts[0]}{unit}", *between, f"{column} from {cuts[-1]}{unit}"]
