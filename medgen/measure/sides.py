"""Which side of the body a label map shows: the cohort's, or its mirror image."""

from collections.abc import Sequence

import numpy as np
from scipy import ndimage


def centred(label: np.ndarray) -> np.ndarray:
    """A label map (X, Y, Z) moved by whole voxels, so that the centroid of all labels lies in the grid's middle."""
    if not label.any():
        return label
    middle = (np.array(label.shape) - 1) / 2
    shift = np.rint(middle - np.array(ndimage.center_of_mass(label > 0)))
    moved: np.ndarray = ndimage.shift(label, shift, order=0, mode="constant", cval=0)
    return moved


def mean_shape(labels: Sequence[np.ndarray], ids: Sequence[int]) -> np.ndarray:
    """Share of the centred label maps that have each id (L, X, Y, Z) at a voxel.

    Args:
        labels: (X, Y, Z) ids each, on one grid.
        ids: the L labels, the background left out.
    """
    return np.stack([[one == i for i in ids] for one in map(centred, labels)]).mean(axis=0, dtype=np.float32)


def sidedness(label: np.ndarray, shape: np.ndarray, ids: Sequence[int], *, axis: int = 0) -> float:
    """How much nearer a label map is to a mean shape than its mirror image is.

    The distance is the squared difference of the map's one-hot channels from the mean shape, after both are centred.
    Those of a map and of its mirror image differ by twice the difference of their overlaps with the shape, so that
    overlaps are compared.

    Args:
        label: (X, Y, Z) ids.
        shape: (L, X, Y, Z), see :func:`mean_shape`.
        ids: the L labels.
        axis: of the mirror: 0, left and right, in RAS+.

    Returns:
        From -1 to 1: above 0 where the map as it is lies nearer, 0 where it is symmetric, NaN where it has no label.
    """
    own, mirrored = (_overlap(centred(one), shape, ids) for one in (label, np.flip(label, axis)))
    return (own - mirrored) / (own + mirrored) if own + mirrored > 0 else float("nan")


def _overlap(label: np.ndarray, shape: np.ndarray, ids: Sequence[int]) -> float:
    return float(sum(shape[k][label == i].sum(dtype=np.float64) for k, i in enumerate(ids)))
