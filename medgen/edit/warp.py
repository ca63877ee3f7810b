"""A smooth random change of shape that tears and folds nothing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from medgen.edit.flow import border_distance_mm, coarse, exponential, jacobian, pull, refine, sample, smoothstep
from medgen.edit.homotopy import follow
from medgen.edit.scene import Scene, filled, ids_of, nearest_other, said_by
from medgen.errors import InputError
from medgen.measure.box import box_of

_CELLS_PER_WIDTH = 3.0  # coarse cells per smooth_mm: enough for linear interpolation between them
_LEAST = 0.05  # least Jacobian determinant


def edit(
    scene: Scene,
    target: Mapping[str, float],
    rng: np.random.Generator,
    *,
    displacement_mm: float = 2.0,
    smooth_mm: float = 15.0,
    nearest: bool = False,
    keep: Sequence[str] = (),
) -> Scene:
    """Warp the map by the flow of a stationary random velocity.

    Nothing tears in it, but voxels may: a bridge or a wall thinner than one can be lost. ``keep`` prevents that.
    The velocity is white noise under a Gaussian, brought to rest towards the border of the grid, which does not move.

    Args:
        scene: the label map.
        target: not used: a warp is asked for no volume.
        rng: draws the velocity.
        displacement_mm: root mean square length of the velocity where it is not brought to rest; 0 changes nothing.
        smooth_mm: width of the Gaussian; at least ``displacement_mm``.
        nearest: labels by the nearest voxel; otherwise as partial volumes of which the largest wins.
        keep: names of structures whose pieces, tunnels and cavities stay as they are, voxel by voxel; where two of
            them meet, the first named goes before.
    """
    with said_by("warp"):
        check(scene.names, displacement_mm, smooth_mm, nearest, keep)
        if displacement_mm == 0 or not scene.known.any():
            return scene
        drawn = field(scene.ids.shape, scene.spacing_mm, rng, displacement_mm, smooth_mm)
        ids = filled(scene)
        moved = pull(ids, drawn.at(), nearest=nearest)
        kept = {one: _kept(ids, one, drawn) for one in ids_of(scene.names, keep) if (ids == one).any()}
        lost = np.isin(moved, list(kept)) & ~np.any([np.zeros(ids.shape, bool), *kept.values()], axis=0)
        if lost.any():
            moved = np.where(lost, nearest_other(moved, ~np.isin(moved, list(kept)), scene.spacing_mm), moved)
        for one, mask in reversed(kept.items()):
            moved = np.where(mask, one, moved)
        return scene.with_ids(moved)


def check(
    names: Sequence[str] | None, displacement_mm: float, smooth_mm: float, nearest: bool, keep: Sequence[str]
) -> None:
    """Check the options; labels only where the ``names`` are known."""
    if displacement_mm < 0 or smooth_mm <= 0:
        raise InputError("displacement_mm must not be below 0, and smooth_mm must be above 0")
    if displacement_mm > smooth_mm:
        raise InputError(
            f"displacements of {displacement_mm:g} mm smooth over {smooth_mm:g} mm would crush what they move; "
            f"set smooth_mm to {displacement_mm:g} or more"
        )
    if names is not None and 0 in ids_of(names, keep):
        raise InputError("the background cannot be kept; name structures")


@dataclass(frozen=True, eq=False)
class Field:
    """A random diffeomorphism: the flow of a velocity on a coarse grid.

    Attributes:
        velocity: (3, a, b, c) in coarse cells per unit time.
        factors: voxels that a cell has along each axis.
        ease: (X, Y, Z) from 0 in the outermost layer to 1 a cell inside, for cells do not end at that layer.
    """

    velocity: np.ndarray
    factors: tuple[int, ...]
    ease: np.ndarray

    def at(self, time: float = 1.0, box: Sequence[slice] | None = None) -> np.ndarray:
        """The displacement (3, X, Y, Z) in voxels after a time, over the grid or a box of it."""
        box = box or tuple(slice(0, n) for n in self.ease.shape)
        fine = refine(exponential(self.velocity * np.float32(time)), self.factors, box) * self.ease[tuple(box)]
        return fine * np.reshape(np.array(self.factors, np.float32), (3, 1, 1, 1))


def field(
    shape: Sequence[int],
    spacing_mm: Sequence[float],
    rng: np.random.Generator,
    displacement_mm: float,
    smooth_mm: float,
) -> Field:
    """A random diffeomorphism that leaves the outermost layer of the grid where it is.

    Its Jacobian determinant is above 0: a draw that would come nearer to it than 0.05, which is rare, is weakened.
    """
    factors = tuple(max(1, int(smooth_mm / _CELLS_PER_WIDTH / s)) for s in spacing_mm)
    rest = smoothstep(border_distance_mm(shape, spacing_mm) / min(2 * smooth_mm, _half_width(shape, spacing_mm)))
    free = coarse(rest, factors)
    cells = np.array(spacing_mm) * factors
    # Drawn beyond the grid, so that the Gaussian has as much to average at the border as inside.
    pad = [int(np.ceil(3 * smooth_mm / c)) for c in cells]
    noise = rng.standard_normal((3, *(n + 2 * p for n, p in zip(free.shape, pad, strict=True))), dtype=np.float32)
    velocity = ndimage.gaussian_filter(noise, [0.0, *(smooth_mm / cells)], mode="wrap", truncate=3.0)
    inner = (slice(None), *(slice(p, p + n) for n, p in zip(free.shape, pad, strict=True)))
    velocity *= displacement_mm / max(float(np.sqrt((velocity**2).sum(axis=0).mean())), 1e-12)
    velocity = velocity[inner] * free / np.reshape(cells.astype(np.float32), (3, 1, 1, 1))
    ease = smoothstep(border_distance_mm(shape, spacing_mm) / cells.max()).astype(np.float32)
    while True:
        drawn = Field(velocity, factors, ease)
        if jacobian(drawn.at()).min() > _LEAST:
            return drawn
        velocity = velocity * np.float32(0.8)


def _kept(ids: np.ndarray, one: int, drawn: Field) -> np.ndarray:
    """A structure carried along by steps of about a voxel, each by voxels that change no topology."""
    longest = np.abs(drawn.at()).max(axis=(1, 2, 3))
    whole = ids == one
    box = box_of(whole, np.ceil(longest).astype(int) + 2)
    assert box is not None, "the structure is there"
    steps = max(1, int(np.ceil(longest.max())))
    start = whole[box].astype(np.float32)
    mask = whole[box]
    for i in range(1, steps + 1):
        # What is pulled from beyond the box is not the structure: the box has all of it and its margin.
        mask = follow(mask, sample(start, drawn.at(i / steps, box)) > 0.5)
    moved = np.zeros_like(whole)
    moved[box] = mask
    return moved


def _half_width(shape: Sequence[int], spacing_mm: Sequence[float]) -> float:
    """Half of the grid's smallest extent, so that something moves even in a small one."""
    return max(0.5 * min((n - 1) * s for n, s in zip(shape, spacing_mm, strict=True)), 1e-3)
