"""Resampling through one affine between voxel indices, exact where it can be.

Everything here works in index space: ``matrix`` (4, 4) takes a voxel index of the output grid to a continuous voxel
index of the input array. World space never enters, so any affine works, sheared ones included.

Where the matrix is a signed permutation with an integer offset (flips, axis swaps, crops, pads) values are copied.
Otherwise images are interpolated by SimpleITK, after a Gaussian that keeps the coarser grid from aliasing, and labels
are resampled as partial volumes of which the largest wins, so that small structures do not jag.
"""

from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np
import SimpleITK as sitk  # noqa: N813
from scipy import ndimage

Interpolation = Literal["linear", "bspline"]
EXACT_TOLERANCE_VOXELS = 0.01
_FWHM_TO_SIGMA = 1.0 / (2.0 * np.sqrt(2.0 * np.log(2.0)))
_INTERPOLATORS = {"linear": sitk.sitkLinear, "bspline": sitk.sitkBSpline}
_PRESENT = 1e-4


def exact_steps(matrix: np.ndarray, shape: Sequence[int]) -> np.ndarray | None:
    """The matrix rounded to a signed permutation with integer offset, or None where that is another map.

    Args:
        matrix: (4, 4), output index to input index.
        shape: of the output; rounding must move none of its corners by more than ``EXACT_TOLERANCE_VOXELS``.
    """
    rounded = np.rint(matrix)
    rotation = np.abs(rounded[:3, :3])
    if not ((rotation.sum(0) == 1).all() and (rotation.sum(1) == 1).all()):
        return None
    difference = np.abs((matrix - rounded)[:3])
    worst = difference[:, :3] @ np.asarray(shape, dtype=float) + difference[:, 3]
    return rounded.astype(int) if worst.max() <= EXACT_TOLERANCE_VOXELS else None


def copy_voxels(data: np.ndarray, steps: np.ndarray, shape: Sequence[int], fill: float) -> np.ndarray:
    """Copy (X, Y, Z) ``data`` onto an output grid by the integer map of :func:`exact_steps`."""
    out = np.full(tuple(shape), fill, dtype=data.dtype)
    source: list[slice] = [slice(0)] * 3
    target: list[slice] = [slice(0)] * 3
    axes = [0] * 3
    for i in range(3):
        j = int(np.flatnonzero(steps[i, :3])[0])
        sign, offset = int(steps[i, j]), int(steps[i, 3])
        ends = sorted((-offset * sign, (data.shape[i] - 1 - offset) * sign))
        first, last = max(ends[0], 0), min(ends[1], shape[j] - 1)
        if first > last:
            return out
        target[j], axes[j] = slice(first, last + 1), i
        a, b = offset + sign * first, offset + sign * last
        source[i] = slice(a, b + 1) if sign > 0 else slice(a, b - 1 if b else None, -1)
    out[tuple(target)] = data[tuple(source)].transpose(axes)
    return out


def antialias_sigma(matrix: np.ndarray) -> np.ndarray:
    """Standard deviations (3,), in input voxels, of the Gaussian to apply before sampling through ``matrix``.

    An input voxel of width 1 blurred to the width r of an output voxel along each input axis; zero where r <= 1.

    Reference:
        Cardoso et al. 2015, "Scale factor point spread function matching", MICCAI, eq. 5.
    """
    ratio = np.linalg.norm(matrix[:3, :3], axis=1)
    return np.sqrt(np.maximum(ratio**2 - 1.0, 0.0)) * np.where(ratio > 1.01, _FWHM_TO_SIGMA, 0.0)


def resample_image(
    data: np.ndarray,
    matrix: np.ndarray,
    shape: Sequence[int],
    *,
    fill: float = 0.0,
    interpolation: Interpolation = "linear",
) -> np.ndarray:
    """Resample (X, Y, Z) onto an output grid.

    Args:
        data: input array.
        matrix: (4, 4), output index to input index.
        shape: of the output.
        fill: value of what lies outside the input; kept exactly where all that a voxel sees has it.
        interpolation: linear, or cubic B-spline (sharper; may overshoot).

    Returns:
        float32 array of ``shape``.
    """
    data = np.asarray(data, dtype=np.float32)
    steps = exact_steps(matrix, shape)
    if steps is not None:
        return copy_voxels(data, steps, shape, fill)
    # Around zero the arithmetic is exact: weights that sum to 1 only nearly cannot smear a constant background.
    above = _blur(data - np.float32(fill), antialias_sigma(matrix))
    return _interpolate(above, matrix, shape, interpolation) + np.float32(fill)


def resample_label(label: np.ndarray, matrix: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Resample an integer label map (X, Y, Z); outside the input is 0.

    Each label becomes a partial volume, smoothed as images are; the largest one wins, 0 before others in a tie.
    """
    steps = exact_steps(matrix, shape)
    if steps is not None:
        return copy_voxels(label, steps, shape, 0)
    room = int(np.ceil(4 * antialias_sigma(matrix).max())) + 2
    values = np.unique(label)
    values = values[values != 0]
    ids = np.searchsorted(values, label) + 1
    boxes = ndimage.find_objects(np.where(label == 0, 0, ids), max_label=len(values))

    def parts() -> Iterable[tuple[int, np.ndarray, np.ndarray]]:
        for value, box in zip(values.tolist(), boxes, strict=True):
            grown = _grow(box, room, label.shape)
            yield value, (label[grown] == value).astype(np.float32), np.array([s.start for s in grown])

    return _largest(parts(), matrix, shape, label.dtype)


def resample_probabilities(
    probabilities: np.ndarray, matrix: np.ndarray, shape: Sequence[int], dtype: np.dtype | type | None = None
) -> np.ndarray:
    """Resample label probabilities (K, X, Y, Z), 0 the background, and return the winning ids on the output grid.

    Interpolating before the argmax is what makes upsampled label maps smooth. The K probabilities must sum to 1.
    """

    def parts() -> Iterable[tuple[int, np.ndarray, np.ndarray]]:
        for k in range(1, probabilities.shape[0]):
            p = np.asarray(probabilities[k], dtype=np.float32)
            box = ndimage.find_objects((p > _PRESENT).astype(np.uint8), max_label=1)[0]
            if box is not None:
                grown = _grow(box, 2, p.shape)
                yield k, p[grown], np.array([s.start for s in grown])

    smallest = np.uint8 if probabilities.shape[0] <= 256 else np.uint16
    return _largest(parts(), matrix, shape, np.dtype(dtype or smallest))


def _largest(
    parts: Iterable[tuple[int, np.ndarray, np.ndarray]],
    matrix: np.ndarray,
    shape: Sequence[int],
    dtype: np.dtype,
) -> np.ndarray:
    """Argmax over resampled parts (value, array, index of its first voxel) and the background, part by part."""
    winner = np.zeros(tuple(shape), dtype=dtype)
    best = np.zeros(tuple(shape), dtype=np.float32)
    others = np.zeros(tuple(shape), dtype=np.float32)
    inverse = np.linalg.inv(matrix)
    for value, part, start in parts:
        box = _seen(inverse, start, part.shape, shape)
        if box is None:
            continue
        local = matrix.copy()
        local[:3, 3] += matrix[:3, :3] @ [s.start for s in box] - start
        share = _interpolate(_blur(part, antialias_sigma(matrix)), local, [s.stop - s.start for s in box], "linear")
        others[box] += share
        wins = share > best[box]
        winner[box][wins] = value
        best[box][wins] = share[wins]
    winner[best <= 1.0 - others] = 0
    return winner


def _seen(inverse: np.ndarray, start: np.ndarray, extent: Sequence[int], shape: Sequence[int]) -> tuple | None:
    """The output box that an input box falls into, or None."""
    corners = np.array(np.meshgrid(*[(a - 1, a + n) for a, n in zip(start, extent, strict=True)])).reshape(3, -1)
    mapped = inverse[:3, :3] @ corners + inverse[:3, 3:]
    low = np.maximum(np.floor(mapped.min(1)).astype(int), 0)
    high = np.minimum(np.ceil(mapped.max(1)).astype(int) + 1, shape)
    return tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True)) if (low < high).all() else None


def _grow(box: Sequence[slice], by: int, shape: Sequence[int]) -> tuple[slice, ...]:
    return tuple(slice(max(s.start - by, 0), min(s.stop + by, n)) for s, n in zip(box, shape, strict=True))


def _blur(data: np.ndarray, sigma: np.ndarray) -> np.ndarray:
    # A kernel of finite length: what is exactly background stays so. Edges repeat: what lies beyond is unknown.
    for axis, s in enumerate(sigma):
        if s > 0:
            data = ndimage.gaussian_filter1d(data, s, axis=axis, mode="nearest", truncate=3.0)
    return data


def _interpolate(
    data: np.ndarray, matrix: np.ndarray, shape: Sequence[int], interpolation: Interpolation
) -> np.ndarray:
    """SimpleITK's resampling with zero outside. Its axes run in the reverse order of NumPy's, hence the flips."""
    transform = sitk.AffineTransform(3)
    transform.SetMatrix(matrix[:3, :3][::-1, ::-1].ravel().tolist())
    transform.SetTranslation(matrix[:3, 3][::-1].tolist())
    image = sitk.GetImageFromArray(np.ascontiguousarray(data))
    moved = sitk.Resample(
        image,
        [int(n) for n in reversed(shape)],
        transform,
        _INTERPOLATORS[interpolation],
        (0.0, 0.0, 0.0),
        (1.0, 1.0, 1.0),
        np.eye(3).ravel().tolist(),
        0.0,
        sitk.sitkFloat32,
    )
    return sitk.GetArrayFromImage(moved)
