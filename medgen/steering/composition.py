"""Composition of conditions: AND, NOT and weights (Liu et al. 2022, arXiv:2206.01714)."""

import difflib
import math
from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Any

import torch

from medgen.cohort.requests import Request, parse_where
from medgen.cohort.requests import check as check_request
from medgen.cohort.schema import Schema, Value
from medgen.cohort.where import Fixed, from_values, text_of
from medgen.errors import InputError
from medgen.models.condition import Condition
from medgen.models.seam import Model, Prediction
from medgen.steering.context import Context, Known
from medgen.steering.passes import check_interval, together, within

NEEDS_NULL = "some"

_SAID_IN = "steering 'composition'"
_KEYS = ("where", "weight")


def wrap(
    model: Model,
    *,
    context: Context,
    conditions: Sequence[Mapping[str, Any]] = (),
    interval: Sequence[float] = (),
    force: bool = False,
) -> Model:
    """Join conditions: x0 = x0(rest) + sum_i weight_i (x0(rest and condition_i) - x0(rest)).

    ``rest`` is the sample's request without the columns that any condition names: they are decided here. A positive
    weight is AND, a negative one NOT, and p(x | rest) prod_i p(condition_i | x, rest)^weight_i is what is sampled (up
    to the usual error of adding scores of noisy data; Du et al. 2023, arXiv:2302.11552).

    Args:
        model: the model to steer.
        context: standardises the conditions' values.
        conditions: of the form ``{where: {ventricles_ml: 40, sex: F}, weight: 1}``; ``where`` may also be the words
            of ``--where``, and holds one value a column. Without a weight it is 1. Weights of -1 and below push
            without end; -0.5 is a good NOT. Each condition costs a pass, all in one batch.
        interval: [low, high]: compose only where low < sigma <= high; the rest alone is asked elsewhere.
        force: allow values that the cohort never covers.
    """
    if not conditions:
        return model
    asked = [_row(entry, context.known.schema) for entry in conditions]
    weights = [float(entry.get("weight", 1.0)) for entry in conditions]
    named = sorted({name for row in asked for name in row})
    encoded = [context.encoder.encode([row]) for row in asked]

    def rest(cond: Condition) -> Condition:
        return reduce(Condition.drop, named, cond)

    def joined(cond: Condition, row: Mapping[str, Value], one: Condition) -> Condition:
        for name in row:
            value = one.values[:, one.columns.index(name)].to(cond.values.device)
            cond = cond.replace(name, value.expand(len(cond)))
        return cond

    def composed(x: torch.Tensor, sigma: torch.Tensor, cond: Condition, *, taps: Sequence[str] = ()) -> Prediction:
        base = rest(cond)
        parts = [joined(base, row, one) for row, one in zip(asked, encoded, strict=True)]
        out, *each = together(model, x, sigma, [base, *parts], taps)
        x0 = out.x0
        for weight, part in zip(weights, each, strict=True):
            x0 = x0 + weight * (part.x0 - out.x0)
        return Prediction(x0, features=out.features)

    def plain(x: torch.Tensor, sigma: torch.Tensor, cond: Condition, *, taps: Sequence[str] = ()) -> Prediction:
        return model(x, sigma, rest(cond), taps=taps)

    return within(interval, composed, plain)


def check(
    known: Known | None, *, conditions: Sequence[Mapping[str, Any]], interval: Sequence[float], force: bool, **_: Any
) -> None:
    """Check the conditions.

    Raises:
        InputError: an entry of another form, an unknown column, a range, or a value that the cohort never covers.
    """
    check_interval("composition", interval)
    if not conditions:
        raise InputError(f"{_SAID_IN} needs conditions, such as [{{where: {{age: 70}}, weight: 1}}]")
    for entry in conditions:
        _check_form(entry)
        if known is not None:
            request = _request(entry["where"], known.schema)
            check_request(Request(request.given, force), known.schema, known.joint, _SAID_IN)
            for name in request.given:
                known.require(name, _SAID_IN)
            _row(entry, known.schema)


def decides(*, conditions: Sequence[Mapping[str, Any]], schema: Schema, **_: Any) -> frozenset[str]:
    """Columns that are decided here and not by a sample's request."""
    return frozenset(name for entry in conditions for name in _row(entry, schema))


def _check_form(entry: Any) -> None:
    if not isinstance(entry, Mapping) or not isinstance(entry.get("where"), (Mapping, str)) or not entry["where"]:
        raise InputError(f"{_SAID_IN}: a condition is of the form {{where: {{age: 70}}, weight: 1}}, not {entry!r}")
    for key in entry:
        if key not in _KEYS:
            near = difflib.get_close_matches(str(key), _KEYS, n=1)
            hint = f"; did you mean '{near[0]}'?" if near else ""
            raise InputError(f"{_SAID_IN}: a condition has no key '{key}' (it has: {', '.join(_KEYS)}){hint}")
    weight = entry.get("weight", 1.0)
    if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not math.isfinite(weight):
        raise InputError(f"{_SAID_IN}: a weight is a finite number, not {weight!r}")


def _request(where: Mapping[str, Any] | str, schema: Schema) -> Request:
    if isinstance(where, str):
        return parse_where(where, schema, source=_SAID_IN)
    return from_values(where, schema, source=_SAID_IN)


def _row(entry: Mapping[str, Any], schema: Schema) -> dict[str, Value]:
    """A condition as one value a column."""
    row: dict[str, Value] = {}
    for name, given in _request(entry["where"], schema).given.items():
        if not isinstance(given, Fixed):
            raise InputError(f"{_SAID_IN}: '{name}={text_of(given)}' is several values; give one, or a condition each")
        if schema[name].is_text:
            raise InputError(f"{_SAID_IN} joins numbers and levels; '{name}' is a text, ask for it in the request")
        row[name] = given.value
    if not row:
        raise InputError(f"{_SAID_IN}: a condition asks for nothing; name a column, such as {{where: {{age: 70}}}}")
    return row
