"""YAML as people write it: a key that stands twice is a mistake, of which YAML would silently keep the last."""

from pathlib import Path
from typing import Any

import yaml

from medgen.errors import InputError


def read_yaml(text: str, said_in: Path) -> Any:
    """Parse YAML.

    Args:
        text: of the file.
        said_in: the file, for the message.

    Raises:
        InputError: a key stands twice in one mapping.
        yaml.YAMLError: it is not YAML; the caller knows what it should be.
    """
    parsed = yaml.safe_load(text)
    _refuse_twins(yaml.compose(text, Loader=yaml.SafeLoader), said_in)
    return parsed


def _refuse_twins(node: yaml.Node | None, said_in: Path) -> None:
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            if key.value in seen:
                raise InputError(f"{said_in} has '{key.value}' twice (line {key.start_mark.line + 1}); keep one")
            seen.add(key.value)
            _refuse_twins(value, said_in)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _refuse_twins(item, said_in)
