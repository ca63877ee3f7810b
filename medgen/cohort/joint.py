"""The joint distribution of a cohort's covariates, fitted on rows with gaps, drawn conditionally.

Method: the general location model (Olkin & Tate 1961; Schafer 1997) with additive effects, on a Gaussian copula scale.
Numeric and ordinal columns become normal scores through a few averaged quantiles (:mod:`medgen.cohort.marginal`);
periodic columns become points on a circle; the categorical columns form a table of cells. EM over missing entries fits
cell probabilities, an additive shift of the scores for each level, and one covariance, each shrunk for small cohorts
(:mod:`medgen.cohort.location`).

Why this one: a cohort has tens to hundreds of patients, so few parameters must do; its columns are of mixed kind and
have gaps, which this model takes in one EM; any subset can be conditioned on in closed form, which is what a request
does; and draws stay inside the cohort's range. What it cannot say: effects of one level that depend on another level
(interactions), a spread that differs between levels, and dependence that is not monotone. :func:`compare` shows how
much that costs on a given cohort.

Privacy: the fitted joint is sums over patients and no row: at most 33 quantile knots a column (averages of three
patients or more, save for the two ends of the range), smoothed cell probabilities, effects and a covariance. No case
is named. Like a paper's table of patients, the cell probabilities of a very small cohort let one work out counts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from scipy.special import ndtr

from medgen.cohort import columns, coverage, location
from medgen.cohort.given import Fixed, Given, GivenMap, OneOf, Range, levels_of
from medgen.cohort.location import Location
from medgen.cohort.marginal import Marginal
from medgen.cohort.schema import Schema, Value

_BATCHES = (16, 128, 1024, 4096)
_ROUNDS = 3
_IMPUTED_ROWS = 2000

Row = dict[str, Value]


@dataclass(frozen=True)
class Joint:
    """A fitted joint distribution.

    Attributes:
        schema: all columns; those without a single value, and texts, are not modelled and are drawn as missing.
        n: patients it was fitted on.
        marginals: of the numeric, periodic and ordinal columns that have values.
        tabled: categorical columns in the table of cells, in its order.
        loose: categorical columns that did not fit into ``columns.MAX_CELLS`` cells: level probabilities. They are
            drawn independently of everything else.
        location: cell probabilities, effects and covariance.
    """

    schema: Schema
    n: int
    marginals: Mapping[str, Marginal]
    tabled: tuple[str, ...]
    loose: Mapping[str, tuple[float, ...]]
    location: Location

    @staticmethod
    def fit(schema: Schema, rows: Sequence[Mapping[str, Value]]) -> "Joint":
        """Fit to rows; None and absent names are missing entries.

        The quantiles of a column with gaps come from three rounds of fitting and imputing, so that entries missing at
        random (the old are scanned less often) do not bend them.
        """
        data = {c.name: columns.numbers(c, rows) for c in schema.covariates if not c.is_text}
        data = {name: x for name, x in data.items() if not np.isnan(x).all()}
        numeric = [c for c in schema.covariates if c.name in data and c.kind != "categorical"]
        tabled, loose = columns.tabled(schema, data)
        shape = tuple(len(schema[name].levels) for name in tabled)
        levels = np.full((len(rows), len(tabled)), -1)
        for j, name in enumerate(tabled):
            levels[:, j] = np.nan_to_num(data[name], nan=-1)
        gaps = np.any([np.zeros(len(rows), bool), *(np.isnan(data[c.name]) for c in numeric)], axis=0)
        values = {c.name: data[c.name][~np.isnan(data[c.name])] for c in numeric}
        patients = {name: len(x) for name, x in values.items()}
        rng = np.random.default_rng(0)
        raw = None
        for _ in range(_ROUNDS):
            marginals = {c.name: columns.marginal_of(c, values[c.name], patients[c.name]) for c in numeric}
            scores = columns.scores(numeric, marginals, data, len(rows))
            spread = [columns.scores([c], marginals, values, len(values[c.name])).var(axis=0) for c in numeric]
            v = np.concatenate([np.zeros(0), *spread])
            raw = location.fit(scores, levels, shape, start=raw)
            seen = (~np.isnan(scores)).astype(float)
            fitted = columns.restored(raw, numeric, marginals, v, seen.T @ seen)
            joint = Joint(schema, len(rows), marginals, tabled, loose, fitted)
            if not gaps.any():
                break
            values = joint._completed(rng, scores, gaps, data)
        return joint

    def _completed(
        self, rng: np.random.Generator, scores: np.ndarray, gaps: np.ndarray, data: Mapping[str, np.ndarray]
    ) -> dict[str, np.ndarray]:
        """Columns with their gaps filled by conditional draws, each patient repeated equally often."""
        times = int(np.clip(_IMPUTED_ROWS // gaps.sum(), 1, 8))
        full = {name: np.repeat(data[name][:, None], times, axis=1) for name in self.marginals}
        words = {name: self.schema[name].levels for name in data if name not in self.marginals}
        for i in np.flatnonzero(gaps):
            levels = {n: Fixed(v[int(data[n][i])]) for n, v in words.items() if not np.isnan(data[n][i])}
            known = np.flatnonzero(~np.isnan(scores[i]))
            _, Z = self._sample(rng, levels, known, scores[i, known], times)
            for name, x in full.items():
                if np.isnan(x[i, 0]):
                    x[i] = self.marginals[name].quantile(_probability(Z[:, self._dims[name]]))
        return {name: x.ravel() for name, x in full.items()}

    @cached_property
    def _dims(self) -> dict[str, np.ndarray]:
        """Latent dimensions of each modelled column: two of a periodic one, one of the others."""
        result: dict[str, np.ndarray] = {}
        start = 0
        for name in self.marginals:
            width = 2 if self.schema[name].kind == "periodic" else 1
            result[name] = np.arange(start, start + width)
            start += width
        return result

    @cached_property
    def _means(self) -> np.ndarray:
        """(cells, D) latent means."""
        return location.design(self.location.probabilities.shape) @ self.location.effects

    def _table(self, given: GivenMap) -> np.ndarray:
        """Cell probabilities left by the request; a level that the cohort lacks takes the others' mix."""
        table = self.location.probabilities
        for axis, name in enumerate(self.tabled):
            if name in given:
                levels = self.schema[name].levels
                shape = [-1 if a == axis else 1 for a in range(table.ndim)]
                keep = np.isin(levels, levels_of(given[name], self.schema[name])).reshape(shape)
                left = table * keep
                table = left if left.sum() > 0 else table.sum(axis=axis, keepdims=True) * keep
        return table.ravel() / table.sum()

    def _sample(
        self, rng: np.random.Generator, given: GivenMap, known: np.ndarray, z: np.ndarray, size: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Cells (size,) and latent points (size, D) given levels and the latent values z of the known dimensions."""
        S, means = self.location.covariance, self._means
        with np.errstate(divide="ignore"):
            logits = np.log(self._table(given))
        logits = logits + location.log_density(z - means[:, known], S[np.ix_(known, known)])
        cell = rng.choice(len(logits), size, p=location.softmax(logits))
        Z = means[cell]
        Z[:, known] = z
        free = [d for d in self._dims.values() if not np.isin(d, known).any()]
        pairs, rest = [d for d in free if len(d) == 2], [d for d in free if len(d) == 1]
        for group in (pairs, rest):  # angles first: put on their circle, they tell the rest as much as in the fit
            if not group:
                continue
            wanted = np.concatenate(group)
            gain, spread = location.regress(S, known, wanted)
            noise = rng.standard_normal((size, len(wanted))) @ np.linalg.cholesky(spread).T
            Z[:, wanted] += (Z[:, known] - means[cell][:, known]) @ gain.T + noise
            if group is pairs:
                for pair in pairs:
                    Z[:, pair] *= np.sqrt(2) / np.linalg.norm(Z[:, pair], axis=1, keepdims=True)
            known = np.concatenate([known, wanted])
        return cell, Z

    def _batch(self, rng: np.random.Generator, given: GivenMap, size: int) -> dict[str, np.ndarray]:
        """Draws given fixed values and levels; ranges are not looked at. Levels come as indices."""
        fixed = {n: f.value for n in self.marginals if isinstance(f := given.get(n), Fixed)}
        known, z = self.scores_of(fixed)
        cell, Z = self._sample(rng, given, known, z, size)
        index = np.unravel_index(cell, self.location.probabilities.shape) if self.tabled else ()
        drawn = dict(zip(self.tabled, (np.asarray(i, float) for i in index), strict=True))
        for name, p in self.loose.items():
            keep = np.isin(self.schema[name].levels, levels_of(given.get(name, Range()), self.schema[name]))
            left = np.array(p) * keep if (np.array(p) * keep).sum() > 0 else keep.astype(float)
            drawn[name] = rng.choice(len(left), size, p=left / left.sum()).astype(float)
        for name, m in self.marginals.items():
            drawn[name] = m.quantile(_probability(Z[:, self._dims[name]]))
        return drawn

    def scores_of(self, values: Mapping[str, Value]) -> tuple[np.ndarray, np.ndarray]:
        """Latent dimensions (d,) that values of modelled columns fix, and the scores (d,) they fix them to."""
        if not values:
            return np.zeros(0, int), np.zeros(0)
        known = np.concatenate([self._dims[name] for name in values]).astype(int)
        return known, np.concatenate([self._latent(name, value) for name, value in values.items()])

    def cell_means(self, given: GivenMap) -> np.ndarray:
        """(cells, D) latent means of the cells of levels that a request leaves possible."""
        return self._means[self._table(given) > 0]

    def _latent(self, name: str, value: Value) -> np.ndarray:
        c, m = self.schema[name], self.marginals[name]
        number = np.array(c.levels.index(str(value)) if c.kind == "ordinal" else value, float)
        return m.angle(number) if c.kind == "periodic" else m.score(number)[None]

    def _row(self, drawn: Mapping[str, np.ndarray], i: int, given: GivenMap) -> Row:
        row: Row = {}
        for c in self.schema.covariates:
            asked = given.get(c.name)
            if isinstance(asked, Fixed):
                row[c.name] = asked.value
            elif c.name not in drawn:
                row[c.name] = None
            else:
                x = float(drawn[c.name][i])
                row[c.name] = x if c.is_numeric else c.levels[round(x)]
        return row

    def _accepted(self, drawn: Mapping[str, np.ndarray], given: GivenMap) -> np.ndarray:
        """Which draws meet the ranges and the level sets."""
        ok = np.ones(len(next(iter(drawn.values()))), bool)
        for name, asked in given.items():
            if name in drawn and isinstance(asked, Range):
                ok &= asked.holds(drawn[name])
            elif name in drawn and isinstance(asked, OneOf):
                ok &= np.isin(drawn[name], [self.schema[name].levels.index(v) for v in asked.levels])
        return ok

    def draw(self, rng: np.random.Generator, given: GivenMap | None = None) -> Row:
        """One row: what is fixed as it is, everything else drawn given the fixed values, ranges and level sets.

        Ranges are met by rejection. Where the cohort covers a range so thinly that thousands of draws miss it, or not
        at all, the value is drawn uniformly inside the range and the rest given that value.

        Args:
            rng: the result is a function of its state, the joint and the request alone.
            given: name -> what is asked for.
        """
        given = dict(given or {})
        given |= {n: self._inside(rng, n, g) for n, g in given.items() if self.covers({n: g}) is not None}
        open_ = any(not isinstance(g, Fixed) for n, g in given.items() if n in self.marginals)
        for size in _BATCHES if open_ else (1,):
            drawn = self._batch(rng, given, size)
            hits = np.flatnonzero(self._accepted(drawn, given)) if drawn else np.zeros(1, int)
            if len(hits):
                return self._row(drawn, int(hits[0]), given)
        given |= {n: self._inside(rng, n, given[n]) for n in given if n in self.marginals}
        return self._row(self._batch(rng, given, 1), 0, given)

    def many(self, rng: np.random.Generator, n: int, given: GivenMap | None = None) -> list[Row]:
        """Up to ``n`` rows at once, fewer where a range rejects nearly all draws."""
        given = given or {}
        rows: list[Row] = []
        for _ in range(8):
            drawn = self._batch(rng, given, n)
            if not drawn:
                return [self._row(drawn, 0, given)] * n
            hits = np.flatnonzero(self._accepted(drawn, given))[: n - len(rows)]
            rows += [self._row(drawn, int(i), given) for i in hits]
            if len(rows) == n:
                break
        return rows

    def _inside(self, rng: np.random.Generator, name: str, given: Given) -> Fixed:
        """A uniform draw from what is asked for, inside the cohort's range as far as the two meet."""
        if isinstance(given, Fixed):
            return given
        if isinstance(given, OneOf):
            return Fixed(given.levels[int(rng.integers(len(given.levels)))])
        m, period = self.marginals.get(name), self.schema[name].period
        if period and given.low is not None and given.high is not None:
            return Fixed(float((given.low + rng.random() * ((given.high - given.low) % period)) % period))
        low, high = given.low, given.high
        if m is not None and self.covers({name: given}) is None:
            low, high = max(m.low, -np.inf if low is None else low), min(m.high, np.inf if high is None else high)
        low, high = high if low is None else low, low if high is None else high
        if low is None or high is None:  # "any number" of a column without values
            return Fixed(0.0)
        value = float(low + rng.random() * (high - low))
        whole = value if m is None or m.decimals is None else round(value, m.decimals)
        return Fixed(whole if given.holds(whole) else value)

    @property
    def covered(self) -> frozenset[str]:
        """Columns that have values."""
        return frozenset(self.marginals) | frozenset(self.tabled) | frozenset(self.loose)

    def covers(self, given: GivenMap) -> str | None:
        """None where the cohort covers each single thing asked for; else a sentence with the cohort's range."""
        return coverage.covers(self, given)

    def to_json(self) -> dict[str, Any]:
        """As plain JSON, without any row or name of a case."""
        return {
            "method": "general location model, Gaussian copula scale",
            "schema": self.schema.to_json(),
            "n": self.n,
            "marginals": {name: m.to_json() for name, m in self.marginals.items()},
            "tabled": list(self.tabled),
            "loose": {name: list(p) for name, p in self.loose.items()},
            "probabilities": self.location.probabilities.ravel().tolist(),
            "effects": self.location.effects.tolist(),
            "covariance": self.location.covariance.tolist(),
        }

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> "Joint":
        """From what :meth:`to_json` gave; draws are the same to the last bit where the JSON kept all digits."""
        schema = Schema.from_json(value["schema"])
        tabled = tuple(value["tabled"])
        shape = tuple(len(schema[name].levels) for name in tabled)
        d = len(value["covariance"])
        fitted = Location(
            np.array(value["probabilities"], float).reshape(shape),
            np.array(value["effects"], float).reshape(location.design(shape).shape[1], d),  # d is 0 without numbers
            np.array(value["covariance"], float).reshape(d, d),
        )
        marginals = {name: Marginal.from_json(m) for name, m in value["marginals"].items()}
        return Joint(schema, value["n"], marginals, tabled, {k: tuple(p) for k, p in value["loose"].items()}, fitted)


def _probability(z: np.ndarray) -> np.ndarray:
    """(n,) probabilities from (n, 1) scores or (n, 2) points on the circle."""
    return ndtr(z[:, 0]) if z.shape[1] == 1 else np.mod(np.arctan2(z[:, 1], z[:, 0]), 2 * np.pi) / (2 * np.pi)
