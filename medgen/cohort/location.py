"""The general location model with additive effects, fitted by EM over missing entries.

Each row falls into a cell (its combination of levels) with probability pi[cell]; given the cell its scores are
Gaussian with mean ``design[cell] @ effects`` and a covariance shared by all cells.

Reference:
    Olkin & Tate, Multivariate correlation models with mixed discrete and continuous variables, 1961.
    Schafer, Analysis of Incomplete Multivariate Data, 1997, chapter 9.
    Schäfer & Strimmer, A shrinkage approach to large-scale covariance matrix estimation, 2005 (the intensity).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

_RIDGE = 1.0  # one pseudo-patient without effect a level
_FLOOR = 1e-4
_UNCORRELATED = 1.0
_SETTLED = 1e-3  # largest change of an effect or a covariance, in standard deviations
_CHUNK = 65_536


@dataclass(frozen=True)
class Location:
    """Fitted parameters.

    Attributes:
        probabilities: of the cells, in the shape of the levels.
        effects: (1 + sum of levels, D): the intercept, then each level of each column.
        covariance: (D, D) within cells.
    """

    probabilities: np.ndarray
    effects: np.ndarray
    covariance: np.ndarray


def design(shape: tuple[int, ...]) -> np.ndarray:
    """(cells, 1 + sum of levels): 1 for the intercept and for each column's level in the cell."""
    cells = int(np.prod(shape))
    grid = np.unravel_index(np.arange(cells), shape) if shape else ()
    blocks = [np.ones((cells, 1))] + [np.eye(n)[index] for n, index in zip(shape, grid, strict=True)]
    return np.concatenate(blocks, axis=1)


def regress(covariance: np.ndarray, known: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Regression of the wanted dimensions on the known ones.

    Args:
        covariance: (D, D).
        known: indices.
        wanted: indices.

    Returns:
        gain (wanted, known) and the residual covariance (wanted, wanted).
    """
    cross = covariance[np.ix_(wanted, known)]
    gain = np.linalg.solve(covariance[np.ix_(known, known)], cross.T).T
    return gain, covariance[np.ix_(wanted, wanted)] - gain @ cross.T


def log_density(delta: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """Log of a centred Gaussian's density at delta (..., D), up to a constant; 0 for D = 0."""
    if delta.shape[-1] == 0:
        return np.zeros(delta.shape[:-1])
    half = np.linalg.solve(np.linalg.cholesky(covariance), np.moveaxis(delta, -1, 0).reshape(delta.shape[-1], -1))
    return -0.5 * (half**2).sum(axis=0).reshape(delta.shape[:-1])


def softmax(logits: np.ndarray) -> np.ndarray:
    """Along the last axis."""
    e = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def independent(table: np.ndarray) -> np.ndarray:
    """The table with the same one-way margins and no association."""
    result = np.ones(table.shape)
    for axis in range(table.ndim):
        others = tuple(a for a in range(table.ndim) if a != axis)
        result = result * table.sum(axis=others, keepdims=True)
    return result


def shrink(covariance: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Shrink correlations towards zero by the share that their sampling noise has in them.

    Args:
        covariance: (D, D).
        pairs: (D, D) rows in which both columns are seen.
    """
    sd = np.sqrt(np.maximum(np.diag(covariance), _FLOOR))
    r = covariance / np.outer(sd, sd)
    off = ~np.eye(len(sd), dtype=bool) & (pairs >= 3)
    noise = ((1 - np.clip(r, -1, 1) ** 2) ** 2 / np.maximum(pairs - 1, 1))[off].sum()
    signal = (r[off] ** 2).sum()
    intensity = 0.0 if noise == 0 else min(1.0, noise / max(signal, 1e-12))
    r = (1 - intensity) * r + intensity * np.eye(len(sd))
    return r * np.outer(sd, sd) + _FLOOR * np.eye(len(sd))


def _patterns(scores: np.ndarray, levels: np.ndarray, shape: tuple[int, ...]) -> Iterator[tuple[np.ndarray, ...]]:
    """Rows with the same gaps together: (rows, their possible cells (R, C), seen dims, missing dims)."""
    gaps = np.concatenate([np.isnan(scores), levels < 0], axis=1)
    masks, member = np.unique(gaps, axis=0, return_inverse=True)
    strides = np.array([int(np.prod(shape[j + 1 :])) for j in range(len(shape))], int)
    d = scores.shape[1]
    for g, mask in enumerate(masks):
        free = np.flatnonzero(mask[d:])
        offsets = np.zeros(1, int)
        for j in free:
            offsets = (offsets[:, None] + np.arange(shape[j]) * strides[j]).ravel()
        rows = np.flatnonzero(member.ravel() == g)
        step = max(1, _CHUNK // len(offsets))
        for start in range(0, len(rows), step):
            part = rows[start : start + step]
            base = np.where(levels[part] < 0, 0, levels[part]) @ strides if len(shape) else np.zeros(len(part), int)
            yield part, base[:, None] + offsets, np.flatnonzero(~mask[:d]), np.flatnonzero(mask[:d])


def fit(
    scores: np.ndarray,
    levels: np.ndarray,
    shape: tuple[int, ...],
    *,
    start: Location | None = None,
    iterations: int = 100,
) -> Location:
    """Fit by EM.

    Cell probabilities are pulled towards independence of the columns with the weight of sqrt(n) patients, which leaves
    each column's own frequencies as they are; effects towards 0 by a ridge. The covariance is left for
    :func:`shrink`.

    Args:
        scores: (n, D), NaN where missing.
        levels: (n, columns) level indices, -1 where missing.
        shape: levels of each column; the cells are their product.
        start: parameters to begin with, by default an even table without effects or correlations.
        iterations: at most so many.
    """
    n, d = scores.shape
    X = design(shape)
    start = start or Location(np.ones(shape) / X.shape[0], np.zeros((X.shape[1], d)), np.eye(d))
    table, B, S = start.probabilities, start.effects, start.covariance
    ridge = np.diag([1e-9] + [_RIDGE] * (X.shape[1] - 1))
    groups = list(_patterns(scores, levels, shape))
    for _ in range(iterations):
        counts, XX = np.zeros(X.shape[0]), np.zeros((X.shape[1],) * 2)
        XZ, ZZ = np.zeros((X.shape[1], d)), np.zeros((d, d))
        means, log_p = X @ B, np.log(np.maximum(table.ravel(), 1e-300))
        for rows, cells, known, gone in groups:
            delta = scores[rows][:, None, known] - means[cells][..., known]
            w = softmax(log_p[cells] + log_density(delta, S[np.ix_(known, known)]))
            Z = np.broadcast_to(scores[rows][:, None, :], (*cells.shape, d)).copy()
            if len(gone):
                gain, rest = regress(S, known, gone)
                Z[..., gone] = means[cells][..., gone] + delta @ gain.T
                ZZ[np.ix_(gone, gone)] += len(rows) * rest
            flat, Zf, wf = cells.ravel(), Z.reshape(cells.size, d), w.ravel()
            Xw = X[flat] * wf[:, None]
            counts += np.bincount(flat, wf, X.shape[0])
            XX += Xw.T @ X[flat]
            XZ += Xw.T @ Zf
            ZZ += (Zf * wf[:, None]).T @ Zf
        before = (B, S)
        smooth = np.sqrt(n)
        counts = counts.reshape(shape)
        table = (counts + smooth * independent(counts / n)) / (n + smooth)
        B = np.linalg.solve(XX + ridge, XZ)
        S = (ZZ - XZ.T @ B - B.T @ XZ + B.T @ XX @ B) / n
        # A few patients without correlations keep EM away from singular covariances. The full shrinkage waits for the
        # end: within the loop it would act again and again on its own imputations.
        S = (n * (S + S.T) / 2 + _UNCORRELATED * np.diag(np.diag(S))) / (n + _UNCORRELATED) + _FLOOR * np.eye(d)
        if max(np.abs(B - before[0]).max(initial=0), np.abs(S - before[1]).max(initial=0)) < _SETTLED:
            break
    return Location(table, B, S)
