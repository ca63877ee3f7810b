"""Lesions put where they may be, of given volumes and irregular shapes."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy import ndimage

from medgen.edit.blobs import Shape, bank_score, flood, noise_score, read_bank
from medgen.edit.scene import Scene, asked_ml, has, id_of, ids_of, said_by
from medgen.errors import InputError

_CORNERS = np.ones((3, 3, 3), dtype=bool)
_TRIES = 40
_ROOM = 0.7  # of a ball's radius: how deep in its surroundings a seed should lie, where they are as thick as that
_NO_BANK = Path()


def edit(
    scene: Scene,
    target: Mapping[str, float],
    rng: np.random.Generator,
    *,
    label: object = None,
    n: Sequence[int] = (1, 5),
    ml: Sequence[float] = (),
    within: Sequence[str] = (),
    near: str = "",
    near_mm: float = 10.0,
    touching: bool = False,
    bank: Path = _NO_BANK,
    new: bool = False,
) -> Scene:
    """Insert lesions, each one connected piece of its drawn volume to the voxel.

    Args:
        scene: the label map.
        target: volumes asked for; without ``ml``, what is asked of the label in all, less what is there, is shared
            unequally among the lesions. Nothing asked, nothing done.
        rng: draws numbers, volumes, places and shapes.
        label: name or id of the lesions' label.
        n: fewest and most lesions.
        ml: smallest and largest volume of one lesion, drawn evenly on a logarithmic scale.
        within: names of labels that lesions may replace; none: all but the background, or the background itself where
            there is nothing else.
        near: name of a structure that lesions lie near.
        near_mm: distance from it over which their number falls to a third.
        touching: let lesions touch each other and those already there (they may then merge).
        bank: label map, or folder of label maps, whose lesions lend their shapes; without it, blobs.
        new: add ``label`` to the names where it is not among them.

    Raises:
        InputError: there is no room.
    """
    with said_by("lesion_insert"):
        check(scene.names, label, n, ml, within, near, near_mm, touching, bank, new)
        if new and isinstance(label, str) and not has(scene.names, label):
            scene = replace(scene, names=(*scene.names, label))
        one = id_of(scene.names, label)
        volumes = _volumes(scene, one, target, rng, n, ml)
        if not len(volumes):
            return scene
        shapes = read_bank(Path(bank)) if Path(bank) != _NO_BANK else []
        there = scene.ids == one
        free = _may(scene, one, within) & ~there & (touching | ~ndimage.binary_dilation(there, structure=_CORNERS))
        depth, weight = _depth_mm(free, scene.spacing_mm), _weight(scene, near, near_mm)
        ids = scene.ids.copy()
        # The largest first: it finds its room while there is some.
        for volume in np.sort(volumes)[::-1]:
            count = max(1, round(volume / scene.voxel_ml))
            box, lesion = _placed(scene, free, depth, count, weight, shapes, rng, touching)
            ids[box][lesion] = one
            taken = lesion if touching else ndimage.binary_dilation(lesion, structure=_CORNERS)
            free[box] &= ~taken
            depth[box] = np.minimum(depth[box], ndimage.distance_transform_edt(~taken, sampling=scene.spacing_mm))
        scene = scene.with_ids(ids)
        return scene


def check(
    names: Sequence[str] | None,
    label: object,
    n: Sequence[int],
    ml: Sequence[float],
    within: Sequence[str],
    near: str,
    near_mm: float,
    touching: bool,
    bank: Path | str,
    new: bool,
) -> None:
    """Check the options; labels only where the ``names`` are known."""
    if not isinstance(label, (str, int)) or isinstance(label, bool) or label in ("", 0):
        raise InputError("name the lesions' label, such as label: lesion")
    if not _is_range(n, 0) or not all(isinstance(v, int) for v in n):
        raise InputError("n is the fewest and the most lesions, such as n: [1, 5]")
    if len(ml) and (not _is_range(ml, 0) or ml[0] <= 0):
        raise InputError("ml is the smallest and the largest volume of a lesion in ml, such as ml: [0.1, 2]")
    if near_mm <= 0:
        raise InputError("near_mm must be above 0")
    if Path(bank) != _NO_BANK and not Path(bank).exists():
        raise InputError(f"bank {bank} is not there; give a label map or a folder of them")
    if names is None:
        return
    if (has(names, label) or not new) and id_of(names, label) == 0:
        raise InputError("the background is not a lesion; name another label")
    ids_of(names, [*within, *([near] if near else [])])


def _is_range(values: Sequence[float], least: float) -> bool:
    numbers = all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values)
    return numbers and len(values) == 2 and least <= values[0] <= values[1]


def _volumes(
    scene: Scene, one: int, target: Mapping[str, float], rng: np.random.Generator, n: Sequence[int], ml: Sequence[float]
) -> np.ndarray:
    """Volumes (n,) in ml, each of at least a voxel."""
    count = int(rng.integers(n[0], n[1] + 1))
    if len(ml):
        drawn: np.ndarray = np.exp(rng.uniform(np.log(ml[0]), np.log(ml[1]), count))
        return np.maximum(drawn, scene.voxel_ml)
    name = scene.names[one]
    asked, have = asked_ml(target, name), scene.volumes_ml()[name]
    if asked is None:
        return np.zeros(0)
    voxels = round((asked - have) / scene.voxel_ml)
    if voxels < 0:
        raise InputError(
            f"{asked:g} ml of '{name}' are asked for and {have:.4g} ml are there; put lesion_remove before it"
        )
    count = min(max(count, 1), voxels)
    if not count:
        return np.zeros(0)
    # Whole voxels that sum to what was asked: at least one each, the rest shared at random.
    shares = rng.multinomial(voxels - count, rng.dirichlet(np.ones(count)))
    return (1 + shares) * scene.voxel_ml


def _may(scene: Scene, one: int, within: Sequence[str]) -> np.ndarray:
    """(X, Y, Z) bool: where a lesion may lie."""
    if within:
        return np.isin(scene.ids, [i for i in ids_of(scene.names, within) if i != one])
    tissue = (scene.ids > 0) & (scene.ids != one)
    return tissue if tissue.any() else scene.ids == 0


def _weight(scene: Scene, near: str, near_mm: float) -> np.ndarray | None:
    """(X, Y, Z) how likely a seed is, by its distance from a structure; None where it may be anywhere."""
    if not near:
        return None
    there = scene.ids == id_of(scene.names, near)
    if not there.any():
        raise InputError(f"'{near}' is not in the label map, so no lesion can lie near it; drop near")
    weight: np.ndarray = np.exp(-ndimage.distance_transform_edt(~there, sampling=scene.spacing_mm) / near_mm)
    return weight


def _depth_mm(free: np.ndarray, spacing_mm: Sequence[float]) -> np.ndarray:
    """(X, Y, Z) distance to where no lesion may lie, the grid's outside included."""
    depth = np.zeros(free.shape)
    found = ndimage.find_objects(free.view(np.uint8))
    for box in found:
        inside = np.pad(free[box], 1)
        depth[box] = ndimage.distance_transform_edt(inside, sampling=spacing_mm)[1:-1, 1:-1, 1:-1]
    return depth


def _placed(
    scene: Scene,
    free: np.ndarray,
    depth_mm: np.ndarray,
    count: int,
    weight: np.ndarray | None,
    shapes: Sequence[Shape],
    rng: np.random.Generator,
    touching: bool,
) -> tuple[tuple[slice, ...], np.ndarray]:
    """A box of the scene, and in it (X, Y, Z) bool a lesion of ``count`` voxels with all that it touches."""
    radius_mm = (3 * count * scene.voxel_ml * 1000 / (4 * np.pi)) ** (1 / 3)
    seeds = np.flatnonzero(free & (depth_mm >= min(_ROOM * radius_mm, 0.8 * float(depth_mm.max()))))
    chance = None
    if weight is not None and len(seeds):
        chance = weight.ravel()[seeds] + 1e-30
        chance = chance / chance.sum()
    # A box in which a lesion that follows thin surroundings finds room too.
    half = [int(np.ceil(2.5 * radius_mm / s)) + 2 for s in scene.spacing_mm]
    for _ in range(_TRIES if len(seeds) else 0):
        at = [int(i) for i in np.unravel_index(int(rng.choice(seeds, p=chance)), free.shape)]
        # One voxel more on every side, so that the surroundings of the lesion lie in the box too.
        box = tuple(slice(max(0, a - h - 1), a + h + 2) for a, h in zip(at, half, strict=True))
        local = [a - part.start for a, part in zip(at, box, strict=True)]
        inside = free[box].copy()
        for axis, (a, h, n) in enumerate(zip(at, half, free.shape, strict=True)):
            faces = [i for i, beyond in ((0, a - h - 1 < 0), (-1, a + h + 2 > n)) if not beyond]
            for i in faces:
                inside[tuple(i if k == axis else slice(None) for k in range(3))] = False
        if shapes:
            score = bank_score(inside.shape, scene.spacing_mm, local, count * scene.voxel_ml, shapes, rng)
        else:
            score = noise_score(inside.shape, scene.spacing_mm, local, radius_mm, rng)
        lesion = flood(score, inside, local, count)
        if lesion.sum() == count:
            return box, lesion
    where = "where it may be" if touching else "where it may be without touching another"
    raise InputError(
        f"no room for a lesion of {count * scene.voxel_ml:.3g} ml {where}; ask for smaller or fewer ones, name more "
        "labels in within, or set touching: true"
    )
