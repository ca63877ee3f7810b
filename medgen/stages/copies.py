"""Augmented copies of whole cases, which the latent diffusion model learns from beside the cases themselves.

A patch in training is warped linearly, which blurs it a little; a codec that sees such patches too takes no harm. But
samples look like what the diffusion model has seen, so copies are warped by cubic B-splines, and padding and the
background of skull-stripped brains stay exactly what they were.
"""

import numpy as np
import torch

from medgen.prepare.resample import resample_image, resample_label
from medgen.store import augment, warp
from medgen.store.augment import Augmentation, NoiseBank

VERSION = 1
"""Raise it when the same case and key give another copy."""

_NOTHING = -1.0

Arrays = tuple[np.ndarray, np.ndarray | None, np.ndarray]
"""Image, label ids or None, and where the case's files reach."""


def augmented(
    image: np.ndarray, ids: np.ndarray | None, reached: np.ndarray, augmentation: Augmentation, key: tuple[int, ...]
) -> Arrays:
    """One augmented copy of a case, a pure function of its arguments.

    Args:
        image: (C, X, Y, Z) in [-1, 1], -1 where there is nothing.
        ids: (X, Y, Z) label ids, -1 where unknown; or None.
        reached: (X, Y, Z) bool, where the case's files reach.
        augmentation: what may happen.
        key: of the random numbers; its first entry is the experiment's seed.

    Returns:
        The same three of the copy; what comes from beyond the grid is padding.
    """
    extent = image.shape[1:]
    draws = augment.draw(augmentation, np.random.default_rng(list(key)), 1, len(image))
    matrix = np.eye(4)
    matrix[:3, :3] = draws.linear[0]
    matrix[:3, 3] = warp.origins(draws.linear, draws.shift, np.zeros((1, 3)), extent)[0]
    made = np.stack([resample_image(c, matrix, extent, fill=_NOTHING, interpolation="bspline") for c in image])
    holds = np.stack([resample_label((c > _NOTHING).astype(np.uint8), matrix, extent) for c in image]).astype(bool)
    patch = torch.from_numpy(made)
    bank = NoiseBank(key[0], patch[0].numel(), patch.device) if augmentation.noise > 0 else None
    augment.recolour_patch(patch, draws, 0, bank)
    made = np.where(holds, made.clip(-1.0, 1.0), _NOTHING).astype(np.float32)
    return made, _warped_ids(ids, matrix), resample_label(reached.astype(np.uint8), matrix, extent).astype(bool)


def _warped_ids(ids: np.ndarray | None, matrix: np.ndarray) -> np.ndarray | None:
    """Label ids; where the original is unknown, or lies beyond the grid of one that is, the copy is unknown too."""
    if ids is None or not (ids >= 0).any():
        return ids
    if (ids >= 0).all():
        return resample_label(ids, matrix, ids.shape)
    known = resample_label((ids >= 0).astype(np.uint8), matrix, ids.shape)
    return np.where(known, resample_label(np.maximum(ids, 0), matrix, ids.shape), -1).astype(ids.dtype)
