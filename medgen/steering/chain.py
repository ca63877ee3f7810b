"""Steering as users write it: a list of ``{kind: ..., <options>}``, applied in order, the first one innermost.

The last entry sees what all before it made of the model. From Python an entry may also be a function Model -> Model.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from medgen.cohort.schema import Schema
from medgen.errors import InputError
from medgen.files import plain, sha256_file
from medgen.models.seam import Model
from medgen.registry import beside, check_options, options_of, resolve
from medgen.steering.context import Context, Known

_SELDOM = 1e-3
_LEFT_OUT = {"all": ("covariates", "drop_all"), "some": ("single covariates", "drop_each")}

Step = Mapping[str, Any] | Callable[[Model], Model]
Steps = Sequence[Step]


def check(steps: Steps, guidance: float = 1.0, known: Known | None = None) -> None:
    """Check kinds, options and their values.

    Args:
        steps: the entries.
        guidance: the short form of a ``cfg`` entry.
        known: what can be asked of the model; where it is not known yet, columns and labels are not checked.

    Raises:
        InputError: naming the entry, and the nearest name where one is unknown.
    """
    for step in steps:
        if not isinstance(step, Mapping):
            if not callable(step):
                raise InputError(f"a steering entry is of the form {{kind: cfg, scale: 2}}, not {step!r}")
            continue
        kind, options = _parts(step)
        check_options("steering", kind, "wrap", options)
        look = _hook(kind, "check")
        if look:
            look(known, **_filled(kind, options))
        if kind == "cfg" and guidance != 1:
            raise InputError(
                f"guidance {guidance:g} and a 'cfg' entry in steering would multiply; "
                "set guidance to 1 or drop the entry"
            )


def check_nulls(
    steps: Steps, guidance: float, drop_all: float, drop_each: float, *, columns: int | None = None
) -> None:
    """Refuse to guide by what nothing was asked of: a null that training hardly showed the network is noise.

    Args:
        steps: the entries.
        guidance: the short form of a ``cfg`` entry.
        drop_all: chance with which training left out all covariates of a row.
        drop_each: chance with which it left out each on its own.
        columns: how many covariates the network is told; None where that is not known yet, which refuses less.

    Raises:
        InputError: an entry compares with a row without covariates ("all") or without some of them ("some"), and
            training left out as much in less than one row of a thousand.
    """
    nothing = drop_all + (1 - drop_all) * drop_each ** (columns or 1)
    chance = {"all": nothing, "some": nothing if columns == 1 else drop_each}
    kinds = [_parts(step)[0] for step in steps if isinstance(step, Mapping)]
    needing = [(f"steering '{kind}'", need) for kind in kinds if (need := _hook(kind, "NEEDS_NULL"))]
    for what, need in ([(f"guidance {guidance:g}", "all")] if guidance != 1 else []) + needing:
        if chance[need] < _SELDOM:
            words, key = _LEFT_OUT[need]
            raise InputError(
                f"{what} needs a model that was also trained without {words}; train with diffusion.{key} above 0, or "
                "leave it out"
            )


def apply(model: Model, steps: Steps, guidance: float, context: Context) -> Model:
    """The model with all steering around it: ``guidance`` innermost, then the entries in order.

    Raises:
        InputError: see :func:`check`; or a second model that does not fit.
    """
    check(steps, guidance, context.known)
    for step in ({"kind": "cfg", "scale": guidance}, *steps):
        if not isinstance(step, Mapping):
            model = step(model)
            continue
        kind, options = _parts(step)
        wrap = resolve("steering", kind, "wrap")
        given = {"context": context} if "context" in inspect.signature(wrap).parameters else {}
        model = wrap(model, **given, **options)
    return model


def decides(steps: Steps, schema: Schema) -> frozenset[str]:
    """Columns that the steering decides instead of a sample's request."""
    found: frozenset[str] = frozenset()
    for step in steps:
        if isinstance(step, Mapping):
            kind, options = _parts(step)
            hook = _hook(kind, "decides")
            found |= hook(schema=schema, **_filled(kind, options)) if hook else frozenset()
    return found


def recorded(steps: Steps) -> list[dict[str, Any]]:
    """The entries as plain JSON for a sidecar: a second model by the SHA-256 of its model.json, a function by name."""
    rows = []
    for step in steps:
        if isinstance(step, Mapping):
            rows.append(plain(moved([step], lambda folder: sha256_file(folder / "model.json"))[0]))
        else:
            function = getattr(step, "func", step)
            module, name = (getattr(function, key, "") for key in ("__module__", "__qualname__"))
            rows.append({"kind": "python", "function": f"{module}.{name or type(function).__qualname__}"})
    return rows


def moved(steps: Sequence[Mapping[str, Any]], place: Callable[[Path], Path | str]) -> list[dict[str, Any]]:
    """The entries with every option that is a path given by ``place``: a model folder may be copied elsewhere."""
    rows = []
    for step in steps:
        kind, options = _parts(step)
        allowed = options_of(resolve("steering", kind, "wrap"))
        paths = {n for n in options if n in allowed and isinstance(allowed[n].default, Path)}
        rows.append({"kind": kind, **{n: str(place(Path(v))) if n in paths else v for n, v in options.items()}})
    return rows


def _parts(step: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Kind and options of an entry."""
    kind = step.get("kind")
    if not isinstance(kind, str):
        raise InputError(f"a steering entry names its kind, such as {{kind: cfg, scale: 2}}; {dict(step)!r} does not")
    return kind, {name: value for name, value in step.items() if name != "kind"}


def _filled(kind: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options with the defaults of those not given."""
    return {name: p.default for name, p in options_of(resolve("steering", kind, "wrap")).items()} | dict(options)


def _hook(kind: str, name: str) -> Any:
    return beside("steering", kind, "wrap", name)
