"""Tables of voxels worth looking at, made once, from which the centres of patches are drawn without a search."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

_VOXELS_KEPT = 2048


@dataclass(frozen=True)
class Chances:
    """With what chance a patch is centred on something; what is left of 1 is placed uniformly.

    Attributes:
        foreground: on a voxel of the image above the background.
        labels: on a label of the case, each label being as likely, whatever its size.
        rare: on a label of the case, a label being the likelier the fewer voxels the cohort has of it.
    """

    foreground: float = 0.0
    labels: float = 0.0
    rare: float = 0.0

    def __post_init__(self) -> None:
        assert min(self.foreground, self.labels, self.rare) >= 0 and self.total <= 1 + 1e-9, "chances add up to 1"

    @property
    def total(self) -> float:
        """Chance that a patch is centred at all."""
        return self.foreground + self.labels + self.rare


@dataclass(frozen=True)
class Centres:
    """Voxels by case and class; class 0 is the foreground of the image, class l is label l.

    Attributes:
        voxels: flat indices into a volume, those of (case, class) together; int32.
        bounds: (N, L + 1) where those of (case, class) begin; the end is the next one's begin.
        counts: (N, L) voxels there are, of which up to 2048, drawn by the seed, are kept.
        extent: of a volume.
    """

    voxels: np.ndarray
    bounds: np.ndarray
    counts: np.ndarray
    extent: tuple[int, ...]

    @staticmethod
    def build(
        cases: Iterable[tuple[np.ndarray, np.ndarray | None]], labels: int, *, seed: int, above: float = -0.9
    ) -> "Centres":
        """Read every case once.

        Args:
            cases: (image (C, X, Y, Z) in [-1, 1], label (X, Y, Z) or None) of each, in the order of the sampler's rows.
            labels: how many ids there are, background included; 0 without labels.
            seed: of which voxels are kept.
            above: a voxel is foreground where any channel is above this.
        """
        rng = np.random.default_rng([seed, 2])
        kept: list[np.ndarray] = []
        counts: list[list[int]] = []
        extent: tuple[int, ...] = ()
        for image, label in cases:
            extent = image.shape[1:]
            found = [np.flatnonzero((np.asarray(image) > above).any(axis=0))]
            if label is None:
                found += [np.empty(0, dtype=np.int64)] * max(labels - 1, 0)
            else:
                found += _by_label(label, labels)
            counts.append([len(f) for f in found])
            kept += [
                f if len(f) <= _VOXELS_KEPT else f[rng.integers(0, len(f), size=_VOXELS_KEPT, dtype=np.int64)]
                for f in found
            ]
        assert kept, "no cases"
        bounds = np.concatenate([[0], np.cumsum([len(k) for k in kept])])
        n, classes = len(counts), len(counts[0])
        starts = np.arange(n)[:, None] * classes + np.arange(classes + 1)
        return Centres(np.concatenate(kept).astype(np.int32), bounds[starts], np.array(counts), tuple(extent))

    def draw(self, chances: Chances, cases: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Centres for a batch.

        Args:
            chances: of each kind.
            cases: (B,) rows of the tables.
            rng: of the step.

        Returns:
            (B, 3) voxels and (B,) whether a patch has one. It has none where the draw said so or where the case has no
            such voxel.
        """
        uniform = rng.random((len(cases), 3))
        steps = np.cumsum([chances.foreground, chances.labels, chances.rare])
        flat = np.full(len(cases), -1, dtype=np.int64)
        frequency = self.counts.sum(axis=0, dtype=np.float64)
        for b, (case, (kind, which, where)) in enumerate(zip(cases.tolist(), uniform, strict=True)):
            if kind >= steps[2]:
                continue
            if kind < steps[0]:
                weight = (np.arange(self.counts.shape[1]) == 0).astype(np.float64)
            else:
                weight = np.ones_like(frequency) if kind < steps[1] else 1.0 / np.maximum(frequency, 1.0)
                weight[0] = 0.0
            total = np.cumsum(weight * (self.counts[case] > 0))
            if total[-1] <= 0:
                continue
            c = int(np.searchsorted(total, which * total[-1], side="right"))
            first, end = self.bounds[case, c], self.bounds[case, c + 1]
            flat[b] = self.voxels[first + int(where * (end - first))]
        found = flat >= 0
        return np.stack(np.unravel_index(np.maximum(flat, 0), self.extent), axis=1), found


def _by_label(label: np.ndarray, labels: int) -> list[np.ndarray]:
    """Flat indices of each label from 1 on; ids of 0 and below belong to none."""
    flat = np.asarray(label).reshape(-1)
    where = np.flatnonzero(flat > 0)
    ids = flat[where].astype(np.int64)
    order = np.argsort(ids, kind="stable")
    edges = np.searchsorted(ids[order], np.arange(1, labels + 1))
    return [where[order[a:b]] for a, b in pairwise(edges)]
