"""Augmented copies of whole cases, which the latent diffusion model learns from beside the cases themselves.

A patch in training is warped linearly, which blurs it a little; a codec that sees such patches too takes no harm. But
samples look like what the diffusion model has seen, so copies are warped by cubic B-splines, padding and the background
of skull-stripped brains stay exactly -1, and a copy ends where its case does: crops whose ends were turned with them
would teach the model to draw turned ends.
"""

from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage

from medgen.prepare.resample import resample_image, resample_label
from medgen.store import augment, warp
from medgen.store.augment import Augmentation, NoiseBank

VERSION = 1
"""Raise it when the same case and key give another copy."""

_NOTHING = -1.0


def augmented(
    image: np.ndarray, ids: np.ndarray | None, reached: np.ndarray, augmentation: Augmentation, key: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray | None]:
    """One augmented copy of a case, a pure function of its arguments.

    Args:
        image: (C, X, Y, Z) in [-1, 1], -1 where there is nothing; no channel for label maps alone.
        ids: (X, Y, Z) label ids, -1 where unknown; or None.
        reached: (X, Y, Z) bool, where the case's files reach.
        augmentation: what may happen.
        key: of the random numbers; its first entry is the experiment's seed.

    Returns:
        Image and label ids of the copy, which reaches where the case does. Slivers that come from beyond the case
        repeat its outermost voxels.
    """
    extent = image.shape[1:]
    draws = augment.draw(augmentation, np.random.default_rng(list(key)), 1, len(image))
    matrix = np.eye(4)
    matrix[:3, :3] = draws.linear[0]
    matrix[:3, 3] = warp.origins(draws.linear, draws.shift, np.zeros((1, 3)), extent)[0]
    extended = _Extension.of(reached, matrix)
    copy = np.empty(image.shape, np.float32)  # without a channel where label maps alone are learnt
    holds = np.empty(image.shape, bool)
    for k, channel in enumerate(image):
        whole = extended(channel)
        copy[k] = resample_image(whole, extended.matrix, extent, fill=_NOTHING, interpolation="bspline")
        holds[k] = resample_label((whole > _NOTHING).astype(np.uint8), extended.matrix, extent) > 0
    if len(image):
        bank = NoiseBank(key[0], copy[0].size, torch.device("cpu")) if augmentation.noise > 0 else None
        augment.recolour_patch(torch.from_numpy(copy), draws, 0, bank)
    copy = np.where(holds & reached, copy.clip(-1.0, 1.0), _NOTHING)
    if ids is None or not (ids >= 0).any():
        return copy, ids
    # What is unknown competes for a voxel as one more label.
    return copy, np.where(reached, resample_label(extended(ids), extended.matrix, extent), ids)


@dataclass(frozen=True, eq=False)
class _Extension:
    """A case continued beyond its ends, as far as a warp looks, by its outermost voxels.

    Attributes:
        nearest: (3, X, Y, Z) for each voxel the nearest one that the case's files reach; None where they reach all.
        margin: (3,) voxels added on either side of the grid.
        matrix: (4, 4) of the warp, to indices of what is continued.
    """

    nearest: np.ndarray | None
    margin: np.ndarray
    matrix: np.ndarray

    @staticmethod
    def of(reached: np.ndarray, matrix: np.ndarray) -> "_Extension":
        nearest = None
        if not reached.all() and reached.any():
            nearest = ndimage.distance_transform_edt(~reached, return_distances=False, return_indices=True)
        last = np.array(reached.shape) - 1.0
        low, high = warp.reach(matrix[:3, :3], reached.shape)
        beyond = np.maximum(-(matrix[:3, 3] + low), matrix[:3, 3] + high - last)
        margin = np.ceil(np.maximum(beyond, 0.0)).astype(int)
        moved = matrix.copy()
        moved[:3, 3] += margin
        return _Extension(nearest, margin, moved)

    def __call__(self, array: np.ndarray) -> np.ndarray:
        """(X, Y, Z) of the case, continued."""
        inner = array if self.nearest is None else array[tuple(self.nearest)]
        return np.pad(inner, [(m, m) for m in self.margin.tolist()], mode="edge")
