"""Multi-scale structural similarity of volumes, at as many scales as they hold."""

import itertools
from collections.abc import Sequence

import numpy as np
import torch
from monai.metrics.regression import MultiScaleSSIMMetric

WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""Of the scales, fine to coarse (Wang et al. 2003)."""


def scales(extent: Sequence[int], window: int = 7) -> int:
    """How many scales the smallest extent holds, at most 5: at the coarsest it must still be as long as the window."""
    # The second bound of each is MONAI's own.
    divisors = {n: max(2 ** (n - 1), (n - 1) ** 2) for n in range(1, len(WEIGHTS) + 1)}
    return max((n for n, divisor in divisors.items() if min(extent) // divisor >= window), default=1)


def ms_ssim(a: np.ndarray, b: np.ndarray, data_range: float = 2.0) -> float:
    """MS-SSIM of two images (C, X, Y, Z).

    The paper's five scales need 112 voxels along each axis with a Gaussian window of 7. Smaller volumes take fewer
    scales, whose weights are brought to a sum of 1, and at one scale the figure is SSIM; figures compare between
    volumes of one extent only. A volume thinner than 7 voxels takes a smaller window, down to 3.

    Args:
        a: image.
        b: of the same shape.
        data_range: 2 for images in [-1, 1].

    Reference:
        Wang, Simoncelli & Bovik (2003), doi:10.1109/ACSSC.2003.1292216.
    """
    assert a.shape == b.shape, f"images of shapes {a.shape} and {b.shape}"
    shortest = min(a.shape[1:])
    assert shortest >= 3, f"volumes of at least 3 voxels along each axis, not {a.shape[1:]}"
    window = min(7, shortest - (shortest + 1) % 2)
    used = WEIGHTS[: scales(a.shape[1:], window)]
    weights = tuple(w / sum(used) for w in used)
    metric = MultiScaleSSIMMetric(3, data_range=data_range, kernel_size=window, kernel_sigma=1.5, weights=weights)
    pair = [torch.from_numpy(np.array(v, dtype=np.float32))[None] for v in (a, b)]
    return float(torch.as_tensor(metric(pair[0], pair[1])).mean())


def pairwise_ms_ssim(images: Sequence[np.ndarray], *, pairs: int = 200, seed: int = 0) -> np.ndarray:
    """MS-SSIM of pairs of different images (C, X, Y, Z): their mean says how alike a set is.

    At most ``pairs`` pairs, drawn without replacement, are measured.
    """
    every = list(itertools.combinations(range(len(images)), 2))
    if len(every) > pairs:
        chosen = np.random.default_rng(seed).choice(len(every), pairs, replace=False)
        every = [every[i] for i in chosen]
    return np.array([ms_ssim(images[i], images[j]) for i, j in every])
