"""Covariates: what each column means, inferred from its values or read from a file the user edited."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from medgen.errors import InputError

Value = float | str | None
Kind = Literal["continuous", "categorical", "ordinal", "periodic", "text"]
MISSING_WORDS = frozenset({"", "n/a", "na", "nan", "none", "null", "unknown", "-", "?"})
MAX_LEVELS = 12
SPACING_COLUMNS = ("spacing_x_mm", "spacing_y_mm", "spacing_z_mm")
"""Native voxel size to the right, to the front and upwards, where it conditions a model."""


@dataclass(frozen=True)
class Covariate:
    """One column.

    Attributes:
        name: as users ask for it, for example ``age`` or ``ventricles_ml``.
        kind: continuous; categorical (levels without order); ordinal (levels in their order); periodic (continuous
            on a circle of circumference ``period``); text (free words, read by a frozen encoder; never inferred, and
            never stored in a model).
        unit: of a continuous or periodic column ("year", "ml"), empty where unknown.
        minimum: smallest value in the cohort (continuous, periodic).
        maximum: largest value in the cohort (continuous, periodic).
        levels: of a categorical or ordinal column.
        period: of a periodic column, for example 24 for hours.
        tokens: of a text column that conditions a model: so many tokens of a text are read.
        width: of a text column that conditions a model: width of the encoder's states.
    """

    name: str
    kind: Kind = "continuous"
    unit: str = ""
    minimum: float | None = None
    maximum: float | None = None
    levels: tuple[str, ...] = ()
    period: float | None = None
    tokens: int = 0
    width: int = 0

    @property
    def is_text(self) -> bool:
        """Whether values are free words rather than numbers or levels."""
        return self.kind == "text"

    @property
    def is_numeric(self) -> bool:
        """Whether values are numbers rather than levels."""
        return self.kind in ("continuous", "periodic")

    def parse(self, text: Any) -> Value:
        """One cell as a value; None where it says that it is missing.

        Raises:
            InputError: not a number where one is needed, or not a known level.
        """
        if text is None or (isinstance(text, float) and math.isnan(text)):
            return None
        word = str(text).strip()
        if word.lower() in MISSING_WORDS:
            return None
        if self.is_numeric:
            try:
                number = float(word)
            except ValueError:
                point = re.fullmatch(r"([+-]?\d+),(\d+)", word)
                hint = f"; write {point[1]}.{point[2]}" if point else ""
                raise InputError(f"covariate '{self.name}' is a number, but '{word}' is not one{hint}") from None
            if not math.isfinite(number):
                raise InputError(f"covariate '{self.name}' must be finite, not '{word}'")
            return number
        if self.is_text:
            return " ".join(word.split())
        if word not in self.levels:
            raise InputError(f"covariate '{self.name}' has levels {', '.join(self.levels)}; '{word}' is none of them")
        return word


@dataclass(frozen=True)
class Schema:
    """The covariates of a cohort, in order."""

    covariates: tuple[Covariate, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Names in order."""
        return tuple(c.name for c in self.covariates)

    def __getitem__(self, name: str) -> Covariate:
        for covariate in self.covariates:
            if covariate.name == name:
                return covariate
        raise InputError(f"unknown covariate '{name}' (known: {', '.join(self.names) or 'none'})")

    def __contains__(self, name: str) -> bool:
        return name in self.names

    def only(self, names: Sequence[str]) -> "Schema":
        """The named covariates, in the order given."""
        return Schema(tuple(self[name] for name in names))

    def joined(self, other: "Schema") -> "Schema":
        """This schema followed by the other's columns that it has not."""
        return Schema(self.covariates + tuple(c for c in other.covariates if c.name not in self))

    def to_json(self) -> list[dict[str, Any]]:
        """As plain JSON."""
        return [
            {k: v for k, v in asdict(c).items() if c.is_text or k not in ("tokens", "width")} for c in self.covariates
        ]

    @staticmethod
    def from_json(rows: Iterable[Mapping[str, Any]]) -> "Schema":
        """From what :meth:`to_json` gave."""
        return Schema(tuple(Covariate(**{**row, "levels": tuple(row.get("levels", ()))}) for row in rows))


def with_ranges(schema: Schema, rows: Sequence[Mapping[str, Value]]) -> Schema:
    """The schema with each numeric column's range, and each level list extended, measured from ``rows``."""
    measured = []
    for c in schema.covariates:
        values = [row[c.name] for row in rows if row.get(c.name) is not None]
        if c.is_text:
            measured.append(c)
        elif c.is_numeric:
            numbers = [float(v) for v in values if v is not None]
            measured.append(replace(c, minimum=min(numbers, default=None), maximum=max(numbers, default=None)))
        else:
            extra = sorted({str(v) for v in values} - set(c.levels))
            measured.append(replace(c, levels=c.levels + tuple(extra)))
    return Schema(tuple(measured))


def infer(name: str, cells: Sequence[Any], unit: str = "") -> Covariate:
    """Infer a column's kind: numbers are continuous, at most ``MAX_LEVELS`` distinct words are categorical.

    Raises:
        InputError: neither; such a column (free text, identifiers) cannot condition anything.
    """
    words = [str(c).strip() for c in cells if c is not None and str(c).strip().lower() not in MISSING_WORDS]
    try:
        numbers = [float(w) for w in words]
    except ValueError:
        levels = tuple(sorted(set(words)))
        if len(levels) > MAX_LEVELS:
            raise InputError(f"column '{name}' has {len(levels)} different texts; it is not a covariate") from None
        return Covariate(name, "categorical", levels=levels)
    finite = [n for n in numbers if math.isfinite(n)]
    return Covariate(name, "continuous", unit, min(finite, default=None), max(finite, default=None))


def volume_column(label_name: str) -> str:
    """Name of the covariate that holds a label's volume in ml: ``Left-Hippocampus`` -> ``left_hippocampus_ml``."""
    return re.sub(r"[^a-z0-9]+", "_", label_name.lower()).strip("_") + "_ml"
