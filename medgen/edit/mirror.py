"""Left for right. No pipeline does this by itself: a cohort may be one-sided."""

import re
from collections.abc import Mapping, Sequence

import numpy as np

from medgen.edit.scene import Scene, id_of, said_by
from medgen.errors import InputError

_SIDED = re.compile(r"(^|[^a-z])(left|right|lh|rh|l|r)([^a-z]|$)")


def edit(
    scene: Scene,
    target: Mapping[str, float],
    rng: np.random.Generator,
    *,
    chance: float = 0.5,
    swap: Sequence[Sequence[str]] = (),
    sided: bool = False,
) -> Scene:
    """Turn the map over its x axis, which runs from left to right; unknown voxels are turned with it.

    Args:
        scene: the label map.
        target: not used: volumes stay.
        rng: decides whether.
        chance: of turning it.
        swap: pairs of names that change places, such as ``[Left-Hippocampus, Right-Hippocampus]``.
        sided: turn even where names that say a side are in no pair of ``swap``.
    """
    with said_by("mirror"):
        check(scene.names, chance, swap, sided)
        if rng.random() >= chance:
            return scene
        other = np.arange(len(scene.names), dtype=np.int16)
        for left, right in swap:
            i, j = id_of(scene.names, left), id_of(scene.names, right)
            other[i], other[j] = j, i
        turned = np.ascontiguousarray(scene.ids[::-1])
        ids = np.where(turned >= 0, other[turned], turned).astype(np.int16)
        return Scene(ids, scene.names, scene.spacing_mm)


def check(names: Sequence[str] | None, chance: float, swap: Sequence[Sequence[str]], sided: bool) -> None:
    """Check the options; labels only where the ``names`` are known."""
    if not 0 <= chance <= 1:
        raise InputError("chance is between 0 and 1")
    if any(isinstance(pair, str) or len(pair) != 2 for pair in swap):
        raise InputError("swap holds pairs of names, such as [[Left-Hippocampus, Right-Hippocampus]]")
    if names is None:
        return
    paired = [id_of(names, name) for pair in swap for name in pair]
    if len(set(paired)) != len(paired):
        raise InputError("a label stands in swap twice; give each one other")
    with_side = sided_names(names)
    lost = [n for i, n in enumerate(names) if i not in paired and n in with_side]
    if lost and not sided:
        raise InputError(
            f"'{lost[0]}' has a side, and left for right would make it the other one; name the pairs in swap, "
            "or set sided: true where it means no side"
        )


def sided_names(names: Sequence[str]) -> list[str]:
    """Those that say a side: ``Left-Hippocampus``, ``HippocampusLeft``, ``ctx-lh-cuneus``, ``putamen_R``."""
    words = (re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", " ", name).lower() for name in names)
    return [name for name, word in zip(names, words, strict=True) if _SIDED.search(word)]
