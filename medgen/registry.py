"""kind -> function: a kind named in a config is the name of a module in a room of the house.

A room that takes plug-ins (``sampling``, ``steering``, ``formats``, ...) holds one module a kind. The module
exposes the function the room's seam names (``sample``, ``wrap``, ``read``, ...). Nothing is listed anywhere: a new
file is found because it is there, and only modules inside the ``medgen`` package can be named, so that a config
imports no code.
"""

import difflib
import importlib
import inspect
import math
import pkgutil
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from medgen.errors import InputError

_KIND = re.compile(r"[a-z][a-z0-9_]*")


def kinds(room: str, function: str) -> list[str]:
    """Names of the modules in ``medgen.<room>`` that define ``function``, sorted."""
    package = importlib.import_module(f"medgen.{room}")
    names = [m.name for m in pkgutil.iter_modules(package.__path__) if not m.name.startswith("_")]
    return sorted(n for n in names if hasattr(importlib.import_module(f"medgen.{room}.{n}"), function))


def resolve(room: str, kind: str, function: str) -> Callable[..., Any]:
    """Return ``medgen.<room>.<kind>.<function>``.

    Raises:
        InputError: no such kind; the message lists the known ones and the nearest.
    """
    if _KIND.fullmatch(kind):
        try:
            module = importlib.import_module(f"medgen.{room}.{kind}")
        except ModuleNotFoundError as error:
            if error.name != f"medgen.{room}.{kind}":
                raise
        else:
            if hasattr(module, function):
                found: Callable[..., Any] = getattr(module, function)
                return found
    known = kinds(room, function)
    near = difflib.get_close_matches(kind, known, n=1)
    hint = f"; did you mean '{near[0]}'?" if near else ""
    raise InputError(f"unknown {room} kind '{kind}' (known: {', '.join(known)}){hint}")


def beside(room: str, kind: str, function: str, name: str) -> Any:
    """Something optional of a kind's module, beside the ``function`` that the room's seam names; None without it.

    Raises:
        InputError: see :func:`resolve`.
    """
    resolve(room, kind, function)
    return getattr(importlib.import_module(f"medgen.{room}.{kind}"), name, None)


def options_of(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The options of a plug-in: its keyword-only parameters that carry a default."""
    parameters = inspect.signature(function).parameters
    return {
        name: p
        for name, p in parameters.items()
        if p.kind is inspect.Parameter.KEYWORD_ONLY and p.default is not inspect.Parameter.empty
    }


def check_options(room: str, kind: str, function: str, options: Mapping[str, Any]) -> None:
    """Check the options a config gives to a kind against its signature, before anything runs.

    Raises:
        InputError: an unknown option (names the nearest) or a value whose type differs from the default's.
    """
    allowed = options_of(resolve(room, kind, function))
    for name, value in options.items():
        if name not in allowed:
            near = difflib.get_close_matches(name, list(allowed), n=1)
            hint = f"; did you mean '{near[0]}'?" if near else ""
            raise InputError(f"{room} '{kind}' has no option '{name}' (it has: {', '.join(allowed) or 'none'}){hint}")
        expected = _expected(allowed[name], value)
        if expected:
            raise InputError(f"option '{name}' of {room} '{kind}' must be {expected}, not {value!r}")


def _expected(option: inspect.Parameter, value: Any) -> str:
    """What the option's default says that its value must be; empty where ``value`` is that."""
    default = option.default
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if isinstance(default, bool):  # before int: bool is one
        return "" if isinstance(value, bool) else "true or false"
    if isinstance(default, int) and option.annotation not in (float, "float"):
        return "" if is_number and isinstance(value, int) else "a whole number"
    if isinstance(default, (int, float)):
        if not is_number:
            return "a number"
        return "" if math.isfinite(value) else "a finite number"
    if isinstance(default, str):
        return "" if isinstance(value, str) else "text"
    if isinstance(default, Path):
        return "" if isinstance(value, (str, Path)) else "a path"
    if isinstance(default, Mapping):
        return "" if isinstance(value, Mapping) else "a mapping"
    if isinstance(default, (tuple, list)):
        return "" if isinstance(value, (tuple, list)) else "a list"
    return ""
