"""The index of a prepared cohort, from its cases' rows."""

import statistics
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from medgen.cohort.case import Cohort
from medgen.cohort.schema import Covariate, Schema, Value, volume_column, with_ranges
from medgen.errors import InputError
from medgen.files import digest, plain
from medgen.prepare.intensity import IntensityRecord
from medgen.prepare.options import PrepareOptions
from medgen.prepare.plan import Plan
from medgen.prepare.quality import flag_outliers
from medgen.store.prepared import FORMAT

Row = Mapping[str, Any]


def build_index(
    cohort: Cohort,
    plan: Plan,
    options: PrepareOptions,
    keys: Sequence[str],
    rows: Sequence[Row],
    conditions: Sequence[str] | None,
) -> dict[str, Any]:
    """Everything of ``index.json``.

    Args:
        cohort: whose cases the rows are, in order.
        plan: the shared grid.
        options: recorded.
        keys: of the cases.
        rows: what each case's JSON holds.
        conditions: covariates to keep in the schema; None keeps all.

    Raises:
        InputError: an unknown condition.
    """
    names = label_names(cohort, plan.label_values)
    volumes = [volume_column(name) for name in names[1:]]
    values = [
        _covariates(case.covariates, cohort.schema, volumes, row) for case, row in zip(cohort.cases, rows, strict=True)
    ]
    schema = schema_with_volumes(cohort.schema, volumes, values)
    if conditions is not None:
        schema = schema.only(conditions)
    flags = flag_outliers([_figures(row, volumes) for row in rows])
    borrowed = _borrowed([row["intensity"] for row in rows], [case.split for case in cohort.cases], plan.channels)
    cases = [
        {
            "key": key,
            "case_id": case.case_id,
            "subject_id": case.subject_id,
            "split": case.split,
            "covariates": {name: known[name] for name in schema.names},
            "has_label": row["volumes_ml"] is not None,
            "channels_present": [r is not None for r in row["intensity"]],
            "geometry": row["geometry"],
            "intensity": [borrowed[c] if r is None else r for c, r in enumerate(row["intensity"])],
            "quality": {**row["quality"], "outliers": flag},
        }
        for key, case, known, row, flag in zip(keys, cohort.cases, values, rows, flags, strict=True)
    ]
    return {
        "format": FORMAT,
        "name": cohort.name,
        "channels": list(plan.channels),
        "label_values": list(plan.label_values),
        "label_names": list(names),
        "schema": [{**c, "levels": list(c["levels"])} for c in schema.to_json()],
        "spacing_mm": list(plan.spacing_mm),
        "shape": list(plan.shape),
        "stride": options.stride,
        "options": plain(options.to_json()),
        # What later stages depend on beside these figures: the bytes of every input.
        "content": digest([row["hash"] for row in rows]),
        "cases": cases,
    }


def fold_index(
    index: Mapping[str, Any], sides: Mapping[str, str], arrays: str, hidden: Collection[str] = ()
) -> dict[str, Any]:
    """The index of a fold or another view: the same cases and arrays, on other sides, some without their label.

    Args:
        index: of the prepared cohort.
        sides: case id -> its side in this fold.
        arrays: the folder of the prepared cohort, as seen from the fold's.
        hidden: ids of cases whose label, and what was measured of it, is not to be seen.
    """
    volumes = {volume_column(name) for name in index["label_names"][1:]}
    rows = [{**row, "split": sides[row["case_id"]]} for row in index["cases"]]
    rows = [_without_label(row, volumes) if row["case_id"] in hidden else row for row in rows]
    own = [[None if r.get("borrowed") else r for r in row["intensity"]] for row in rows]
    borrowed = _borrowed(own, [row["split"] for row in rows], index["channels"])
    for row, records in zip(rows, own, strict=True):
        row["intensity"] = [borrowed[c] if r is None else r for c, r in enumerate(records)]
    view = {**index, "cases": rows, "arrays": arrays}
    if hidden:  # the columns' ranges must not tell what the hidden labels were
        schema = with_ranges(Schema.from_json(index["schema"]), [row["covariates"] for row in rows])
        view["schema"] = [{**c, "levels": list(c["levels"])} for c in schema.to_json()]
    return view


def _without_label(row: Row, volumes: Collection[str]) -> dict[str, Any]:
    """A case's row as it would be had it come without a label."""
    outliers = {name: z for name, z in row["quality"].get("outliers", {}).items() if name not in volumes}
    return {
        **row,
        "has_label": False,
        "covariates": {name: None if name in volumes else value for name, value in row["covariates"].items()},
        "quality": {**row["quality"], "outliers": outliers},
    }


def _borrowed(
    records: Sequence[Sequence[Mapping[str, Any] | None]], splits: Sequence[str | None], channels: Sequence[str]
) -> list[dict[str, Any]]:
    """For each channel, the record of cases without it.

    Held-out cases lend nothing to training ones, unless only they have the channel.
    """
    training = [own for own, split in zip(records, splits, strict=True) if split not in ("val", "test")]
    return [
        _typical([own[c] for own in (training if any(own[c] is not None for own in training) else records)], name)
        for c, name in enumerate(channels)
    ]


def schema_with_volumes(schema: Schema, volumes: Sequence[str], rows: Sequence[Mapping[str, Value]]) -> Schema:
    """The cohort's columns followed by the volumes of its labels, with their ranges over ``rows``."""
    # A volume measured here replaces a column of that name: it is the one that generated labels are measured by.
    own = Schema(tuple(c for c in schema.covariates if c.name not in volumes))
    return with_ranges(own.joined(Schema(tuple(Covariate(v, "continuous", "ml") for v in volumes))), rows)


def label_names(cohort: Cohort, label_values: Sequence[int]) -> tuple[str, ...]:
    """Name of each label id: the cohort's, or ``label_<value>``; values are appended where columns would clash."""
    names = ["background"]
    columns: set[str] = set()
    for value in label_values[1:]:
        name = cohort.label_names.get(value, f"label_{value}")
        # Names are told apart by the columns of their volumes: GM-1 and GM_1 would share one.
        if volume_column(name) in columns or volume_column(name) == "_ml":
            name = f"{name}_{value}"
        columns.add(volume_column(name))
        names.append(name)
    return tuple(names)


def _covariates(given: Mapping[str, Value], schema: Schema, volumes: Sequence[str], row: Row) -> dict[str, Value]:
    measured = row["volumes_ml"]
    values: dict[str, Value] = {name: given.get(name) for name in schema.names}
    for i, name in enumerate(volumes):
        # An unlabelled case may still bring a volume that somebody else measured.
        known = given.get(name)
        values[name] = measured[i] if measured is not None else known if isinstance(known, (int, float)) else None
    return values


def _figures(row: Row, volumes: Sequence[str]) -> dict[str, float | None]:
    figures = {k: v for k, v in row["quality"].items() if k.startswith("snr_") or k.endswith("_share")}
    measured = row["volumes_ml"] or [None] * len(volumes)
    return {**figures, **dict(zip(volumes, measured, strict=True))}


def _typical(records: Sequence[Mapping[str, Any] | None], channel: str) -> dict[str, Any]:
    """A record for cases without the channel: the medians of those that have it."""
    known = [IntensityRecord.from_json(r) for r in records if r is not None]
    if not known:
        raise InputError(f"no case has the channel '{channel}'; leave it out of the channels")
    backgrounds = [r.background for r in known if r.background is not None]
    return IntensityRecord(
        lo=statistics.median(r.lo for r in known),
        hi=statistics.median(r.hi for r in known),
        integer=statistics.median_low(int(r.integer) for r in known) == 1,
        background=statistics.median_low(backgrounds) if 2 * len(backgrounds) > len(known) else None,
        n4=known[0].n4,
        borrowed=True,
    ).to_json()
