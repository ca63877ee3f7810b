"""Likeness of images, and the diversity of a set of them."""

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import torch
from monai.metrics.regression import SSIMMetric


def psnr_db(a: np.ndarray, b: np.ndarray, data_range: float = 2.0) -> float:
    """Peak signal-to-noise ratio in dB; ``data_range`` is 2 for images in [-1, 1]; inf where equal."""
    mse = float(np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2))
    return float("inf") if mse == 0 else float(10 * np.log10(data_range**2 / mse))


def ssim(a: np.ndarray, b: np.ndarray, data_range: float = 2.0) -> float:
    """Structural similarity (Wang et al. 2004) of two images (C, X, Y, Z): MONAI's, Gaussian window of 7 voxels."""
    metric = SSIMMetric(spatial_dims=3, data_range=data_range, win_size=7, kernel_sigma=1.5)
    pair = [torch.from_numpy(np.ascontiguousarray(v, dtype=np.float32))[None] for v in (a, b)]
    return float(torch.as_tensor(metric(pair[0], pair[1])).mean())


def mean_pairwise_ssim(images: Sequence[np.ndarray], *, pairs: int = 200, seed: int = 0) -> float:
    """Mean SSIM over pairs of different images (C, X, Y, Z): how alike a set is, 1 where all are equal.

    At most ``pairs`` pairs, drawn without replacement, are measured.
    """
    every = list(combinations(range(len(images)), 2))
    if len(every) > pairs:
        chosen = np.random.default_rng(seed).choice(len(every), pairs, replace=False)
        every = [every[i] for i in chosen]
    return float(np.mean([ssim(images[i], images[j]) for i, j in every]))
