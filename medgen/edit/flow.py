"""Displacement fields on voxel grids: their exponential, their Jacobian, and label maps pulled through them.

A field is *pulled*: the label at a voxel x is the one the map had at x + d(x). Fields live on a coarse grid whose
cells are blocks of whole voxels, because smooth fields need no more, and are refined where labels are moved.

Legend: d (3, X, Y, Z) displacement; X, Y, Z voxels; a, b, c coarse cells.
"""

from collections.abc import Sequence
from itertools import product

import numpy as np
from scipy import ndimage

_CHUNK = 2**20
_STILL = 1e-3  # voxels; a shorter displacement moves no label


def smoothstep(x: np.ndarray) -> np.ndarray:
    """0 below 0, 1 above 1, and 3 x^2 - 2 x^3 between: with a continuous slope."""
    x = np.clip(x, 0.0, 1.0)
    return x * x * (3.0 - 2.0 * x)


def border_distance_mm(shape: Sequence[int], spacing_mm: Sequence[float]) -> np.ndarray:
    """(X, Y, Z) distance of each voxel to the outermost layer of the grid."""
    lines = [np.minimum(np.arange(n), np.arange(n)[::-1]) * s for n, s in zip(shape, spacing_mm, strict=True)]
    x, y, z = np.ix_(*lines)
    nearest: np.ndarray = np.minimum(np.minimum(x, y), z)
    return nearest


def coarse(data: np.ndarray, factors: Sequence[int]) -> np.ndarray:
    """Means of (X, Y, Z) over blocks of ``factors`` voxels, the last ones repeated to fill a block."""
    pad = [(0, -n % f) for n, f in zip(data.shape, factors, strict=True)]
    data = np.pad(np.asarray(data, np.float32), pad, mode="edge")
    a, b, c = (n // f for n, f in zip(data.shape, factors, strict=True))
    means: np.ndarray = data.reshape(a, factors[0], b, factors[1], c, factors[2]).mean(axis=(1, 3, 5))
    return means


def refine(field: np.ndarray, factors: Sequence[int], box: Sequence[slice]) -> np.ndarray:
    """Linear interpolation of (..., a, b, c) between the centres of blocks, at the voxels of a box."""
    for axis, (f, part) in enumerate(zip(factors, box, strict=True), start=field.ndim - 3):
        n = field.shape[axis]
        at = np.clip((np.arange(part.start, part.stop) + 0.5) / f - 0.5, 0, n - 1)
        low = np.minimum(at.astype(int), max(n - 2, 0))
        share = (at - low).astype(np.float32).reshape([-1 if a == axis else 1 for a in range(field.ndim)])
        below, above = (np.take(field, np.minimum(i, n - 1), axis=axis) for i in (low, low + 1))
        field = below + share * (above - below)
    return field


def sample(data: np.ndarray, displacement: np.ndarray) -> np.ndarray:
    """Linear interpolation of (X, Y, Z) at x + d(x), d (3, X, Y, Z) in voxels; edge values beyond the grid."""
    points = displacement + np.stack(np.meshgrid(*(np.arange(n, dtype=np.float32) for n in data.shape), indexing="ij"))
    return ndimage.map_coordinates(data, points, order=1, mode="nearest")


def compose(outer: np.ndarray, inner: np.ndarray) -> np.ndarray:
    """The displacement of first ``inner``, then ``outer``: x -> x + inner(x) + outer(x + inner(x)), in voxels."""
    return inner + np.stack([sample(component, inner) for component in outer])


def exponential(velocity: np.ndarray) -> np.ndarray:
    """The displacement (3, X, Y, Z) in voxels of the flow of a stationary velocity after unit time.

    Scaling and squaring: exp(v) = exp(v / 2^n)^(2^n), the innermost factor taken as x + v / 2^n, of which no vector is
    longer than an eighth of a voxel.

    Reference:
        Arsigny et al., A Log-Euclidean Framework for Statistics on Diffeomorphisms, MICCAI 2006.
    """
    longest = float(np.abs(velocity).max())
    squarings = max(0, int(np.ceil(np.log2(max(longest, 1e-9) * 8))))
    displacement = (velocity / 2**squarings).astype(np.float32)
    for _ in range(squarings):
        displacement = compose(displacement, displacement)
    return displacement


def jacobian(displacement: np.ndarray) -> np.ndarray:
    """(X, Y, Z) determinant of the derivative of x + d(x), d in voxels: above 0 where nothing folds."""
    thick = [n > 1 for n in displacement.shape[1:]]
    j = np.zeros((3, 3, *displacement.shape[1:]), np.float32)
    for i, k in product(range(3), range(3)):
        j[i, k] = (np.gradient(displacement[i], axis=k) if thick[k] else 0.0) + (i == k)
    determinant: np.ndarray = (
        j[0, 0] * (j[1, 1] * j[2, 2] - j[1, 2] * j[2, 1])
        - j[0, 1] * (j[1, 0] * j[2, 2] - j[1, 2] * j[2, 0])
        + j[0, 2] * (j[1, 0] * j[2, 1] - j[1, 1] * j[2, 0])
    )
    return determinant


def pull(ids: np.ndarray, displacement: np.ndarray, *, nearest: bool = False) -> np.ndarray:
    """The label map at x + d(x).

    Args:
        ids: (X, Y, Z) integers.
        displacement: (3, X, Y, Z) in voxels.
        nearest: take the nearest voxel's label; otherwise each label is interpolated linearly as a partial volume,
            and the largest wins, which jags less.

    Returns:
        (X, Y, Z), the dtype of ``ids``; beyond the grid its edge goes on.
    """
    out = ids.copy()
    shape = np.array(ids.shape)
    moves = [np.abs(d) > _STILL for d in displacement]
    moved = np.flatnonzero(moves[0] | moves[1] | moves[2])
    flat, source = displacement.reshape(3, -1), ids.ravel()
    steps = np.array([shape[1] * shape[2], shape[2], 1])
    for at in range(0, len(moved), _CHUNK):
        where = moved[at : at + _CHUNK]
        points = flat[:, where] + np.stack(np.unravel_index(where, ids.shape)).astype(np.float32)
        points = np.clip(points, 0, (shape - 1).astype(np.float32)[:, None])
        if nearest:
            out.ravel()[where] = source[steps @ np.rint(points).astype(np.int64)]
            continue
        low = np.minimum(points.astype(np.int64), np.maximum(shape - 2, 0)[:, None])
        first = steps @ low
        corners = list(product((0, 1), repeat=3))
        reach = np.minimum(steps, steps * (shape - 1))  # 0 along an axis of one voxel
        found = np.stack([source[first + int(reach @ np.array(c))] for c in corners])
        out.ravel()[where] = found[0]
        mixed = np.flatnonzero((found[1:] != found[0]).sum(axis=0, dtype=np.uint8))
        share = points[:, mixed] - low[:, mixed]
        out.ravel()[where[mixed]] = _largest(found[:, mixed], share.astype(np.float32), corners)
    return out


def _largest(found: np.ndarray, share: np.ndarray, corners: Sequence[tuple[int, ...]]) -> np.ndarray:
    """Of the labels (8, n) at a cell's corners the one with the largest partial volume at ``share`` (3, n)."""
    x, y, z = ((1 - s, s) for s in share)
    weights = np.stack([x[i] * y[j] * z[k] for i, j, k in corners])
    best = np.full(found.shape[1], -1.0, np.float32)
    label = found[0].copy()
    for one in found:
        volume = np.where(found == one, weights, 0).sum(axis=0)
        better = volume > best + 1e-6
        best, label = np.where(better, volume, best), np.where(better, one, label)
    return label
