"""Maximum mean discrepancy between two samples, without bias."""

import numpy as np
from scipy.spatial.distance import cdist, pdist


def median_bandwidth(reference: np.ndarray) -> float:
    """Median distance between the rows of a reference (n, d): the bandwidth of :func:`rbf` by rule of thumb.

    It is fitted on the reference alone, so that several sets are measured with one kernel.
    """
    return float(np.median(pdist(np.asarray(reference, dtype=np.float64))))


def rbf(x: np.ndarray, y: np.ndarray, bandwidth: float) -> np.ndarray:
    """Gaussian kernel exp(-|x - y|^2 / (2 bandwidth^2)) of rows (n, d) and (m, d), shape (n, m)."""
    return np.exp(-cdist(x, y, "sqeuclidean") / (2 * bandwidth**2))


def polynomial(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The cubic kernel (x.y / d + 1)^3 of the Kernel Inception Distance.

    It is not invariant to the features' scale: bring them to unit variance first.

    Reference:
        Binkowski et al. (2018), Demystifying MMD GANs, arXiv:1801.01401.
    """
    return (np.asarray(x, np.float64) @ np.asarray(y, np.float64).T / x.shape[1] + 1.0) ** 3


def mmd2(
    k_xx: np.ndarray,
    k_yy: np.ndarray,
    k_xy: np.ndarray,
    rows_x: np.ndarray | None = None,
    rows_y: np.ndarray | None = None,
) -> float:
    """Squared MMD from kernel matrices, the unbiased estimate: its mean is 0 for equal distributions.

    Args:
        k_xx: (n, n).
        k_yy: (m, m).
        k_xy: (n, m).
        rows_x: rows of x that make up the sample; may repeat, as in a bootstrap. None takes each once.
        rows_y: of y.

    Returns:
        The estimate, which may be negative. A pair of a row with itself is left out, also where a bootstrap drew
        that row twice: such pairs would be mistaken for likeness within the sample.

    Reference:
        Gretton et al. (2012), A kernel two-sample test, JMLR 13, equation 3.
    """
    rows_x = np.arange(len(k_xx)) if rows_x is None else rows_x
    rows_y = np.arange(len(k_yy)) if rows_y is None else rows_y
    return _within(k_xx, rows_x) + _within(k_yy, rows_y) - 2 * float(k_xy[np.ix_(rows_x, rows_y)].mean())


def _within(kernel: np.ndarray, rows: np.ndarray) -> float:
    different = rows[:, None] != rows[None, :]
    assert different.any(), "two different rows are needed"
    return float(kernel[np.ix_(rows, rows)][different].mean())


def mmd2_rbf(x: np.ndarray, y: np.ndarray, bandwidth: float) -> float:
    """Squared MMD of rows (n, d) and (m, d) under :func:`rbf`."""
    return mmd2(rbf(x, x, bandwidth), rbf(y, y, bandwidth), rbf(x, y, bandwidth))


def mmd2_polynomial(x: np.ndarray, y: np.ndarray) -> float:
    """Squared MMD of rows (n, d) and (m, d) under :func:`polynomial`, as in KID."""
    return mmd2(polynomial(x, x), polynomial(y, y), polynomial(x, y))
