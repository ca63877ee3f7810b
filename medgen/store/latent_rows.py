"""Some rows of the latents, where training reads them: on the device where they fit there, else on disk."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from medgen.store import machine
from medgen.store.patches import Kind, PatchSampler
from medgen.store.pool import SHARE, Pool, Resident, Volumes, gathered

Array = np.ndarray | torch.Tensor
Index = Sequence[int] | slice


class Encodings(NamedTuple):
    """Rows on the device.

    Attributes:
        mean: (B, C, X, Y, Z) posterior means.
        logvar: their log-variances.
        weight: (B, 1, X, Y, Z) how much each latent counts in a loss, None where all count.
        mask: (B, S, X, Y, Z) int16 label map that is followed, see :func:`medgen.models.mask.to_cells`; or None.
    """

    mean: torch.Tensor
    logvar: torch.Tensor
    weight: torch.Tensor | None
    mask: torch.Tensor | None


class LatentRows:
    """Encodings of cases. Which rows a step is shown does not depend on where they lie.

    Args:
        mean: (M, C, X, Y, Z) posterior means; arrays that are mapped from disk are read a row at a time.
        logvar: their log-variances.
        device: where rows are wanted.
        index: which rows, in order; all by default.
        weight: (M, 1, X, Y, Z) of each latent in a loss; None where all count.
        masks: (M, S, X, Y, Z) label maps that are followed, of any integer type.
        share: of the device's memory that the rows may take to stay there.
    """

    def __init__(
        self,
        mean: Array,
        logvar: Array,
        device: torch.device,
        *,
        index: Sequence[int] | None = None,
        weight: Array | None = None,
        masks: Array | None = None,
        share: float = SHARE,
    ) -> None:
        given = (("mean", mean), ("logvar", logvar), ("weight", weight), ("mask", masks))
        self._given = {name: array for name, array in given if array is not None}
        self._index = list(range(len(mean)) if index is None else index)
        self.device, self.channels = device, int(mean.shape[1])
        self.extent = (int(mean.shape[2]), int(mean.shape[3]), int(mean.shape[4]))
        assert self._index, "there is no row"
        needed = len(self) * sum(row.numel() * row.element_size() for row in self._load(0))
        self.resident = needed <= share * machine.device_bytes(device)
        self._arrays = gathered(self._load, len(self), device) if self.resident else ()

    def __len__(self) -> int:
        return len(self._index)

    def at(self, rows: Index) -> Encodings:
        """Some rows, by their place among these."""
        return self.named([self._one(name, rows) for name in self._given])

    def means(self, rows: Index) -> torch.Tensor:
        """Posterior means (B, C, X, Y, Z) of some rows; nothing else is read."""
        return self._one("mean", rows)

    def masks(self, rows: Index) -> torch.Tensor | None:
        """Label maps (B, S, X, Y, Z) int16 that some rows follow; nothing else is read."""
        return self._one("mask", rows).to(torch.int16) if "mask" in self._given else None

    def named(self, arrays: Sequence[torch.Tensor]) -> Encodings:
        """What a sampler of :meth:`samplers` crops, by name."""
        found = dict(zip(self._given, arrays, strict=True))
        weight, mask = found.get("weight"), found.get("mask")
        return Encodings(
            found["mean"],
            found["logvar"],
            None if weight is None else weight.float(),
            None if mask is None else mask.to(torch.int16),
        )

    def samplers(self, patches: Sequence[Sequence[int]], batch: int, *, seed: int, rank: int = 0) -> list[PatchSampler]:
        """Samplers of batches that crop the rows, which :meth:`named` names; one for each extent of patches.

        Args:
            patches: extents.
            batch: rows a step.
            seed: of the experiment.
            rank: of this process in a distributed training.
        """
        volumes: Volumes
        if self.resident:
            volumes = Resident(self._arrays, seed=seed, rank=rank)
        else:  # each batch passes by once, and the next is read meanwhile
            volumes = Pool(
                self._load, len(self), resident=batch, ahead=batch, shows=1, device=self.device, seed=seed, rank=rank
            )
        kinds: list[Kind] = ["label" if name == "mask" else "latent" for name in self._given]
        return [
            PatchSampler(volumes, patch, batch, seed=seed, rank=rank, kinds=kinds, label_dtype=torch.int16)
            for patch in patches
        ]

    def _one(self, name: str, rows: Index) -> torch.Tensor:
        """Some rows of one array, on the device."""
        if self.resident:
            return self._arrays[list(self._given).index(name)][rows]
        places = range(len(self))[rows] if isinstance(rows, slice) else rows
        return torch.stack([_tensor(self._given[name][self._index[r]]) for r in places]).to(self.device)

    def _load(self, row: int) -> tuple[torch.Tensor, ...]:
        return tuple(_tensor(array[self._index[row]]) for array in self._given.values())


def _tensor(array: Array) -> torch.Tensor:
    return array if isinstance(array, torch.Tensor) else torch.from_numpy(np.array(array))
