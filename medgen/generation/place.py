"""Which training case lends a sample its grid and intensities, and the native spacing that goes with it."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from medgen.cohort.requests import Row
from medgen.cohort.schema import SPACING_COLUMNS, Schema, Value
from medgen.prepare.grid import GeometryRecord
from medgen.sampling.noise import Key

_ALIKE_MM = 0.01


def record_of(records: Sequence[Mapping[str, Any]], row: Row, key: Key) -> int:
    """Number of the record that lends a sample its geometry: drawn by (seed, index).

    Where a native spacing is asked for, it is drawn from the records that come nearest to it.

    Args:
        records: geometry and intensity of the training cases.
        row: what is asked for.
        key: of the sample.
    """
    choice = np.arange(len(records))
    asked = [(axis, row.values[name]) for axis, name in enumerate(SPACING_COLUMNS) if name in row.asked]
    wanted = [(axis, float(v)) for axis, v in asked if isinstance(v, (int, float))]
    if wanted:
        have = np.array([_spacing(record) for record in records])
        off = np.linalg.norm([have[:, axis] - value for axis, value in wanted], axis=0)
        choice = np.flatnonzero(off <= off.min() + _ALIKE_MM)
    return int(choice[np.random.default_rng([key.seed & (2**63 - 1), key.index, 7]).integers(len(choice))])


def placed(row: Row, schema: Schema, records: Sequence[Mapping[str, Any]], key: Key) -> Row:
    """The row with the native spacing of its record, in the columns that say it and were not asked for."""
    free = [n for n in SPACING_COLUMNS if n in schema and n not in row.asked]
    if not free:
        return row
    spacing = dict(zip(SPACING_COLUMNS, _spacing(records[record_of(records, row, key)]), strict=True))
    own: dict[str, Value] = {name: spacing[name] for name in free}
    return replace(row, values={**row.values, **own})


def _spacing(record: Mapping[str, Any]) -> tuple[float, float, float]:
    return GeometryRecord.from_json(record["geometry"]).native_spacing_mm
