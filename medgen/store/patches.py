"""Random patches cropped on the device from volumes that live there.

Which patch a step takes, and what augmentation does to it, is keyed by (seed, step, rank): a resumed training sees
what an uninterrupted one saw, and no generator state is saved. All numbers of a batch are drawn on the CPU, so nothing
waits for the device. A CPU copies slices into a new batch and resamples patch by patch, in its cache; an accelerator
gathers and resamples the batch at once.

Storage: images may be float32, float16, bfloat16 or uint8, where a byte b stands for b * 2 / 255 - 1: a step of
0.0078 in [-1, 1], an error of at most half that. Labels may be any integers; -1 says that a voxel has no label, and
stays -1 under augmentation because labels are resampled by their nearest voxel and never mixed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F

from medgen.store import augment, warp
from medgen.store.augment import Augmentation, Draws, NoiseBank
from medgen.store.centres import Centres, Chances
from medgen.store.pool import Resident, Volumes

Kind = Literal["image", "label", "latent"]


@dataclass(frozen=True)
class Batch:
    """Patches with the cases they came from.

    Attributes:
        cases: (B,) numbers of the cases.
        starts: (B, 3) first voxel of each patch, before augmentation.
        arrays: one tensor (B, C, *patch) for each array of the sampler, float32 or, for labels, int64 where
            no other type was asked for.
    """

    cases: np.ndarray
    starts: np.ndarray
    arrays: tuple[torch.Tensor, ...]


def to_uint8(images: torch.Tensor) -> torch.Tensor:
    """Images in [-1, 1] as bytes; the inverse of what the sampler does, to within 1 / 255."""
    return images.float().add(1.0).mul_(127.5).round_().clamp_(0.0, 255.0).to(torch.uint8)


class PatchSampler:
    """Crops the same patches out of several arrays that share a grid.

    Args:
        arrays: tensors (N, C, X, Y, Z) on one device, or a :class:`medgen.store.pool.Pool`.
        patch: extents of a patch; clipped to the volumes'.
        batch: patches a step.
        seed: of the experiment.
        rank: of this process in a distributed training; a pool has its own.
        kinds: what each array is. Left out, floating arrays are images and integers labels; images in uint8 must be
            named. Latents are images that are never augmented.
        centres: tables of the cases, needed for chances above 0.
        chances: of patches centred on foreground, labels or rare labels; others are placed uniformly.
        augmentation: applied to images and labels alike, intensities to images only.
        label_dtype: of the labels in a batch; a narrow one saves a CPU the writing where it will do.
        batched: gather and resample the whole batch at once, as accelerators do; by default where there is one.
    """

    def __init__(
        self,
        arrays: Sequence[torch.Tensor] | Volumes,
        patch: Sequence[int],
        batch: int,
        *,
        seed: int,
        rank: int = 0,
        kinds: Sequence[Kind] | None = None,
        centres: Centres | None = None,
        chances: Chances | None = None,
        augmentation: Augmentation | None = None,
        label_dtype: torch.dtype = torch.int64,
        batched: bool | None = None,
    ) -> None:
        self.volumes: Volumes = Resident(arrays, seed=seed, rank=rank) if isinstance(arrays, Sequence) else arrays
        self.arrays = self.volumes.arrays
        self.kinds = tuple(kinds or ("image" if a.is_floating_point() else "label" for a in self.arrays))
        assert len(self.kinds) == len(self.arrays), "one kind for each array"
        self.extent = tuple(int(n) for n in self.arrays[0].shape[2:])
        self.patch = tuple(min(int(p), n) for p, n in zip(patch, self.extent, strict=True))
        self.batch, self.seed, self.rank, self.cases = batch, seed, rank, self.volumes.cases
        self.device = self.arrays[0].device
        self.centres, self.chances = centres, chances or Chances()
        assert centres is None or centres.extent == self.extent, "centres of volumes of another size"
        assert centres is not None or self.chances.total == 0, "chances need centres"
        self.augmentation, self.label_dtype = augmentation, label_dtype
        assert augmentation is None or "latent" not in self.kinds, "latents are not augmented"
        # The CPU's resampling takes pairs of planes.
        self.batched = self.device.type != "cpu" or self.extent[0] < 2 if batched is None else batched
        self._channels = [int(a.shape[1]) if k == "image" else 0 for a, k in zip(self.arrays, self.kinds, strict=True)]
        noisy = augmentation is not None and augmentation.noise > 0
        self._bank = NoiseBank(seed, int(np.prod(self.patch)), self.device) if noisy else None

    @torch.no_grad()
    def __call__(self, step: int) -> Batch:
        """The batch of a step."""
        cases, rows = self.volumes.at(step, self.batch)
        starts = self._starts(step, cases)
        draws = None
        if self.augmentation is not None:
            rng = np.random.default_rng([self.seed, step, self.rank, 5])
            draws = augment.draw(self.augmentation, rng, self.batch, sum(self._channels))
        make = self._on_accelerator if self.batched else self._on_cpu
        # Resampling in bfloat16, which autocast would choose, would misplace voxels.
        with torch.autocast(self.device.type, enabled=False):
            arrays = tuple(make(k, rows, starts, draws) for k in range(len(self.arrays)))
        return Batch(cases, starts, arrays)

    def _starts(self, step: int, cases: np.ndarray) -> np.ndarray:
        rng = np.random.default_rng([self.seed, step, self.rank])
        room = [n - p + 1 for n, p in zip(self.extent, self.patch, strict=True)]
        starts = np.stack([rng.integers(0, r, size=self.batch) for r in room], axis=1)
        if self.centres is None or self.chances.total == 0:
            return starts
        rng = np.random.default_rng([self.seed, step, self.rank, 4])
        voxels, found = self.centres.draw(self.chances, cases, rng)
        centred = np.clip(voxels - np.array(self.patch) // 2, 0, np.array(room) - 1)
        return np.where(found[:, None], centred, starts)

    def _draws_of(self, k: int, draws: Draws | None) -> Draws | None:
        """The draws that recolour an array; None where its intensities stay."""
        if draws is None or self.augmentation is None or not self.augmentation.recolours or self.kinds[k] != "image":
            return None
        return draws.channels(sum(self._channels[:k]), self._channels[k])

    def _on_cpu(self, k: int, rows: np.ndarray, starts: np.ndarray, draws: Draws | None) -> torch.Tensor:
        array, image = self.arrays[k], self.kinds[k] != "label"
        recolour = self._draws_of(k, draws)
        out = torch.empty(self.batch, array.shape[1], *self.patch, dtype=torch.float32 if image else self.label_dtype)
        if draws is not None and draws.warped.any():
            origin = warp.origins(draws.linear, draws.shift, starts, self.patch)
            firsts, sizes = warp.boxes(draws.linear, origin, self.patch, self.extent)
        for b, row in enumerate(rows.tolist()):
            if draws is None or not draws.warped[b]:
                crop = _slices(array[row], starts[b].tolist(), self.patch)
                axes = () if draws is None else (1 + np.flatnonzero(draws.flips[b])).tolist()
                out[b] = crop.flip(axes) if axes else crop
            else:
                box = _slices(array[row], firsts[b].tolist(), sizes[b].tolist())
                where = draws.linear[b], origin[b] - firsts[b], out[b]
                if image:
                    planes = torch.empty(box.transpose(0, 1).shape).copy_(box.transpose(0, 1))
                    warp.linear_patch(planes, *where)
                else:
                    warp.nearest_patch(box.contiguous(), *where)
            if image and array.dtype == torch.uint8:
                out[b].mul_(2 / 255).sub_(1.0)
            if recolour is not None:
                augment.recolour_patch(out[b], recolour, b, self._bank)
        return out

    def _on_accelerator(self, k: int, rows: np.ndarray, starts: np.ndarray, draws: Draws | None) -> torch.Tensor:
        array, image = self.arrays[k], self.kinds[k] != "label"
        if draws is None or not draws.warped.any():
            out = self.gather(array, rows, starts, flips=None if draws is None else draws.flips)
        else:
            origin = warp.origins(draws.linear, draws.shift, starts, self.patch)
            firsts, sizes = warp.boxes(draws.linear, origin, self.patch, self.extent)
            # One size for the batch, in eights, so that few sizes of memory are asked for.
            size = np.minimum(-(-sizes.max(axis=0) // 8) * 8, self.extent)
            firsts = np.minimum(firsts, np.array(self.extent) - size)
            boxes = self.gather(array, rows, firsts, extent=size.tolist()).float()
            maps = self._send(np.concatenate([draws.linear, (origin - firsts)[..., None]], axis=2).astype(np.float32))
            grid = warp.batch_grid(maps[..., :3], maps[..., 3], self.patch, size.tolist())
            mode = "bilinear" if image else "nearest"
            out = F.grid_sample(boxes, grid, mode=mode, padding_mode="border", align_corners=True)
        if not image:
            return out.to(self.label_dtype)
        out = out.float()
        if array.dtype == torch.uint8:
            out = out.mul_(2 / 255).sub_(1.0)
        recolour, a = self._draws_of(k, draws), self.augmentation
        if recolour is None or a is None:
            return out
        levels = np.stack([recolour.gain, recolour.offset, recolour.exponent, recolour.noise]).astype(np.float32)
        windows = np.zeros_like(recolour.window, dtype=np.int64)
        if self._bank is not None:
            windows = self._bank.starts(recolour.window)
        return augment.recolour_batch(out, self._send(levels), self._send(windows), self._bank, gamma=a.gamma > 0)

    def gather(
        self,
        array: torch.Tensor,
        rows: np.ndarray,
        starts: np.ndarray,
        *,
        extent: Sequence[int] | None = None,
        flips: np.ndarray | None = None,
    ) -> torch.Tensor:
        """Crops of a batch as one indexed read, mirrored where asked, without a wait for the device.

        Args:
            array: (M, C, X, Y, Z).
            rows: (B,) of the array.
            starts: (B, 3).
            extent: of a crop, the patch's by default.
            flips: (B, 3) bool.

        Returns:
            (B, C, *extent) of the array's dtype.
        """
        sizes = tuple(extent or self.patch)
        mirrored = np.zeros_like(starts) if flips is None else flips.astype(np.int64)
        # Voxel o of a crop lies at start + o, or at start + size - 1 - o where its axis is mirrored.
        first = starts + mirrored * (np.array(sizes) - 1)
        sent = self._send(np.concatenate([rows[:, None], first, 1 - 2 * mirrored], axis=1))
        channels = torch.arange(array.shape[1], device=array.device)
        index = [sent[:, 0].view(-1, 1, 1, 1, 1), channels.view(1, -1, 1, 1, 1)]
        for axis, size in enumerate(sizes):
            offset = torch.arange(size, device=array.device)
            where = sent[:, 1 + axis, None] + sent[:, 4 + axis, None] * offset
            index.append(where.view(-1, 1, *(size if a == axis else 1 for a in range(3))))
        return array[tuple(index)]

    def _send(self, values: np.ndarray) -> torch.Tensor:
        """Small numbers to the device; from pinned memory the copy is asynchronous."""
        tensor = torch.from_numpy(np.ascontiguousarray(values))
        if self.device.type == "cuda":
            tensor = tensor.pin_memory()
        return tensor.to(self.device, non_blocking=True)


def _slices(volume: torch.Tensor, start: Sequence[int], size: Sequence[int]) -> torch.Tensor:
    x, y, z = (slice(s, s + n) for s, n in zip(start, size, strict=True))
    return volume[:, x, y, z]
