"""Reading an experiment file, with one sentence for what is wrong in it."""

import difflib
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from medgen.config.experiment import Config
from medgen.errors import InputError
from medgen.yaml_keys import read_yaml


def load(path: Path, overrides: tuple[str, ...] = ()) -> Config:
    """Read an experiment file and apply ``--set a.b=c`` overrides (values are YAML).

    Raises:
        InputError: the file is missing, is not YAML, or holds something the schema does not know; one sentence.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        raw = read_yaml(text, path)
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; give an experiment file such as configs/phantom.yaml") from None
    except IsADirectoryError:
        raise InputError(f"{path} is a folder; give an experiment file such as configs/phantom.yaml") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not valid YAML ({' '.join(str(error).split())[:160]}); mend it") from None
    if not isinstance(raw, dict):
        raise InputError(f"{path} is not an experiment file: it must hold keys such as name, data and prepare")
    return build(raw, str(path), overrides)


def build(raw: dict[str, Any], said_in: str, overrides: tuple[str, ...] = ()) -> Config:
    """Validate a mapping, with overrides applied, as a :class:`Config`; ``said_in`` names its source in errors."""
    for override in overrides:
        _override(raw, override)
    try:
        return Config.model_validate(raw)
    except ValidationError as error:
        raise InputError(f"{said_in}: {_sentence(error)}") from None


def _override(raw: dict[str, Any], text: str) -> None:
    key, separator, value = text.partition("=")
    if not separator or not key.strip():
        raise InputError(f"--set needs KEY=VALUE, such as generate.n=32; '{text}' is not of that form")
    try:
        parsed = yaml.safe_load(value)
    except yaml.YAMLError:
        raise InputError(f"--set {text}: the value is not valid YAML") from None
    *parents, last = key.strip().split(".")
    node = raw
    for parent in parents:
        child = node.setdefault(parent, {})
        if child is None:
            child = node[parent] = {}
        if not isinstance(child, dict):
            raise InputError(f"--set {text}: '{parent}' is a value, not a section")
        node = child
    node[last] = parsed


def _sentence(error: ValidationError) -> str:
    errors = error.errors(include_url=False)
    # A misspelt key also leaves the right one missing: the misspelling is what to mend.
    first = next((e for e in errors if e["type"] == "extra_forbidden"), errors[0])
    where = [str(part) for part in first["loc"]]
    key = ".".join(where)
    if first["type"] == "extra_forbidden":
        known = _fields_at(where[:-1])
        near = difflib.get_close_matches(where[-1], known, n=1, cutoff=0.4)
        hint = f"; did you mean '{near[0]}'?" if near else f" (known: {', '.join(known)})"
        return f"unknown key '{key}'{hint}"
    if first["type"] == "missing":
        return f"key '{key}' is missing"
    message = first["msg"].removeprefix("Value error, ")
    given = "" if first["type"] == "value_error" else f", not {first['input']!r}"
    return f"key '{key}': {message[0].lower()}{message[1:]}{given}" if key else message


def _fields_at(location: list[str]) -> list[str]:
    """Field names of the section at a location such as ["autoencoder", "training"]."""
    section: type[BaseModel] = Config
    for part in location:
        annotation = section.model_fields[part].annotation if part in section.model_fields else None
        candidates = [annotation, *getattr(annotation, "__args__", ())]
        section = next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), section)
    return list(section.model_fields)
