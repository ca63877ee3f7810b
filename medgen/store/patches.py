"""Random patches cropped on the device from volumes that live there.

Which patch a step takes is keyed by (seed, step, rank): a resumed training sees what an uninterrupted one saw, and
no generator state is saved. All start positions of a batch are drawn on the CPU and the crop is one strided gather,
so nothing waits for the device.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True)
class Batch:
    """Patches with the cases they came from.

    Attributes:
        cases: (B,) rows of the sampler's volumes.
        starts: (B, 3) first voxel of each patch.
        arrays: one tensor (B, C, *patch) for each array of the sampler, float32 or int64 for integer arrays.
    """

    cases: np.ndarray
    starts: np.ndarray
    arrays: tuple[torch.Tensor, ...]


class PatchSampler:
    """Crops the same patches out of several arrays that share a grid.

    Args:
        arrays: tensors (N, C, X, Y, Z) on one device; floating ones are best kept in half precision.
        patch: extents of a patch; clipped to the volumes'.
        batch: patches a step.
        seed: of the experiment.
        rank: of this process in a distributed training.
    """

    def __init__(
        self, arrays: Sequence[torch.Tensor], patch: Sequence[int], batch: int, *, seed: int, rank: int = 0
    ) -> None:
        assert len({a.shape[0] for a in arrays}) == 1 and len({a.shape[2:] for a in arrays}) == 1, (
            "arrays must share N and the grid"
        )
        self.arrays = tuple(arrays)
        self.extent = tuple(int(n) for n in arrays[0].shape[2:])
        self.patch = tuple(min(p, n) for p, n in zip(patch, self.extent, strict=True))
        self.batch, self.seed, self.rank = batch, seed, rank
        self.cases = int(arrays[0].shape[0])

    def __call__(self, step: int) -> Batch:
        """The batch of a step."""
        rng = np.random.default_rng([self.seed, step, self.rank])
        # Each pass over the cases is a fresh permutation, so that no case waits long for its turn.
        drawn = np.arange(step * self.batch, (step + 1) * self.batch)
        cases = np.array([self._permutation(int(d // self.cases))[d % self.cases] for d in drawn])
        room = [n - p + 1 for n, p in zip(self.extent, self.patch, strict=True)]
        starts = np.stack([rng.integers(0, r, size=self.batch) for r in room], axis=1)
        return Batch(cases, starts, tuple(self._crop(a, cases, starts) for a in self.arrays))

    def _permutation(self, epoch: int) -> np.ndarray:
        return np.random.default_rng([self.seed, epoch, self.rank, 1]).permutation(self.cases)

    def _crop(self, array: torch.Tensor, cases: np.ndarray, starts: np.ndarray) -> torch.Tensor:
        if array.device.type == "cpu":
            dtype = torch.float32 if array.is_floating_point() else torch.int64
            out = torch.empty(self.batch, array.shape[1], *self.patch, dtype=dtype)
            for b, (case, (x, y, z)) in enumerate(zip(cases.tolist(), starts.tolist(), strict=True)):
                px, py, pz = self.patch
                out[b] = array[case, :, x : x + px, y : y + py, z : z + pz]
            return out
        return self.gather(array, cases, starts)

    def gather(self, array: torch.Tensor, cases: np.ndarray, starts: np.ndarray) -> torch.Tensor:
        """The crop as one strided gather, without a wait for the device."""
        windows = array
        for axis, size in enumerate(self.patch):
            windows = windows.unfold(2 + axis, size, 1)
        where = torch.from_numpy(np.column_stack([cases, starts])).to(array.device, non_blocking=True).unbind(1)
        patches = windows[where[0], :, where[1], where[2], where[3]]
        return patches.to(torch.float32 if array.is_floating_point() else torch.int64)
