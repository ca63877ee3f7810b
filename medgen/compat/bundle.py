"""A bundle's configuration: what the shapes of weights do not tell. Nothing in it is evaluated.

MONAI's configurations hold ``@name`` for another entry and ``$...`` for Python. References to plain entries are
followed; expressions are left out as if they were not there.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medgen.errors import InputError
from medgen.files import read_json

_AUTOENCODER = ("autoencoder_def", "autoencoder")
_NETWORK = ("diffusion_unet_def", "diffusion_def", "network_def", "diffusion")
_SCHEDULER = ("noise_scheduler", "scheduler")


@dataclass(frozen=True)
class Declared:
    """What a configuration says of the two networks and the noise schedule; empty where there is none."""

    path: Path | None = None
    autoencoder: Mapping[str, Any] = field(default_factory=dict)
    network: Mapping[str, Any] = field(default_factory=dict)
    scheduler: Mapping[str, Any] = field(default_factory=dict)


def read_bundle(path: Path | None) -> Declared:
    """Read a bundle's JSON, such as ``configs/inference.json``.

    Raises:
        InputError: not JSON, or no definition of the two networks in it.
    """
    if path is None:
        return Declared()
    raw = read_json(path)
    if not isinstance(raw, Mapping):
        raise InputError(f"{path} is not a bundle's configuration; give the JSON that defines its networks")
    parts = [_section(raw, names) for names in (_AUTOENCODER, _NETWORK, _SCHEDULER)]
    if not parts[0] or not parts[1]:
        names = " and ".join((_AUTOENCODER[0], _NETWORK[0]))
        raise InputError(f"{path} defines no networks ({names}); give the bundle's JSON that does")
    return Declared(path, *parts)


def _section(raw: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    for name in names:
        section = raw.get(name)
        if isinstance(section, Mapping):
            values = {key: _follow(raw, value) for key, value in section.items() if not key.startswith("_requires")}
            return {key: value for key, value in values.items() if not _is_code(value)}
    return {}


def _follow(raw: Mapping[str, Any], value: Any) -> Any:
    """The entry that a reference names; one step, as published configurations need no more."""
    if isinstance(value, str) and value.startswith("@"):
        return raw.get(value[1:], "$")
    return value


def _is_code(value: Any) -> bool:
    return isinstance(value, Mapping) or (isinstance(value, str) and value[:1] in ("$", "@"))


def told(declared: Declared, part: str, name: str, default: Any) -> Any:
    """An entry of a part ("autoencoder", "network" or "scheduler"), of the default's type.

    Raises:
        InputError: another type.
    """
    value = getattr(declared, part).get(name, default)
    wanted = (int, float) if isinstance(default, float) else type(default)
    if not isinstance(value, wanted) or (isinstance(value, bool) and not isinstance(default, bool)):
        raise InputError(f"{declared.path}: {name} is {value!r}, where something like {default!r} is needed; mend it")
    return value


def agree(declared: Declared, part: str, weights: Mapping[str, Any], path: Path) -> None:
    """Stop where the configuration contradicts the weights.

    Args:
        declared: the configuration.
        part: "autoencoder" or "network".
        weights: entry -> what the weights have; a tuple also meets one number for all levels.
        path: of the weights.

    Raises:
        InputError: names the entry and both values.
    """
    section = getattr(declared, part)
    for name, has in weights.items():
        if name not in section:
            continue
        says = section[name]
        if isinstance(has, tuple):
            says = tuple(says) if isinstance(says, (list, tuple)) else (says,) * len(has)
        if says != has:
            raise InputError(
                f"{declared.path} says {name} {_text(says)}, but {path.name} has {_text(has)}; "
                "give the configuration that belongs to these weights"
            )


def per_level(declared: Declared, name: str, default: Sequence[int], path: Path) -> tuple[int, ...]:
    """A list of whole numbers of the network, one a level, or one number for all.

    Raises:
        InputError: another length or type.
    """
    value = declared.network.get(name, list(default))
    listed = list(value) if isinstance(value, (list, tuple)) else [value] * len(default)
    if len(listed) != len(default) or any(not isinstance(v, int) for v in listed):
        raise InputError(f"{declared.path}: {name} is {value!r}, but {path.name} has {len(default)} levels; mend it")
    return tuple(listed)


def _text(value: Any) -> str:
    return str(list(value)) if isinstance(value, tuple) else str(value)
