"""The covariate schema as a YAML file that a user reads and edits.

covariates:
age:   {kind: continuous, unit: year, range: [18, 90]}
sex:   {kind: categorical, levels: [F, M]}
stage: {kind: ordinal, levels: [mild, moderate, severe]}    # levels in their order
hour:  {kind: periodic, unit: h, period: 24, range: [8, 18]}
report: {kind: text}                                        # free words, read by a frozen encoder
note:  {kind: ignore}                                       # or delete the entry: the column is dropped
"""

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import yaml

from medgen.cohort.case import Cohort
from medgen.cohort.schema import MISSING_WORDS, Covariate, Kind, Schema, Value
from medgen.errors import InputError
from medgen.files import write_text
from medgen.yaml_keys import read_yaml

KINDS: tuple[str, ...] = (*get_args(Kind), "ignore")
KEYS = {
    "continuous": ("kind", "unit", "range"),
    "periodic": ("kind", "unit", "range", "period"),
    "categorical": ("kind", "levels"),
    "ordinal": ("kind", "levels"),
    "text": ("kind",),
    "ignore": ("kind", "unit", "range", "period", "levels"),
}
_HEAD = """\
# Covariates of this cohort as medgen understood them. Edit and run again:
#   kind    continuous | periodic (a circle, give its period) | categorical | ordinal (levels in their order)
#           | text (free words, for a text encoder) | ignore
#   unit    of a number, for example year or ml
#   range   [smallest, largest]; a value outside it is an error
#   levels  the words that may stand in the column
# Delete an entry, or give it the kind ignore, to drop the column.
"""


def write(path: Path, schema: Schema) -> None:
    """Write the schema, atomically."""
    entries = {c.name: _entry(c) for c in schema.covariates}
    body = yaml.safe_dump(
        {"covariates": entries}, sort_keys=False, allow_unicode=True, default_flow_style=None, width=110
    )
    write_text(path, _HEAD + body)


def _entry(c: Covariate) -> dict[str, Any]:
    entry: dict[str, Any] = {"kind": c.kind}
    if c.is_text:
        return entry
    if not c.is_numeric:
        return entry | {"levels": list(c.levels)}
    if c.unit:
        entry["unit"] = c.unit
    if c.period is not None:
        entry["period"] = c.period
    if c.minimum is not None and c.maximum is not None:
        entry["range"] = [c.minimum, c.maximum]
    return entry


def read(path: Path) -> Schema:
    """Read an edited schema.

    Raises:
        InputError: missing, not YAML, or an entry that is not understood; names the key and the nearest valid one.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        document = read_yaml(text, path)
    except FileNotFoundError:
        raise InputError(f"{path} does not exist") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read ({error}); save it as UTF-8 text") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        mark = getattr(error, "problem_mark", None)
        line = f" at line {mark.line + 1}" if mark is not None else ""
        raise InputError(f"{path} is not valid YAML{line}; mend it or delete it to have it written anew") from None
    entries = document.get("covariates") if isinstance(document, dict) else None
    if not isinstance(entries, dict) or set(document) != {"covariates"}:
        raise InputError(f"{path} must hold one mapping 'covariates' with an entry a column")
    found = [_covariate(name, entry, path) for name, entry in entries.items()]
    return Schema(tuple(c for c in found if c is not None))


def apply(cohort: Cohort, path: Path) -> Cohort:
    """The cohort as an edited schema sees it: columns dropped, kinds changed, ranges and levels checked.

    Raises:
        InputError: the file is not understood, names a column that the cohort has not (names the nearest), or a value
            does not fit its column's kind, range or levels.
    """
    schema = read(path)
    have = cohort.schema.names
    for name in schema.names:
        if name not in have and have:
            listed = ", ".join(have)
            raise InputError(f"{path} has '{name}', which the cohort has not (it has: {listed}){_near(name, have)}")
    rows = apply_to_rows(schema, [case.covariates for case in cohort.cases], path)
    cases = tuple(replace(case, covariates=row) for case, row in zip(cohort.cases, rows, strict=True))
    return replace(cohort, cases=cases, schema=schema)


def apply_to_rows(
    schema: Schema, rows: Sequence[Mapping[str, Value]], source: str | Path = "the covariate file"
) -> list[dict[str, Value]]:
    """Rows with the schema's columns alone, numbers turned into levels or back where a kind was changed.

    Raises:
        InputError: a value that does not fit its column's kind, range or levels.
    """
    try:
        return [{c.name: _value(c, row.get(c.name)) for c in schema.covariates} for row in rows]
    except InputError as error:
        raise InputError(f"{source}: {error}; mend the cohort's table or this entry") from None


def _value(c: Covariate, value: Value) -> Value:
    if not c.is_numeric and isinstance(value, (int, float)):
        value = f"{value:g}"  # a level that the table wrote as a number: 1.0 is the level 1
    parsed = c.parse(value)
    if isinstance(parsed, float):
        low, high = (-math.inf if c.minimum is None else c.minimum), (math.inf if c.maximum is None else c.maximum)
        if not low <= parsed <= high:
            raise InputError(f"covariate '{c.name}' has the value {parsed:g}, outside {low:g} to {high:g}")
    return parsed


def _covariate(name: Any, entry: Any, path: Path) -> Covariate | None:
    where = f"{path}: covariate '{name}'"
    if not isinstance(name, str) or not name.strip():
        raise InputError(f"{where} has a name that is not text; put it in quotes")
    if not isinstance(entry, dict) or "kind" not in entry:
        raise InputError(f"{where} needs a kind ({', '.join(KINDS)})")
    kind = entry["kind"]
    if kind not in KINDS:
        raise InputError(f"{where} has the kind '{kind}' (known: {', '.join(KINDS)}){_near(kind, KINDS)}")
    for key in entry:
        if key not in KEYS[kind]:
            listed = ", ".join(KEYS[kind])
            raise InputError(f"{where} has the key '{key}', but {kind} takes {listed}{_near(key, KEYS[kind])}")
    if kind == "ignore":
        return None
    if kind == "text":
        return Covariate(name, "text")
    if kind in ("categorical", "ordinal"):
        return Covariate(name, kind, levels=_levels(entry.get("levels"), where))
    unit = entry.get("unit", "")
    if not isinstance(unit, str):
        raise InputError(f"{where} has the unit {unit!r}, which is not text; put it in quotes")
    low, high = _range(entry["range"], where) if "range" in entry else (None, None)
    period = None
    if kind == "periodic":
        period = entry.get("period")
        if not _is_number(period) or float(entry["period"]) <= 0:
            raise InputError(f"{where} is periodic and needs a period above 0, for example 24, not {period!r}")
        period = float(entry["period"])
    return Covariate(name, kind, unit, low, high, period=period)


def _levels(levels: Any, where: str) -> tuple[str, ...]:
    if not isinstance(levels, list) or not levels:
        raise InputError(f"{where} needs levels, a list such as [A, B]")
    for level in levels:
        if isinstance(level, bool) or not isinstance(level, (str, int, float)):
            raise InputError(f"{where} has the level {level!r}, which YAML does not read as text; put it in quotes")
        if str(level).strip().lower() in MISSING_WORDS:
            raise InputError(f"{where} has the level '{level}', which means a missing value; leave it out")
    words = tuple(level if isinstance(level, str) else f"{level:g}" for level in levels)
    twins = sorted({w for w in words if words.count(w) > 1})
    if twins:
        raise InputError(f"{where} has the level '{twins[0]}' twice; keep one")
    return words


def _range(bounds: Any, where: str) -> tuple[float, float]:
    if not isinstance(bounds, list) or len(bounds) != 2 or not all(_is_number(b) for b in bounds):
        raise InputError(f"{where} needs its range as two numbers, for example [18, 90], not {bounds!r}")
    low, high = float(bounds[0]), float(bounds[1])
    if low > high:
        raise InputError(f"{where} has a range from {low:g} down to {high:g}; swap the two")
    return low, high


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _near(word: Any, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(str(word), known, n=1)
    return f"; did you mean '{close[0]}'?" if close else ""
