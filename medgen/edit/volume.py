"""A structure grown or shrunk to a volume: its neighbours give way, and it hangs together as before."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from medgen.edit import push
from medgen.edit.flow import border_distance_mm, coarse, pull, refine, smoothstep
from medgen.edit.homotopy import follow, to_count
from medgen.edit.scene import Scene, asked_ml, filled, id_of, ids_of, nearest_other, said_by
from medgen.errors import InputError
from medgen.measure.box import box_of

TOLERANCE = 0.01
_CELLS = 200_000  # coarse cells of a push, at most about
_FINE_CELLS = 100_000  # up to here, cells may be voxels
_EASE_MM = 6.0  # over which what may move comes to rest at what is held
_TOUCH = 0.05  # share of a structure's surface at the background above which it lies on its rim
_GIVE = 0.85  # of what gives way, how much it can give: the rest stays as compressed tissue
_ROUNDS = 80


def edit(
    scene: Scene,
    target: Mapping[str, float],
    rng: np.random.Generator,
    *,
    structure: str = "",
    ml: float = 0.0,
    by: float = 0.0,
    reach_mm: float = 25.0,
    gives: Sequence[str] = (),
    hold: Sequence[str] = ("auto",),
) -> Scene:
    """Bring a structure to a volume by a smooth flow out of it or into it.

    Every part of it grows in proportion. Tissue around it is pushed aside and compressed, less and less up to
    ``reach_mm``. Its pieces, tunnels and cavities stay as they are, voxel by voxel, and the volume is met to the voxel
    wherever that allows it. Of thin neighbours, such as sulci of one voxel, parts may vanish when compressed.

    Args:
        scene: the label map.
        target: volumes asked for; used where neither ``ml`` nor ``by`` is given. Nothing asked, nothing done.
        rng: not used: nothing here is random.
        structure: name of the label.
        ml: volume wanted.
        by: volume wanted, as a multiple of what it is.
        reach_mm: how far from the structure tissue gives way.
        gives: names of labels that give or take the volume; none: all that is not held.
        hold: names of labels that stay where they are. ``auto`` holds the background where the structure lies inside
            (under 5% of its surface touch it): the brain keeps its outline while its ventricles grow.

    Raises:
        InputError: the structure is not there, or the volume cannot be reached.
    """
    with said_by("volume"):
        check(scene.names, structure, ml, by, reach_mm, gives, hold)
        one = id_of(scene.names, structure)
        wanted = ml or asked_ml(target, scene.names[one])
        have = int((scene.ids == one).sum())
        if by and have:
            wanted = by * have * scene.voxel_ml
        if wanted is None:
            return scene
        name = scene.names[one]
        if not have:
            raise InputError(f"'{name}' is not in the label map and cannot be resized; insert it or drop the request")
        count = round(wanted / scene.voxel_ml)
        if count < 1:
            raise InputError(f"{wanted:g} ml of '{name}' are less than a voxel; use lesion_remove to take it away")
        if count == have:
            return scene
        held = _held(filled(scene), one, scene.names, hold)
        return scene.with_ids(_resized(scene, one, count, reach_mm, ids_of(scene.names, gives), held))


def check(
    names: Sequence[str] | None,
    structure: str,
    ml: float,
    by: float,
    reach_mm: float,
    gives: Sequence[str],
    hold: Sequence[str],
) -> None:
    """Check the options; labels only where the ``names`` are known."""
    if not structure:
        raise InputError("name what to resize, such as structure: ventricles")
    if ml and by:
        raise InputError("ml and by both say how large it gets; give one of them")
    if ml < 0 or by < 0 or reach_mm <= 0:
        raise InputError("ml and by must not be below 0, and reach_mm must be above 0")
    if names is not None:
        one = id_of(names, structure)
        others = [*ids_of(names, gives), *ids_of(names, [h for h in hold if h != "auto"])]
        if one in others:
            raise InputError(f"'{names[one]}' is resized and cannot be among gives or hold")


def _held(ids: np.ndarray, one: int, names: Sequence[str], hold: Sequence[str]) -> list[int]:
    """Ids of what stays where it is."""
    held = set(ids_of(names, [h for h in hold if h != "auto"]))
    if "auto" in hold and one != 0:
        shell = _shell(ids == one)
        if shell.any() and (ids[shell] == 0).mean() < _TOUCH:
            held.add(0)
    return sorted(held)


def _shell(mask: np.ndarray) -> np.ndarray:
    """Voxels outside that touch the mask by a face."""
    shell: np.ndarray = ndimage.binary_dilation(mask) & ~mask
    return shell


@dataclass(frozen=True)
class _Crop:
    """The part of a scene that a push works on, and what is what in it, each (X, Y, Z)."""

    box: tuple[slice, ...]
    ids: np.ndarray
    inside: np.ndarray
    allowed: np.ndarray
    gives: np.ndarray
    free: np.ndarray
    factors: tuple[int, ...]
    counted: np.ndarray


def _cropped(scene: Scene, one: int, reach_mm: float, giving: list[int], held: list[int]) -> _Crop:
    ids, spacing = filled(scene), scene.spacing_mm
    margin = [int(np.ceil(reach_mm / s)) + 2 for s in spacing]
    box = box_of(ids == one, margin)
    assert box is not None, "the structure is there"
    ids = ids[box]
    inside, at_rest = ids == one, np.isin(ids, held)
    away = ndimage.distance_transform_edt(~inside, sampling=spacing)
    free = smoothstep((border_distance_mm(ids.shape, spacing) + 0.5 * min(spacing)) / min(_EASE_MM, reach_mm))
    if at_rest.any():
        free = free * smoothstep(ndimage.distance_transform_edt(~at_rest, sampling=spacing) / _EASE_MM)
    others = ~inside & ~at_rest & (np.isin(ids, giving) if giving else True)
    gives = others * smoothstep(1.0 - away / reach_mm) * free
    length = max((ids.size * float(np.prod(spacing)) / _CELLS) ** (1 / 3), min(spacing))
    if ids.size > _FINE_CELLS:
        length = max(length, 2 * min(spacing))
    factors = tuple(max(1, round(length / s)) for s in spacing)
    known = scene.known[box]
    return _Crop(box, ids, inside, ~at_rest & known, gives, free, factors, known)


def _resized(scene: Scene, one: int, count: int, reach_mm: float, giving: list[int], held: list[int]) -> np.ndarray:
    """(X, Y, Z) ids with ``count`` known voxels of the structure."""
    crop = _cropped(scene, one, reach_mm, giving, held)
    name, have = scene.names[one], int((crop.inside & crop.counted).sum())
    _need_room(crop, count - have, name, scene.voxel_ml)
    spacing = tuple(s * f for s, f in zip(scene.spacing_mm, crop.factors, strict=True))
    inside, gives, free = (coarse(a, crop.factors) for a in (crop.inside, crop.gives, crop.free))
    flow = push.start(inside, gives, free, spacing)
    mask, score, lag, gain = crop.inside.copy(), crop.inside.astype(np.float32), 0, 1.0
    for _ in range(_ROUNDS):
        now = int((mask & crop.counted).sum())
        if abs(now / count - 1.0) <= 0.5 * TOLERANCE or lag > 4:
            break
        flow, time = push.step(flow, float(np.log(count / max(now, 1))) / gain)
        mask, score = _moved(crop, flow, mask)
        grown = float(np.log(max(int((mask & crop.counted).sum()), 1) / max(now, 1))) / time
        lag = lag + 1 if grown < 0.1 else 0
        gain = float(np.clip(grown, 0.4, 1.5))
    part = _around(mask)
    wanted = count + int((mask & ~crop.counted).sum())
    mask[part] = to_count(mask[part], wanted, score[part], crop.allowed[part])
    now = int((mask & crop.counted).sum())
    if abs(now - count) > max(1.0, TOLERANCE * count):
        least = f"{now * scene.voxel_ml:.3g} ml"
        raise InputError(
            f"'{name}' cannot come from {have * scene.voxel_ml:.3g} to {count * scene.voxel_ml:.3g} ml and hang "
            f"together as it does: {least} is as near as it gets; ask for that, or raise reach_mm"
        )
    return _composed(scene, crop, flow, one, mask, held)


def _need_room(crop: _Crop, more: int, name: str, voxel_ml: float) -> None:
    room = _GIVE * float(crop.gives.sum())
    if more > room:
        have = float(crop.inside.sum()) * voxel_ml
        raise InputError(
            f"'{name}' has {have:.3g} ml and can grow by {room * voxel_ml:.3g} ml at most, which is what can give way "
            f"around it; ask for less than {have + room * voxel_ml:.3g} ml, raise reach_mm, or name more in gives"
        )


def _moved(crop: _Crop, flow: push.Push, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The mask after the flow so far, with the topology it had; and the structure's partial volumes."""
    part = _around(mask)
    displacement = _fine(flow, crop.factors, part)
    at = [p.start for p in part]
    grid = np.meshgrid(*(np.arange(n, dtype=np.float32) + a for n, a in zip(mask[part].shape, at, strict=True)),
                       indexing="ij")  # fmt: skip
    volume = ndimage.map_coordinates(
        crop.inside.astype(np.float32), displacement + np.stack(grid), order=1, mode="nearest"
    )
    wanted = (volume > 0.5) & (crop.allowed | crop.inside)[part]
    after, score = mask.copy(), np.zeros(mask.shape, np.float32)
    after[part], score[part] = follow(mask[part], wanted), volume
    return after, score


def _around(mask: np.ndarray) -> tuple[slice, ...]:
    """The box around a mask with a margin of a few voxels, more than a step of the flow moves it."""
    box = box_of(mask, 6)
    assert box is not None, "a structure that is changed keeps voxels"
    return box


def _fine(flow: push.Push, factors: Sequence[int], part: Sequence[slice]) -> np.ndarray:
    """The displacement (3, X, Y, Z) in voxels over a part of the crop."""
    return refine(flow.displacement, factors, part) * np.reshape(np.array(factors, np.float32), (3, 1, 1, 1))


def _composed(scene: Scene, crop: _Crop, flow: push.Push, one: int, mask: np.ndarray, held: list[int]) -> np.ndarray:
    """All labels moved, the structure where ``mask`` says, and what is held where it was."""
    whole = tuple(slice(0, n) for n in crop.ids.shape)
    moved = pull(crop.ids, _fine(flow, crop.factors, whole))
    at_rest = np.isin(crop.ids, held)
    stray = ~mask & ~at_rest & ((moved == one) | np.isin(moved, held))
    if stray.any():
        moved = np.where(stray, nearest_other(moved, (moved != one) & ~np.isin(moved, held), scene.spacing_mm), moved)
    moved = np.where(at_rest, crop.ids, np.where(mask, one, moved))
    ids = filled(scene).copy()
    ids[crop.box] = moved
    return ids
