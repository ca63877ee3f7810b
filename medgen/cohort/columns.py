"""From rows of covariates to what the joint is fitted on: scores, cells, and the correction for shared values."""

from collections.abc import Mapping, Sequence

import numpy as np

from medgen.cohort import location, marginal
from medgen.cohort.location import Location
from medgen.cohort.marginal import Marginal
from medgen.cohort.schema import Covariate, Schema, Value

MAX_CELLS = 1024


def numbers(c: Covariate, rows: Sequence[Mapping[str, Value]]) -> np.ndarray:
    """A column as floats: numbers, or level indices; NaN where missing."""
    cells = [c.parse(row.get(c.name)) for row in rows]
    return np.array([np.nan if v is None else float(v) if c.is_numeric else c.levels.index(str(v)) for v in cells])


def marginal_of(c: Covariate, values: np.ndarray, n: int) -> Marginal:
    """The distribution of a numeric, periodic or ordinal column; n: patients behind the values."""
    return marginal.fit_ordinal(values, len(c.levels), n) if c.kind == "ordinal" else marginal.fit(values, n, c.period)


def scores(
    numeric: Sequence[Covariate], marginals: Mapping[str, Marginal], data: Mapping[str, np.ndarray], n: int
) -> np.ndarray:
    """(n, D) normal scores, two dimensions for a periodic column, NaN where missing."""
    blocks = [np.zeros((n, 0))]
    for c in numeric:
        x, m = data[c.name], marginals[c.name]
        z = m.angle(np.nan_to_num(x)) if c.kind == "periodic" else m.score(np.nan_to_num(x))[:, None]
        blocks.append(np.where(np.isnan(x)[:, None], np.nan, z))
    return np.concatenate(blocks, axis=1)


def tabled(schema: Schema, data: Mapping[str, np.ndarray]) -> tuple[tuple[str, ...], dict[str, tuple[float, ...]]]:
    """Categorical columns in the table of cells, fewest levels first while they fit, and the others' frequencies."""
    nominal = [c for c in schema.covariates if c.name in data and c.kind == "categorical"]
    nominal.sort(key=lambda c: len(c.levels))
    tabled, loose, cells = [], {}, 1
    for c in nominal:
        if cells * len(c.levels) <= MAX_CELLS:
            tabled.append(c.name)
            cells *= len(c.levels)
        else:
            x = data[c.name]
            counts = np.bincount(x[~np.isnan(x)].astype(int), minlength=len(c.levels))
            loose[c.name] = tuple((counts / counts.sum()).tolist())
    return tuple(tabled), loose


def restored(
    fitted: Location, numeric: Sequence[Covariate], marginals: Mapping[str, Marginal], v: np.ndarray, pairs: np.ndarray
) -> Location:
    """Shrink the correlations, and undo what shared values take from them (the polyserial correction).

    Where many patients share a value, its score is the mean of the normal over an interval: the variance shrinks to a
    share a, and a covariance with another column by a too. Dividing by it gives the underlying normal's.

    Args:
        fitted: on the scores.
        numeric: the columns.
        marginals: theirs.
        v: (D,) variance of the scores of the values that the marginals were fitted on.
        pairs: (D, D) rows in which both dimensions are seen.
    """
    kept = np.array([k for c in numeric for k in ([1, 1] if c.kind == "periodic" else [marginals[c.name].retained])])
    factor = 1 / np.sqrt(np.maximum(kept, 0.05) * np.maximum(v, 0.01))
    means = location.design(fitted.probabilities.shape) @ fitted.effects
    p = fitted.probabilities.ravel()
    between = p @ (means - p @ means) ** 2
    S = location.shrink(fitted.covariance, pairs) * np.outer(factor, factor)
    total = (np.diag(fitted.covariance) + between) / np.maximum(v, 0.01)
    np.fill_diagonal(S, np.maximum(total - factor**2 * between, 0.02))
    w, V = np.linalg.eigh(S)
    return Location(fitted.probabilities, fitted.effects * factor, (V * np.maximum(w, 1e-4)) @ V.T)
