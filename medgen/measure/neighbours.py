"""Nearest training cases: whether samples copy the patients they were learnt from."""

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
    """

    samples: float
    held_out: float
    train: float
    ratio: float
    threshold: float
    copies: float
    held_out_copies: float


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
    return Nearness(
        samples=float(np.median(made)),
        held_out=usual,
        train=float(np.median(own)),
        ratio=float(np.median(made)) / usual if usual > 0 else float("nan"),
        threshold=threshold,
        copies=float((made < threshold).mean()),
        held_out_copies=float((new < threshold).mean()),
    )


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
