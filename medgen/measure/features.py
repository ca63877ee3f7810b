"""Features of images, brought onto the main axes of a reference set."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Projection:
    """Principal components of a reference set, for figures that need few dimensions and one scale.

    All components are divided by one number, so that their mean variance over the reference is 1: kernels find the
    scale they expect and the relative spread of the directions stays. It is no whitening, which would give
    directions of mere noise the weight of the main ones.

    Attributes:
        mean: (F,) of the reference.
        axes: (F, K) orthonormal columns, by falling variance.
        scale: the divisor, in the unit of the features.
        explained: share of the reference's variance that the K components hold.
    """

    mean: np.ndarray
    axes: np.ndarray
    scale: float
    explained: float

    @staticmethod
    def fit(reference: np.ndarray, components: int = 16) -> "Projection":
        """Fit on features (n, F); at most n - 1 and F components can be had, and no empty one is kept.

        Reference:
            Pearson (1901), doi:10.1080/14786440109462720.
        """
        reference = np.asarray(reference, dtype=np.float64)
        assert reference.ndim == 2 and len(reference) >= 2, f"features (n >= 2, F) are needed, not {reference.shape}"
        mean = reference.mean(axis=0)
        _, values, rows = np.linalg.svd(reference - mean, full_matrices=False)
        variances = values**2 / (len(reference) - 1)
        there = int((values > values[0] * 1e-10).sum()) if values[0] > 0 else 0
        assert there > 0, "all reference features are equal"
        kept = min(components, there)
        scale = float(np.sqrt(variances[:kept].mean()))
        return Projection(mean, rows[:kept].T.copy(), scale, float(variances[:kept].sum() / variances.sum()))

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """Features (n, F) to components (n, K)."""
        return (np.asarray(features, dtype=np.float64) - self.mean) @ self.axes / self.scale
