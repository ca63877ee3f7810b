"""Latents on disk: posterior mean and logvar of every case, and the dataset's statistics."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medgen.errors import InputError
from medgen.files import atomic, read_json, write_json


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
    def measure(mean: np.ndarray, logvar: np.ndarray) -> "LatentStatistics":
        """From arrays (N, C, x, y, z), in float64."""
        axes = (0, 2, 3, 4)
        centre = mean.mean(axis=axes, dtype=np.float64)
        variance = mean.var(axis=axes, dtype=np.float64) + np.exp(logvar.astype(np.float64)).mean(axis=axes)
        return LatentStatistics(tuple(centre.tolist()), tuple(np.sqrt(variance).clip(min=1e-6).tolist()))


class Latents:
    """A folder of latents: ``mean.npy``, ``logvar.npy`` (N, C, x, y, z) and ``index.json``, written last.

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
            self.reached = np.load(there, allow_pickle=False) if there.exists() else None
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

    @staticmethod
    def write(
        folder: Path,
        mean: np.ndarray,
        logvar: np.ndarray,
        cases: Sequence[int],
        mirrored: Sequence[bool],
        statistics: LatentStatistics,
        *,
        copies: Sequence[int] | None = None,
        volumes_ml: Sequence[Mapping[str, float] | None] | None = None,
        reached: np.ndarray | None = None,
        masks: np.ndarray | None = None,
    ) -> "Latents":
        """Write and open."""
        arrays = {"mean.npy": mean.astype(np.float32), "logvar.npy": logvar.astype(np.float32)}
        arrays |= {} if reached is None else {"reached.npy": reached.astype(bool)}
        arrays |= {} if masks is None else {"masks.npy": masks.astype(np.int16)}
        for name, array in arrays.items():
            with atomic(folder / name) as temporary, temporary.open("wb") as stream:
                np.save(stream, array, allow_pickle=False)
        index: dict[str, Any] = {"cases": list(cases), "mirrored": list(mirrored), "arrays": sorted(arrays)}
        if copies is not None and any(copies):
            index |= {"copies": list(copies), "volumes_ml": list(volumes_ml or [None] * len(cases))}
        write_json(folder / "index.json", {**index, "mean": statistics.mean, "std": statistics.std})
        return Latents(folder)
