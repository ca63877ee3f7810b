"""Requests in words, as on the command line, and from Python values.

``age=60..80,sex=F,ventricles_ml=40,site=A|B``; ``age=60..`` is open upwards. A level that holds a comma or another
sign of this language stands in double quotes, and so does a text: ``report="small ventricles, old"``.
"""

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from medgen.cohort.given import Fixed, Given, GivenMap, OneOf, Range
from medgen.cohort.schema import Covariate, Schema, volume_column
from medgen.errors import InputError

_OUTSIDE_QUOTES = r'(?=(?:[^"]*"[^"]*")*[^"]*$)'
_SIGNS = re.compile(r'[,|="]|\.\.|^\s|\s$|^$')


@dataclass(frozen=True)
class Request:
    """What is asked for.

    Attributes:
        given: covariate -> value, range or levels; what is not named is drawn.
        force: whether values that the cohort never covers are allowed.
    """

    given: GivenMap = field(default_factory=dict)
    force: bool = False

    def __str__(self) -> str:
        return ",".join(f"{name}={text_of(g)}" for name, g in self.given.items())


def text_of(given: Given) -> str:
    """A constraint in the words of the command line."""
    if isinstance(given, Range):
        low = "" if given.low is None else f"{given.low!r}"
        return f"{low}..{'' if given.high is None else f'{given.high!r}'}"
    if isinstance(given, OneOf):
        return "|".join(_quoted(level) for level in given.levels)
    return repr(given.value) if isinstance(given.value, float) else _quoted(str(given.value))


def parse_where(text: str, schema: Schema, *, force: bool = False, source: str = "--where") -> Request:
    """Read ``name=value,name=low..high,name=A|B``.

    Raises:
        InputError: unknown covariate (lists the known ones and the nearest), wrong type, an empty or upside-down
            range, a name asked for twice.
    """
    given: dict[str, Given] = {}
    for item in re.split("," + _OUTSIDE_QUOTES, text):
        if not item.strip():
            continue
        name, equals, value = item.partition("=")
        name = name.strip()
        if not equals:
            raise InputError(f"{source}: '{item.strip()}' is not of the form name=value, name=low..high or name=A|B")
        if name in given:
            raise InputError(f"{source} asks for '{name}' twice; give it once")
        given[name] = parse_cell(value, known(name, schema, source), source)
    return Request(given, force)


def from_values(
    values: Mapping[str, object],
    schema: Schema,
    *,
    volumes_ml: Mapping[str, object] | None = None,
    force: bool = False,
    source: str = "the request",
) -> Request:
    """A request from Python values: a number, a level, a pair (low, high) or a list of levels; None is not asked for.

    Args:
        values: covariate -> value.
        schema: the cohort's covariates.
        volumes_ml: label name -> value, for covariates named ``<label>_ml``.
        force: see :class:`Request`.
        source: named in messages.

    Raises:
        InputError: as :func:`parse_where`.
    """
    given: dict[str, Given] = {}
    for name, value in {**values, **{volume_column(label): v for label, v in (volumes_ml or {}).items()}}.items():
        c = known(name, schema, source)
        if value is None:
            continue
        if c.is_text:
            given[name] = _text(str(value), c, source)
            continue
        if c.is_numeric and isinstance(value, (tuple, list)) and len(value) == 2:
            text = "..".join("" if v is None else str(v) for v in value)
        elif not c.is_numeric and isinstance(value, (tuple, list, set, frozenset)):
            text = "|".join(_quoted(str(v)) for v in (sorted(value) if isinstance(value, (set, frozenset)) else value))
        else:
            text = str(value) if c.is_numeric else _quoted(str(value))
        given[name] = parse_cell(text, c, source)
    return Request(given, force)


def known(name: str, schema: Schema, source: str) -> Covariate:
    """The covariate of that name.

    Raises:
        InputError: there is none; lists the known ones and the nearest.
    """
    if name in schema:
        return schema[name]
    near = difflib.get_close_matches(name.lower(), [n.lower() for n in schema.names], n=1)
    hint = next((f"; did you mean '{n}'?" for n in schema.names if near and n.lower() == near[0]), "")
    raise InputError(f"{source}: unknown covariate '{name}' (known: {', '.join(schema.names) or 'none'}){hint}")


def parse_cell(text: str, covariate: Covariate, source: str) -> Given:
    """Read what is asked of one covariate.

    Raises:
        InputError: see :func:`parse_where`.
    """
    text = text.strip()
    if covariate.is_text:
        return _text(_unquoted(text), covariate, source)
    if not covariate.is_numeric:
        levels = tuple(dict.fromkeys(_level(w, covariate, source) for w in re.split(r"\|" + _OUTSIDE_QUOTES, text)))
        return Fixed(levels[0]) if len(levels) == 1 else OneOf(levels)
    if "|" in text:
        raise InputError(f"{source}: '{covariate.name}' is a number; ask for a value or a range such as 60..80")
    if ".." not in text:
        return Fixed(_number(text, covariate, source))
    low, high = (t.strip() for t in text.split("..", 1))
    if not low and not high:
        raise InputError(f"{source}: the range of '{covariate.name}' has no bound; write 60..80, 60.. or ..80")
    bounds = [_number(t, covariate, source) if t else None for t in (low, high)]
    asked = Range(bounds[0], bounds[1])
    if asked.low is not None and asked.high is not None and asked.low > asked.high and covariate.kind != "periodic":
        raise InputError(f"{source}: the range of '{covariate.name}' runs from {low} down to {high}; swap the two")
    return asked


def _number(text: str, covariate: Covariate, source: str) -> float:
    try:
        value = covariate.parse(text)
    except InputError as error:
        raise InputError(f"{source}: {error}") from None
    if value is None:
        raise InputError(f"{source}: '{covariate.name}' has no value; give one or leave it out to have it drawn")
    return float(value)


def _level(text: str, covariate: Covariate, source: str) -> str:
    word = _unquoted(text.strip())
    if word in covariate.levels:
        return word
    folded = [v for v in covariate.levels if v.casefold() == word.casefold()]
    if len(folded) == 1:
        return folded[0]
    levels = ", ".join(covariate.levels) or "none"
    raise InputError(f"{source}: '{covariate.name}' has no level '{word}' (it has: {levels})")


def _text(text: str, covariate: Covariate, source: str) -> Fixed:
    words = covariate.parse(text)
    if words is None:
        raise InputError(f"{source}: '{covariate.name}' has no words; give some or leave it out")
    return Fixed(words)


def _unquoted(word: str) -> str:
    return word[1:-1] if len(word) > 1 and word[0] == word[-1] == '"' else word


def _quoted(level: str) -> str:
    return f'"{level}"' if _SIGNS.search(level) else level
