"""Volumes of labels."""

from collections.abc import Mapping, Sequence

import numpy as np


def label_volumes_ml(label: np.ndarray, values: Sequence[int], affine: np.ndarray) -> Mapping[int, float]:
    """Millilitres of each label value.

    Args:
        label: integer map of any shape.
        values: the values to count.
        affine: (4, 4), whose determinant is a voxel's volume in mm^3.
    """
    voxel_ml = abs(float(np.linalg.det(affine[:3, :3]))) / 1000.0
    found, counts = np.unique(label, return_counts=True)
    table = dict(zip(found.tolist(), counts.tolist(), strict=True))
    return {v: table.get(v, 0) * voxel_ml for v in values}
