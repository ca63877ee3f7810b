"""Nearest training cases: whether samples copy the patients they were learnt from.

A distance says two things at once: whose anatomy an image has, and how much fine detail. What is softer than real
cases is nearer to all of them: 5% of the held-out hippocampus crops lie nearer to a training case than all but 1% of
these to each other, and 19% of the same crops after a blur of 0.7 voxels, though nobody copied them. A copy is much
nearer to one case than to the next (Yoon et al. 2023, "Diffusion probabilistic models generalize when they fail to
memorize"), which a blur hardly changes; but two scans of one patient in the cohort hide a copy of them from this ratio.
So both are told.
"""

from dataclasses import dataclass

import numpy as np
from scipy.spatial.distance import cdist


@dataclass(frozen=True)
class Nearness:
    """Distances to the nearest training case, in the unit of the space they were measured in.

    Attributes:
        samples: median over the samples.
        held_out: median over held-out real cases: what new patients of this cohort have.
        train: median over the training cases, each to the nearest other.
        ratio: ``samples`` over ``held_out``; well below 1 speaks of copies.
        threshold: quantile of the training cases' own distances, below which a case counts as a copy.
        copies: share of the samples nearer than ``threshold``.
        held_out_copies: share of the held-out cases nearer than it: what chance gives.
        singled_out: share of the samples that single out a training case: their distance to it over that to the next
            is below the same quantile of the training cases' own.
        held_out_singled_out: share of the held-out cases that do.
    """

    samples: float
    held_out: float
    train: float
    ratio: float
    threshold: float
    copies: float
    held_out_copies: float
    singled_out: float
    held_out_singled_out: float


def nearest(points: np.ndarray, reference: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Euclidean distance (n,) of each point (n, d) to its nearest of a reference (m, d), and that one's row (n,)."""
    distances = cdist(points, reference)
    rows = distances.argmin(axis=1)
    return distances[np.arange(len(points)), rows], rows


def leave_one_out(points: np.ndarray) -> np.ndarray:
    """Distance (n,) of each point (n, d) to its nearest other point."""
    distances = cdist(points, points)
    np.fill_diagonal(distances, np.inf)
    return distances.min(axis=1)


def nearness(samples: np.ndarray, held_out: np.ndarray, train: np.ndarray, quantile: float = 0.01) -> Nearness:
    """Compare samples' distances to the training cases with those of held-out cases.

    Args:
        samples: (n, d) in a feature or voxel space.
        held_out: (h, d), at least 1.
        train: (m, d), at least 2.
        quantile: of the training cases' leave-one-out distances that bounds a copy.
    """
    own, made, new = leave_one_out(train), nearest(samples, train)[0], nearest(held_out, train)[0]
    threshold = float(np.quantile(own, quantile))
    usual = float(np.median(new))
    between = cdist(train, train)
    np.fill_diagonal(between, np.inf)
    least = np.quantile(first_to_second(between), quantile)
    single = [float((first_to_second(cdist(points, train)) < least).mean()) for points in (samples, held_out)]
    return Nearness(
        samples=float(np.median(made)),
        held_out=usual,
        train=float(np.median(own)),
        ratio=float(np.median(made)) / usual if usual > 0 else float("nan"),
        threshold=threshold,
        copies=float((made < threshold).mean()),
        held_out_copies=float((new < threshold).mean()),
        singled_out=single[0],
        held_out_singled_out=single[1],
    )


def first_to_second(distances: np.ndarray) -> np.ndarray:
    """Distance to the nearest case over that to the second nearest, of distances (n, m); 1 where there is no second."""
    if distances.shape[1] < 2:
        return np.ones(len(distances))
    first, second = np.partition(distances, 1, axis=1)[:, :2].T
    ratio: np.ndarray = np.where(np.isfinite(second), first / np.maximum(second, 1e-12), 1.0)
    return ratio


def voxel_space(image: np.ndarray, block: int = 2) -> np.ndarray:
    """An image (C, X, Y, Z) as a vector whose Euclidean distances are RMS differences of block means.

    Means over blocks of ``block`` voxels along each axis forgive noise and shifts below a voxel; what does not fill
    a block at the far end is left out.
    """
    c, *extent = image.shape
    assert min(extent) >= block, f"blocks of {block} voxels do not fit an image of {extent}"
    x, y, z = (n // block for n in extent)
    cut = np.asarray(image[:, : x * block, : y * block, : z * block], dtype=np.float64)
    means = cut.reshape(c, x, block, y, block, z, block).mean(axis=(2, 4, 6)).ravel()
    return means / np.sqrt(means.size)
