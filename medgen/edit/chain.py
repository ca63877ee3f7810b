"""Edits as users write them: a list of ``{kind: ..., <options>}``, applied in order to a label map."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medgen.edit.scene import Scene, has, said_by
from medgen.errors import InputError
from medgen.files import plain, sha256_file
from medgen.registry import beside, check_options, options_of, resolve

Step = Mapping[str, Any]
Steps = Sequence[Step]

_STREAM = 31  # tells these draws from others keyed by seed and index


def check(steps: Steps, names: Sequence[str] | None = None) -> None:
    """Check kinds, options and their values.

    Args:
        steps: the entries.
        names: of the label ids, the background first; where they are not known yet, labels are not checked.

    Raises:
        InputError: naming the entry, and the nearest name where one is unknown.
    """
    for step in steps:
        kind, options = _parts(step)
        check_options("edit", kind, "edit", options)
        look = _hook(kind, "check")
        filled = {name: p.default for name, p in options_of(resolve("edit", kind, "edit")).items()} | options
        if look:
            with said_by(kind):
                look(names, **filled)
        label = filled.get("label")
        if names is not None and filled.get("new") and isinstance(label, str) and not has(names, label):
            names = (*names, label)  # what an entry adds, later ones may name


def apply(steps: Steps, scene: Scene, target: Mapping[str, float], seed_key: tuple[int, int, int]) -> Scene:
    """The label map after all edits.

    Args:
        steps: the entries.
        scene: the label map.
        target: volumes in ml asked for, by name of the label or of its covariate; empty where nothing is asked.
        seed_key: (seed, index, attempt) of the sample: with the position of an entry, the key of its draws.

    Raises:
        InputError: see :func:`check`; or an edit that this label map does not allow.
    """
    check(steps, scene.names)
    seed, index, attempt = seed_key
    for position, step in enumerate(steps):
        kind, options = _parts(step)
        rng = np.random.default_rng([seed & (2**63 - 1), index, attempt, position, _STREAM])
        scene = resolve("edit", kind, "edit")(scene, target, rng, **options)
    return scene


def recorded(steps: Steps) -> list[dict[str, Any]]:
    """The entries as plain JSON for a sidecar: a file by its SHA-256, a folder by those of its files, no path."""
    rows = []
    for step in steps:
        kind, options = _parts(step)
        allowed = options_of(resolve("edit", kind, "edit"))
        paths = {n for n in options if n in allowed and isinstance(allowed[n].default, Path)}
        rows.append({"kind": kind, **{n: _hash(Path(v)) if n in paths else plain(v) for n, v in options.items()}})
    return rows


def _parts(step: Step) -> tuple[str, dict[str, Any]]:
    """Kind and options of an entry."""
    if not isinstance(step, Mapping) or not isinstance(step.get("kind"), str):
        raise InputError(f"an edit names its kind, such as {{kind: warp, displacement_mm: 3}}; {step!r} does not")
    return step["kind"], {name: value for name, value in step.items() if name != "kind"}


def _hook(kind: str, name: str) -> Callable[..., Any] | None:
    found: Callable[..., Any] | None = beside("edit", kind, "edit", name)
    return found


def _hash(path: Path) -> str | list[str]:
    return sorted(sha256_file(p) for p in path.rglob("*") if p.is_file()) if path.is_dir() else sha256_file(path)
