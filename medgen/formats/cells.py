"""Single cells of clinical tables: ages in all their spellings, sex, and names that are safe to use anywhere."""

import re

from medgen.cohort.schema import MISSING_WORDS
from medgen.errors import InputError

OLDEST_YEARS = 130.0
_PER_YEAR = {"year": 1.0, "month": 12.0, "week": 365.25 / 7, "day": 365.25}
_NUMBER = r"(\d+(?:[.,]\d+)?)"
_CENSORED = re.compile(rf"[<>≥≤]?=?\s*{_NUMBER}\s*\+?")
_WITH_UNIT = re.compile(rf"{_NUMBER}\s*([a-z()]+)\.?")
_BAND = re.compile(rf"{_NUMBER}\s*(?:-|–|to)\s*{_NUMBER}")
_ISO_PARTS = {"Y": "year", "M": "month", "W": "week", "D": "day"}
_ISO = re.compile(r"P(?:\d+(?:\.\d+)?[YMWD])+")
_SEX = {
    "M": ("m", "male", "man", "boy", "males", "men", "masculine", "1", "1.0"),
    "F": ("f", "female", "woman", "girl", "females", "women", "feminine", "2", "2.0"),
    "O": ("o", "other", "intersex", "diverse", "x"),
}


def missing(text: str) -> bool:
    """Whether a cell says that its value is not known."""
    return text.strip().lower() in MISSING_WORDS


def number(text: str) -> float | None:
    """A cell as a number, decimal comma allowed; None where it is not one."""
    word = text.strip()
    if re.fullmatch(r"[+-]?\d+,\d+", word):
        word = word.replace(",", ".")
    try:
        return float(word)
    except ValueError:
        return None


def time_unit(text: str) -> str | None:
    """``year``, ``month``, ``week`` or ``day`` for the ways people write them, else None."""
    word = text.strip().lower()
    for unit, pattern in {
        "month": r"m|mos?|mths?|months?.*|month\(s\).*",
        "week": r"w|wks?|weeks?.*|week\(s\).*",
        "day": r"d|days?.*|day\(s\).*",
        "year": r"a|y|yo|yrs?|years?.*|year\(s\).*",
    }.items():
        if re.fullmatch(pattern, word):
            return unit
    return None


def age_years(text: str, unit: str = "year") -> float | None:
    """An age in years.

    Reads plain numbers in ``unit``, ``89+`` and ``>89`` (the bound), ``60-65`` (the middle), ``6 months``, ``10 wk``,
    DICOM's ``071Y`` and ISO 8601 durations such as ``P1Y6M``.

    Raises:
        InputError: none of these, or beyond what people reach.
    """
    word = text.strip()
    if missing(word):
        return None
    years = _age(word, unit)
    if years is None:
        raise InputError(f"'{word}' is not an age; write years, or n/a where it is unknown")
    if not 0 <= years <= OLDEST_YEARS:
        raise InputError(f"an age of {years:g} years cannot be right; mend it or state its unit (month, week, day)")
    return years


def _age(word: str, unit: str) -> float | None:
    plain = number(word)
    if plain is not None:
        return plain / _PER_YEAR[unit]
    if match := _CENSORED.fullmatch(word):
        return float(match[1].replace(",", ".")) / _PER_YEAR[unit]
    if match := _BAND.fullmatch(word):
        return (float(match[1].replace(",", ".")) + float(match[2].replace(",", "."))) / 2 / _PER_YEAR[unit]
    if _ISO.fullmatch(word):
        parts = re.findall(r"(\d+(?:\.\d+)?)([YMWD])", word)
        return sum(float(n) / _PER_YEAR[_ISO_PARTS[letter]] for n, letter in parts)
    if (match := _WITH_UNIT.fullmatch(word.lower())) and (own := time_unit(match[2])):
        return float(match[1].replace(",", ".")) / _PER_YEAR[own]
    return None


def sex(text: str) -> str | None:
    """``M``, ``F`` or ``O``, from words or the common coding 1 = male, 2 = female.

    Raises:
        InputError: anything else; 0 is refused because tables disagree about what it means.
    """
    word = text.strip().lower()
    if missing(word):
        return None
    for level, words in _SEX.items():
        if word in words:
            return level
    raise InputError(f"'{text.strip()}' is not a sex that medgen can read; write M, F or n/a")


def safe_name(text: str) -> str:
    """Letters, digits, ``-`` and ``_`` only; other characters become one underscore."""
    return re.sub(r"[^0-9A-Za-z-]+", "_", text).strip("_-")
