"""Fréchet distance between the Gaussians of two samples."""

import numpy as np


def frechet_gaussians(mean_x: np.ndarray, cov_x: np.ndarray, mean_y: np.ndarray, cov_y: np.ndarray) -> float:
    """Squared 2-Wasserstein distance of two Gaussians: |m_x - m_y|^2 + tr(C_x + C_y - 2 (C_x C_y)^(1/2)).

    The trace of the root is taken as that of the symmetric (C_x^(1/2) C_y C_x^(1/2))^(1/2), whose eigenvalues are
    real and not negative: no complex root and no singular matrix can come up, whatever the rank.

    Reference:
        Dowson & Landau (1982), doi:10.1016/0047-259X(82)90077-X; Heusel et al. (2017), arXiv:1706.08500.
    """
    values, vectors = np.linalg.eigh(cov_x)
    root = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ cov_y @ root).clip(min=0)).sum()
    distance = np.sum((mean_x - mean_y) ** 2) + np.trace(cov_x) + np.trace(cov_y) - 2 * cross
    return float(max(distance, 0.0))


def frechet(x: np.ndarray, y: np.ndarray) -> float:
    """Fréchet distance of two samples (n, d) and (m, d), n and m at least 2.

    It grows as samples get smaller, even between equal distributions: compare it at equal n, and to a floor of real
    cases against real cases.
    """
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    return frechet_gaussians(x.mean(0), _covariance(x), y.mean(0), _covariance(y))


def _covariance(x: np.ndarray) -> np.ndarray:
    return np.atleast_2d(np.cov(x, rowvar=False))
