"""Where a case's files reach on the prepared grid, and where the grid was padded."""

import numpy as np

from medgen.prepare.grid import GeometryRecord

_SHARE = 0.1
_CASES = 2


def reached(record: GeometryRecord, stride: int = 1) -> np.ndarray:
    """Which blocks of ``stride`` voxels of the prepared grid the source reaches.

    A block counts as padding only where all of it lies beyond one face of the source, and so a block that misses a
    turned source around an edge may count as reached.

    Args:
        record: of the case.
        stride: voxels a block along each axis; it divides the grid's extents.

    Returns:
        (X / stride, Y / stride, Z / stride) bool.
    """
    matrix = record.index_map
    half = (stride - 1) / 2.0
    first = matrix[:3, :3] @ np.full(3, half) + matrix[:3, 3]
    reach = np.abs(matrix[:3, :3]) @ np.full(3, half)
    x, y, z = (np.arange(n // stride) * stride for n in record.target.shape)
    inside = np.ones((len(x), len(y), len(z)), dtype=bool)
    for axis, extent in enumerate(record.source.shape):
        a, b, c = matrix[axis, :3]
        centre = first[axis] + a * x[:, None, None] + b * y[None, :, None] + c * z[None, None, :]
        # Half a voxel around a voxel's centre is still its own, with what floats lose.
        inside &= (centre + reach[axis] > -0.5 - 1e-6) & (centre - reach[axis] < extent - 0.5 + 1e-6)
    return inside


def known(reached_N: np.ndarray) -> np.ndarray:
    """Places (x, y, z) that enough of the training cases (N, x, y, z) reach: a tenth of them, and at least two."""
    enough: np.ndarray = reached_N.sum(axis=0) >= max(_CASES, _SHARE * len(reached_N))
    return enough


def weights(reached_N: np.ndarray, known_: np.ndarray) -> np.ndarray | None:
    """How much each place of each case counts in a loss: 0 where the case was padded and the place is known.

    What a padded case has there is unknown, and other cases say what such a place looks like. Where hardly any case
    reaches, the padding is all there is to learn and keeps its weight: a model that was never told of a place would
    put something bright there.

    Args:
        reached_N: (N, x, y, z) bool.
        known_: (x, y, z) bool, see :func:`known`.

    Returns:
        (N, 1, x, y, z) bool; None where everything counts.
    """
    counts = reached_N | ~known_
    return None if counts.all() else counts[:, None]
