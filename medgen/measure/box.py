"""The box around a structure, so that work follows its size and not the volume's."""

from collections.abc import Sequence

import numpy as np
from scipy import ndimage


def box_of(mask: np.ndarray, margin: int | Sequence[int] = 0) -> tuple[slice, ...] | None:
    """The smallest box that holds a mask, grown by a margin within the array; None where the mask is empty.

    Args:
        mask: bool, of any number of axes.
        margin: voxels on either side, one number or one for each axis.
    """
    found = ndimage.find_objects(np.asarray(mask, dtype=np.uint8))
    if not found:
        return None
    margins = np.broadcast_to(margin, mask.ndim).tolist()
    return tuple(
        slice(max(0, part.start - m), min(n, part.stop + m))
        for part, m, n in zip(found[0], margins, mask.shape, strict=True)
    )
