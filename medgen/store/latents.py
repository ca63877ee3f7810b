"""Latents on disk: posterior mean and logvar of every case, and the dataset's statistics."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from medgen.errors import InputError
from medgen.files import read_json


@dataclass(frozen=True)
class LatentStatistics:
    """Mean and standard deviation of each latent channel over the whole training set.

    One batch's scale, the usual shortcut, makes generation depend on which batch it was. The spread counts the
    posterior's own variance: Var z = Var(mean) + E[exp(logvar)].
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def standardise(self, z: torch.Tensor) -> torch.Tensor:
        """(z - mean) / std for (B, C, X, Y, Z)."""
        mean, std = self._tensors(z)
        return (z - mean) / std

    def restore(self, x: torch.Tensor) -> torch.Tensor:
        """The inverse of :meth:`standardise`."""
        mean, std = self._tensors(x)
        return x * std + mean

    def _tensors(self, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        shape = (1, -1, 1, 1, 1)
        mean, std = (
            torch.tensor(v, device=like.device, dtype=torch.float32).reshape(shape) for v in (self.mean, self.std)
        )
        return mean, std

    @staticmethod
    def measure(mean: np.ndarray, logvar: np.ndarray, rows: Sequence[int]) -> "LatentStatistics":
        """From some rows of arrays (N, C, x, y, z), in float64; one row at a time, for arrays may lie on disk."""
        axes, count = (1, 2, 3), len(rows) * int(np.prod(mean.shape[2:]))
        centre = np.sum([mean[r].sum(axis=axes, dtype=np.float64) for r in rows], axis=0) / count
        apart = (mean[r].astype(np.float64) - centre[:, None, None, None] for r in rows)
        spread = np.sum([(a**2).sum(axis=axes) for a in apart], axis=0)
        own = np.sum([np.exp(logvar[r].astype(np.float64)).sum(axis=axes) for r in rows], axis=0)
        std = np.sqrt((spread + own) / count).clip(min=1e-6)
        return LatentStatistics(tuple(centre.tolist()), tuple(std.tolist()))


class Latents:
    """A folder of latents: ``mean.npy``, ``logvar.npy`` (N, C, x, y, z) and ``index.json``, which came last.

    Row r belongs to case ``cases[r]`` (its index in the prepared store); ``mirrored[r]`` says that it encodes the
    left-right flipped case, ``copies[r]`` that it encodes the case's k-th augmented copy (0: the case itself), whose
    label volumes ``volumes_ml[r]`` were measured again (None where the case's own hold). ``reached.npy`` (N, x, y, z)
    says which latents the case's files reach; the others are padding. ``masks.npy`` (N, S, x, y, z) holds the label
    maps that an image model follows, as :func:`medgen.models.mask.to_cells` lays them out.
    """

    def __init__(self, folder: Path) -> None:
        raw = read_json(folder / "index.json")
        self.cases: list[int] = raw["cases"]
        self.mirrored: list[bool] = raw["mirrored"]
        self.copies: list[int] = raw.get("copies", [0] * len(self.cases))
        self.volumes_ml: list[dict[str, float] | None] = raw.get("volumes_ml", [None] * len(self.cases))
        self.statistics = LatentStatistics(tuple(raw["mean"]), tuple(raw["std"]))
        try:
            self.mean = np.load(folder / "mean.npy", mmap_mode="r", allow_pickle=False)
            self.logvar = np.load(folder / "logvar.npy", mmap_mode="r", allow_pickle=False)
            there = folder / "reached.npy"
            self.reached = np.load(there, mmap_mode="r", allow_pickle=False) if there.exists() else None
            masks = folder / "masks.npy"
            self.masks = np.load(masks, mmap_mode="r", allow_pickle=False) if masks.exists() else None
        except (OSError, ValueError, EOFError):
            raise InputError(f"{folder} holds damaged latents; remove it and run again") from None

    def rows(self, cases: Sequence[int], *, mirrored: bool = True) -> list[int]:
        """Rows of the given cases; without ``mirrored`` only those of the cases as they are, no copies either."""
        wanted = set(cases)
        plain = [not (m or k) for m, k in zip(self.mirrored, self.copies, strict=True)]
        return [r for r, c in enumerate(self.cases) if c in wanted and (mirrored or plain[r])]

    @staticmethod
    def whole(folder: Path) -> bool:
        """Whether the folder holds every file that was written."""
        if not (folder / "index.json").is_file():
            return False
        arrays = read_json(folder / "index.json").get("arrays", ["mean.npy", "logvar.npy"])
        return all((folder / name).is_file() for name in arrays)
