"""Lesions taken away, all or by size, their place filled by what surrounds them."""

from collections.abc import Mapping, Sequence

import numpy as np
from scipy import ndimage

from medgen.edit.scene import Scene, id_of, nearest_other, said_by
from medgen.errors import InputError
from medgen.measure.box import box_of

_CORNERS = np.ones((3, 3, 3), dtype=bool)
_OPEN = 0.5  # share of a lesion's surface at the background above which background may fill it


def edit(
    scene: Scene,
    target: Mapping[str, float],
    rng: np.random.Generator,
    *,
    label: object = None,
    below_ml: float = 0.0,
    above_ml: float = 0.0,
) -> Scene:
    """Take away connected lesions (26 neighbours).

    Each voxel gets the nearest other label. That is the background only for a lesion with half of its surface at the
    background; one that other tissue encloses is filled with tissue.

    Args:
        scene: the label map.
        target: not used: what is removed is said by size.
        rng: not used: nothing here is random.
        label: name or id of the lesions' label.
        below_ml: take away lesions smaller than this.
        above_ml: take away lesions larger than this; where neither bound is given, all.
    """
    with said_by("lesion_remove"):
        check(scene.names, label, below_ml, above_ml)
        one = id_of(scene.names, label)
        # What a lesion is filled from lies around it; a margin keeps the distances local.
        box = box_of(scene.ids == one, 16)
        if box is None:
            return scene
        ids = scene.ids.copy()
        ids[box] = _filled(scene.ids[box], scene, one, below_ml, above_ml)
        return scene.with_ids(ids)


def check(names: Sequence[str] | None, label: object, below_ml: float, above_ml: float) -> None:
    """Check the options; the label only where the ``names`` are known."""
    if not isinstance(label, (str, int)) or label in ("", 0):
        raise InputError("name the lesions' label, such as label: lesion")
    if below_ml < 0 or above_ml < 0:
        raise InputError("below_ml and above_ml must not be below 0")
    if below_ml and above_ml and below_ml > above_ml:
        raise InputError("below_ml must not be above above_ml, for every lesion is then either")
    if names is not None and id_of(names, label) == 0:
        raise InputError("the background is not a lesion; name another label")


def _filled(ids: np.ndarray, scene: Scene, one: int, below_ml: float, above_ml: float) -> np.ndarray:
    parts, count = ndimage.label(ids == one, structure=_CORNERS)
    size_ml = np.bincount(parts.ravel(), minlength=count + 1) * scene.voxel_ml
    gone = (size_ml < below_ml) & (below_ml > 0) | (size_ml > above_ml) & (above_ml > 0)
    if not below_ml and not above_ml:
        gone[:] = True
    gone[0] = False
    if not gone.any():
        return ids
    open_ = gone & (_at_background(ids, parts, count) >= _OPEN)
    for some, first in ((gone & ~open_, 1), (open_, 0)):
        source = (ids >= first) & (ids != one)
        if not source.any():  # nothing but background around it
            source = (ids >= 0) & (ids != one)
        where = some[parts]
        if where.any():
            ids = np.where(where, nearest_other(ids, source, scene.spacing_mm), ids)
    return ids


def _at_background(ids: np.ndarray, parts: np.ndarray, count: int) -> np.ndarray:
    """(count + 1,) share of each part's surface that faces the background; what lies beyond the grid does not count."""
    faces, outside = np.zeros(count + 1), np.zeros(count + 1)
    for axis in range(3):
        for near, far in ((slice(None, -1), slice(1, None)), (slice(1, None), slice(None, -1))):
            here = parts[tuple(near if a == axis else slice(None) for a in range(3))]
            beside = ids[tuple(far if a == axis else slice(None) for a in range(3))]
            there = parts[tuple(far if a == axis else slice(None) for a in range(3))]
            faces += np.bincount(here[there != here], minlength=count + 1)
            outside += np.bincount(here[(there != here) & (beside == 0)], minlength=count + 1)
    share: np.ndarray = outside / np.maximum(faces, 1)
    return share
