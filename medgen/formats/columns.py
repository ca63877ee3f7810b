"""From a table's text columns to covariates: which columns are covariates, what they are called, what they mean.

The rules, in order:

1. ``age`` under its many names (``Age``, ``age_at_scan``, ``age (months)``) becomes ``age`` in years; ``sex`` or
   ``gender`` becomes ``sex`` with levels F and M. The column's ``Units`` and ``Levels`` in the JSON beside the table
   are honoured.
2. A column that the user names as text (option ``texts``, or ``"Kind": "text"`` in the JSON) holds free words.
   Other identifiers, dates, names and free text are no covariates: they condition nothing and may identify someone.
3. A column with ``Levels`` in the JSON is categorical; numbers are continuous; a few repeated words are categorical.

Every column that is left out is named in ``notes``.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medgen.cohort.case import SUBJECT
from medgen.cohort.schema import MAX_LEVELS, Covariate, Kind, Schema, Value, infer, with_ranges
from medgen.errors import InputError
from medgen.files import read_json
from medgen.formats import cells

_AGE = re.compile(
    r"(?:subject_|patient_|participant_)?age_?"
    r"(?:at_?(?:scan|visit|session|imaging|mri|baseline|acquisition|exam)|scan|visit)?"
    r"(?:_(?:in_)?(?P<unit>y|yrs?|years?|m|mos?|months?|w|wks?|weeks?|d|days?))?"
)
_SEX = re.compile(r"(?:biological_|participant_|patient_|subject_)?(?:sex|gender)(?:_at_birth)?")
_PRIVATE = re.compile(
    r"(?:participant|subject|subj|patient|pat|person|session|case|record|scan|image|visit|study|series|accession)?_?"
    r"u?id|[pr]t?id|mrn|dob|name|subject|subj|patient|participant|"
    r"(?:.*_)?(?:patient|subject|first|last|sur|family|given|full)_?name|initials|.*_?birth_?(?:date|day)|"
    r"(?:.*_)?date(?:_.*)?|acq_time|address|phone|e?mail|(?:.*_)?(?:comments?|notes?|remarks?)|(?:.*_)?(?:file|filename|path)"
)
_SERIAL = re.compile(r".*_(?:id|uid|number|num|nr|no|code)")
_DATE = re.compile(
    r"\d{4}[-/.]\d{1,2}[-/.]\d{1,2}.*|\d{1,2}[-/.]\d{1,2}[-/.]\d{4}.*|(?:19|20)\d\d(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])"
)


@dataclass(frozen=True)
class Columns:
    """The covariates of a table.

    Attributes:
        schema: kinds, units, ranges and levels.
        rows: key of a case -> covariate -> value.
        notes: what was left out and why.
    """

    schema: Schema
    rows: Mapping[str, Mapping[str, Value]]
    notes: tuple[str, ...] = ()


def read_described(path: Path) -> dict[str, dict[str, Any]]:
    """The JSON beside a table: column -> Description, Units, Levels; empty where there is no such file.

    Raises:
        InputError: not JSON, or not an object of objects.
    """
    if not path.is_file():
        return {}
    described = read_json(path)
    if not isinstance(described, dict):
        raise InputError(f"{path} must be a JSON object with one entry a column")
    return {k: v for k, v in described.items() if isinstance(v, dict)}


def describe(schema: Schema) -> dict[str, dict[str, Any]]:
    """The JSON beside a table, from a schema; :func:`read_described` and :func:`covariates` read it back."""
    described: dict[str, dict[str, Any]] = {}
    for c in schema.covariates:
        entry: dict[str, Any] = {"Description": "age" if c.name == "age" else c.name.replace("_", " ")}
        if c.is_text:
            entry["Kind"] = c.kind
        elif c.is_numeric:
            entry |= {"Units": c.unit} if c.unit else {}
        else:
            words = {"F": "female", "M": "male", "O": "other"} if c.name == "sex" else {}
            entry["Levels"] = {level: words.get(level, level) for level in c.levels}
        if c.kind in ("ordinal", "periodic"):
            entry |= {"Kind": c.kind} | ({"Period": c.period} if c.period is not None else {})
        described[c.name] = entry
    return described


def cell_text(value: Value) -> str:
    """A value as a cell; whole numbers without a decimal point."""
    if value is None:
        return "n/a"
    if isinstance(value, str):
        return value
    return str(int(value)) if float(value).is_integer() and abs(value) < 1e15 else repr(float(value))


def subjects(rows: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """Who a case is of, as the column ``subject`` tells; cases for which it does not are left out."""
    told = {key: row.get(SUBJECT, "") for key, row in rows.items()}
    return {key: subject for key, subject in told.items() if not cells.missing(subject)}


def covariates(
    rows: Mapping[str, Mapping[str, str]],
    *,
    said_in: Path,
    described: Mapping[str, Mapping[str, Any]] | None = None,
    skip: Sequence[str] = (),
    only: Sequence[str] | None = None,
    texts: Sequence[str] | None = None,
) -> Columns:
    """Turn text columns into covariates.

    Args:
        rows: key of a case -> column -> cell.
        said_in: the table, for messages.
        described: column -> Units and Levels (see :func:`read_described`).
        skip: columns that mean something else.
        only: the columns (as written, or as renamed here) to take; every other one is ignored without a check.
        texts: columns (as written, or as renamed here) of free words for a text encoder.

    Raises:
        InputError: a cell that is not what its column is, naming the row; or a name in ``only`` or ``texts`` that is
            no column.
    """
    columns = list(dict.fromkeys(c for row in rows.values() for c in row if c and c not in skip))
    renamed = _rename(columns)
    known = {*columns, *(name for name, _ in renamed.values())}
    for name in (*(only or ()), *(texts or ())):
        if name not in known:
            raise InputError(f"{said_in} has no column '{name}' (it has: {', '.join(columns)})")
    if only is not None:
        columns = [c for c in columns if c in only or renamed[c][0] in only]
    schema: list[Covariate] = []
    values: dict[str, dict[str, Value]] = {key: {} for key in rows}
    notes = []
    for column in columns:
        name, unit = renamed[column]
        cells_of = {key: row.get(column, "") for key, row in rows.items()}
        about = dict((described or {}).get(column, {}))
        if texts is not None and {column, name} & set(texts):
            about["Kind"] = "text"
        if name in [c.name for c in schema]:
            notes.append(f"{said_in}: column '{column}' says '{name}' again and is left out")
            continue
        try:
            covariate, parse = _column(name, column, unit, list(cells_of.values()), about)
        except _LeftOutError as reason:
            notes.append(f"{said_in}: column '{column}' is no covariate ({reason})")
            continue
        schema.append(covariate)
        for key, text in cells_of.items():
            try:
                values[key][name] = parse(text)
            except InputError as error:
                raise InputError(f"{said_in}, row {key}, column {column}: {error}") from None
    return Columns(with_ranges(Schema(tuple(schema)), list(values.values())), values, tuple(notes))


class _LeftOutError(Exception):
    """Why a column is no covariate."""


def _rename(columns: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Column -> (covariate name, time unit its name states)."""
    renamed = {}
    for column in columns:
        clean = _clean(column)
        lower = clean.lower()
        if match := _AGE.fullmatch(lower):
            renamed[column] = ("age", match["unit"] or "")
        elif _SEX.fullmatch(lower):
            renamed[column] = ("sex", "")
        else:
            renamed[column] = (clean, "")
    # An exact 'age' or 'sex' is taken before its other spellings.
    for exact in ("age", "sex"):
        if exact in columns:
            for column, (name, _) in renamed.items():
                if name == exact and column != exact:
                    renamed[column] = (_clean(column), "")
    return renamed


def _clean(column: str) -> str:
    """A column's name of letters of any script, digits and _."""
    return re.sub(r"\W+", "_", column).strip("_") or "column"


Parse = Callable[[str], Value]


def _column(
    name: str, column: str, unit: str, texts: Sequence[str], described: Mapping[str, Any]
) -> tuple[Covariate, Parse]:
    """What a column is, and how its cells are read."""
    words = [t.strip() for t in texts if not cells.missing(t)]
    if not words:
        raise _LeftOutError("it is empty")
    if described.get("Kind") == "text":
        covariate = Covariate(name, "text")
        return covariate, covariate.parse
    levels = described.get("Levels")
    levels = {str(k): _text(v) for k, v in levels.items()} if isinstance(levels, dict) else {}
    units = str(described.get("Units", "") or "")
    if name == "age":
        in_unit = cells.time_unit(unit or units) or "year"
        return Covariate("age", unit="year"), lambda text: cells.age_years(text, in_unit)
    if name == "sex":
        return Covariate("sex", "categorical", levels=("F", "M")), lambda text: _sex(text, levels)
    _refuse_private(column, words)
    if levels:
        return _with_levels(name, words, levels, units, described)
    numbers = [cells.number(w) for w in words]
    texts_only = [w for w, n in zip(words, numbers, strict=True) if n is None]
    if not texts_only:
        kind = described.get("Kind")
        if kind == "periodic" and isinstance(described.get("Period"), (int, float)):
            return Covariate(name, "periodic", units, period=float(described["Period"])), cells_number
        return Covariate(name, "continuous", units), cells_number
    if len(texts_only) * 2 < len(words):
        raise _LeftOutError(f"it mixes numbers with texts such as '{texts_only[0]}'; write n/a where one is missing")
    if len(set(words)) > 2 and len(set(words)) == len(words):
        raise _LeftOutError("every row has another text")
    try:
        covariate = infer(name, words)
    except InputError:
        raise _LeftOutError(f"it has {len(set(words))} different texts") from None
    return covariate, covariate.parse


def cells_number(text: str) -> Value:
    """A numeric cell; None where it is missing.

    Raises:
        InputError: infinite.
    """
    if cells.missing(text):
        return None
    found = cells.number(text)
    return Covariate("value").parse(found if found is not None else text)


def _with_levels(
    name: str, words: Sequence[str], levels: Mapping[str, str], units: str, described: Mapping[str, Any]
) -> tuple[Covariate, Parse]:
    words = [_as_level(w, levels) for w in words]
    extra = sorted(set(words) - set(levels))
    if len(levels) + len(extra) <= MAX_LEVELS or not extra:
        kind: Kind = "ordinal" if described.get("Kind") == "ordinal" else "categorical"
        declared = Covariate(name, kind, levels=(*levels, *extra))
        return declared, lambda text: declared.parse(_as_level(text, levels))
    if all(cells.number(w) is not None for w in extra):
        # Questionnaires describe only their special codes ('999: refused'): those are missing, the rest is a number.
        return Covariate(
            name, "continuous", units
        ), lambda t: None if _as_level(t, levels) in levels else cells_number(t)
    raise _LeftOutError(f"it has {len(levels) + len(extra)} different texts")


def _as_level(text: str, levels: Mapping[str, str]) -> str:
    """A cell as the key of ``Levels`` that it means: tables with missing entries write the code 1 as 1.0."""
    word = text.strip()
    if word in levels or (number := cells.number(word)) is None or not float(number).is_integer():
        return word
    return str(int(number)) if str(int(number)) in levels else word


def _text(level: Any) -> str:
    return str(level.get("Description", "")) if isinstance(level, dict) else str(level)


def _sex(text: str, levels: Mapping[str, str]) -> Value:
    word = _as_level(text, levels)
    if word in levels and not cells.missing(levels[word]):
        try:
            return cells.sex(levels[word])
        except InputError:
            return cells.sex(word)  # a description such as 'sex assigned male at birth' says no more than the cell
    try:
        return cells.sex(word)
    except InputError as error:
        raise InputError(f"{error}, or say under Levels in the JSON beside the table what it means") from None


def _refuse_private(column: str, words: Sequence[str]) -> None:
    apart = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", column)  # ScanDate, SubjectID
    lower = re.sub(r"[^0-9a-z]+", "_", apart.lower()).strip("_")
    if _PRIVATE.fullmatch(lower):
        raise _LeftOutError("its name says identifier, date or free text")
    if _SERIAL.fullmatch(lower) and len(set(words)) * 2 > len(words):
        raise _LeftOutError("it looks like an identifier")
    if all(_DATE.fullmatch(w) for w in words):
        raise _LeftOutError("it holds dates")
