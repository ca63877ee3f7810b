"""What an image looks like along the boundary of a structure."""

import numpy as np
from scipy import ndimage

from medgen.measure.box import box_of

_LEAST_VOXELS = 20


def shell_contrast(image: np.ndarray, mask: np.ndarray) -> float:
    """Mean intensity of the shell just inside a structure's boundary, less the mean of what lies deeper.

    The shell is one voxel thick: the structure's voxels that share a face with what is not the structure. Where the
    grid cuts the structure off there is no boundary. An outline of the label that is imprinted in the image shows
    here; some contrast is natural, because voxels at a boundary hold a part of what lies beyond it.

    Args:
        image: (X, Y, Z).
        mask: (X, Y, Z) bool.

    Returns:
        In the image's units; NaN where shell or interior have too few voxels.
    """
    assert image.shape == mask.shape, f"an image of shape {image.shape} and a mask of {mask.shape}"
    box = box_of(mask, 1)  # with a voxel around it, or the structure would end where the box does
    if box is None:
        return float("nan")
    inside, values = mask[box], image[box].astype(np.float64)
    deep = ndimage.binary_erosion(inside, border_value=1)
    shell = inside & ~deep
    if min(shell.sum(), deep.sum()) < _LEAST_VOXELS:
        return float("nan")
    return float(values[shell].mean() - values[deep].mean())
