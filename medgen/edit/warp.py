"""A smooth random change of shape that tears and folds nothing."""

from collections.abc import Mapping, Sequence

import numpy as np
from scipy import ndimage

from medgen.edit.flow import border_distance_mm, coarse, exponential, jacobian, pull, refine, smoothstep
from medgen.edit.scene import Scene, filled, said_by
from medgen.errors import InputError

_CELLS_PER_WIDTH = 3.0  # coarse cells per smooth_mm: enough for linear interpolation between them
_LEAST = 0.05  # least Jacobian determinant


def edit(
    scene: Scene,
    target: Mapping[str, float],
    rng: np.random.Generator,
    *,
    displacement_mm: float = 3.0,
    smooth_mm: float = 12.0,
    nearest: bool = False,
) -> Scene:
    """Warp the map by the flow of a stationary random velocity.

    The velocity is white noise under a Gaussian, brought to rest towards the border of the grid, which does not move.

    Args:
        scene: the label map.
        target: not used: a warp is asked for no volume.
        rng: draws the velocity.
        displacement_mm: root mean square length of the velocity where it is not brought to rest; 0 changes nothing.
        smooth_mm: width of the Gaussian; at least ``displacement_mm``.
        nearest: labels by the nearest voxel; otherwise as partial volumes of which the largest wins.
    """
    with said_by("warp"):
        check(scene.names, displacement_mm, smooth_mm, nearest)
        if displacement_mm == 0 or not scene.known.any():
            return scene
        displacement = field(scene.ids.shape, scene.spacing_mm, rng, displacement_mm, smooth_mm)
        return scene.with_ids(pull(filled(scene), displacement, nearest=nearest))


def check(names: Sequence[str] | None, displacement_mm: float, smooth_mm: float, nearest: bool) -> None:
    """Check the options."""
    if displacement_mm < 0 or smooth_mm <= 0:
        raise InputError("displacement_mm must not be below 0, and smooth_mm must be above 0")
    if displacement_mm > smooth_mm:
        raise InputError(
            f"displacements of {displacement_mm:g} mm smooth over {smooth_mm:g} mm would crush what they move; "
            f"set smooth_mm to {displacement_mm:g} or more"
        )


def field(
    shape: Sequence[int],
    spacing_mm: Sequence[float],
    rng: np.random.Generator,
    displacement_mm: float,
    smooth_mm: float,
) -> np.ndarray:
    """A random diffeomorphism as a displacement (3, X, Y, Z) in voxels, 0 in the outermost layer of the grid.

    Its Jacobian determinant is above 0: a draw that would come nearer to it than 0.05, which is rare, is weakened.
    """
    factors = [max(1, int(smooth_mm / _CELLS_PER_WIDTH / s)) for s in spacing_mm]
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
    box = [slice(0, n) for n in shape]
    ease = smoothstep(border_distance_mm(shape, spacing_mm) / cells.max())  # cells do not end at the outermost layer
    while True:
        displacement = refine(exponential(velocity), factors, box) * ease.astype(np.float32)
        displacement *= np.reshape(np.array(factors, np.float32), (3, 1, 1, 1))
        if jacobian(displacement).min() > _LEAST:
            return displacement
        velocity = velocity * np.float32(0.8)


def _half_width(shape: Sequence[int], spacing_mm: Sequence[float]) -> float:
    """Half of the grid's smallest extent, so that something moves even in a small one."""
    return max(0.5 * min((n - 1) * s for n, s in zip(shape, spacing_mm, strict=True)), 1e-3)
