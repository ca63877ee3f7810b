"""Whether samples copy the patients they were learnt from, measured while the model is trained.

Distances are Euclidean, between standardised latents. A blurred sample is near to everything, and so early in a
training every sample is near its nearest training case. What tells a copy is that it is much nearer to one case than
to the others (Yoon et al. 2023, "Diffusion probabilistic models generalize when they fail to memorize", compare the
nearest with the second nearest):

    nearness = distance to the nearest training case / median distance to all of them

It is 0 for a copy, 1 for what is no nearer to one than to another. Held-out cases say what new patients have, and
training cases against all others what patients of the cohort have among each other.
"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from scipy.stats import binom

from medgen.sampling.noise import generator
from medgen.store.latent_rows import Encodings, LatentRows
from medgen.store.latents import LatentStatistics

_ROWS = 64
_MOST = 256
_CHANCE = 0.95


class Memorisation:
    """The yardstick of one training: its cases, and what real cases have.

    Args:
        train: the training rows; mirrored and augmented encodings of a case are rows too. Samples are compared with
            the means of their posteriors; real cases are measured by a fixed draw of theirs, as samples are draws.
        statistics: dataset statistics.
        subjects: (N,) the subject of each row: other rows of a subject are no other patients.
        held_out: held-out cases, None without.
        quantile: of real cases' nearness, below which a sample counts as a copy.
    """

    def __init__(
        self,
        train: LatentRows,
        statistics: LatentStatistics,
        subjects: Sequence[int],
        held_out: LatentRows | None,
        quantile: float,
    ) -> None:
        self.train, self.statistics = train, statistics
        group, some = torch.as_tensor(subjects), _spread(len(train))
        self.own = self.nearness(self._drawn(train, some), others=group[some][:, None] != group[None])
        self.new = None
        if held_out is not None:
            self.new = self.nearness(self._drawn(held_out, _spread(len(held_out))))
        known = self.own if self.new is None else np.concatenate([self.own, self.new])
        known = known[np.isfinite(known)]
        self.threshold = float(np.quantile(known, quantile)) if len(known) else 0.0
        self.quantile = quantile

    def measure(self, samples: torch.Tensor) -> Mapping[str, float]:
        """Figures of samples (n, C, X, Y, Z), standardised.

        Returns:
            ``nearness`` of the median sample, and of the median held-out and training case; ``copies``, the share of
            samples below the threshold; ``memorised``, 1 where that is more than chance gives (the binomial's 95%).
        """
        found = self.nearness(samples)
        near = int((found < self.threshold).sum())
        figures = {
            "nearness": float(np.median(found)),
            "nearness_train": float(np.nanmedian(self.own)) if np.isfinite(self.own).any() else 1.0,
            "copies": near / len(found),
            "memorised": float(near > binom.ppf(_CHANCE, len(found), self.quantile)),
        }
        return figures if self.new is None else figures | {"nearness_held_out": float(np.median(self.new))}

    def _drawn(self, rows: LatentRows, some: Sequence[int]) -> torch.Tensor:
        """Fixed draws of some rows, a few read at a time."""
        parts = [some[first : first + _ROWS] for first in range(0, len(some), _ROWS)]
        return torch.cat([fixed_draw(rows.at(part), part, self.statistics) for part in parts])

    def nearness(self, points: torch.Tensor, *, others: torch.Tensor | None = None) -> np.ndarray:
        """Of standardised latents (n, C, X, Y, Z) to the training rows, see :func:`nearness`."""
        parts = (slice(first, first + _ROWS) for first in range(0, len(self.train), _ROWS))
        return nearness(points, (self.statistics.standardise(self.train.means(part)) for part in parts), others=others)


def fixed_draw(rows: Encodings, index: Sequence[int], statistics: LatentStatistics) -> torch.Tensor:
    """Standardised draws (n, C, X, Y, Z) of the posteriors of rows; of each number of ``index`` the same every time."""
    mean, logvar, *_ = rows
    noise = torch.stack([torch.randn(mean.shape[1:], generator=generator("fixed draw", r)) for r in index])
    return statistics.standardise(mean + torch.exp(0.5 * logvar) * noise.to(mean.device))


def _spread(count: int) -> list[int]:
    """At most ``_MOST`` of so many rows, evenly spread."""
    return np.unique(np.linspace(0, count - 1, min(_MOST, count)).astype(int)).tolist()


@torch.no_grad()
def nearness(
    points: torch.Tensor, reference: Iterable[torch.Tensor], *, others: torch.Tensor | None = None
) -> np.ndarray:
    """Distance to the nearest row of a reference over the median distance to all.

    Args:
        points: (n, ...) any shape.
        reference: (m, ...) of the same, in parts.
        others: (n, m) bool, which rows of the reference a point is compared with; all without it.

    Returns:
        (n,) float64 in [0, 1]; NaN for a point without anything to compare with.
    """
    p = points.float().flatten(1)
    parts = [torch.cdist(p, rows.float().flatten(1)) for rows in reference]
    distances = torch.cat(parts, dim=1).double().cpu().numpy()
    if others is not None:
        distances = np.where(others.cpu().numpy(), distances, np.nan)
    out = np.full(len(distances), np.nan)
    known = np.isfinite(distances).any(axis=1)
    typical = np.nanmedian(distances[known], axis=1)
    out[known] = np.nanmin(distances[known], axis=1) / np.maximum(typical, 1e-12)
    return out
