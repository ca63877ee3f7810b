"""Stage latents."""

import math
import os
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F

from medgen.cohort.schema import volume_column
from medgen.models import tiling
from medgen.models.codec import Codec
from medgen.models.mask import to_cells
from medgen.prepare.grid import GeometryRecord
from medgen.prepare.padding import reached
from medgen.prepare.workers import in_order
from medgen.stages.ancestor import start_statistics
from medgen.stages.codec import trained_codec
from medgen.stages.copies import augmented
from medgen.stages.masks import follows_masks
from medgen.stages.run import Run
from medgen.store import machine
from medgen.store.augment import Augmentation
from medgen.store.latent_writer import ENCODING, LatentWriter
from medgen.store.latents import Latents

_MOST_THREADS = 8
# A warped copy takes so many times its image in float32 while it is made; all of them at most this share of the memory.
_IMAGES_A_THREAD, _SHARE = 20, 0.25


@dataclass(frozen=True)
class _Encodable:
    """A case, or an augmented copy of it.

    Attributes:
        copy: 0 for the case itself.
        image: (1, C, X, Y, Z) float32.
        label: (1, X, Y, Z) integers, -1 where a case has none; None for a cohort without labels.
        reached: (1, 1, X, Y, Z) bool, where the case's files reach.
        volumes_ml: of the label, where it was measured again.
    """

    copy: int
    image: torch.Tensor
    label: torch.Tensor | None
    reached: torch.Tensor
    volumes_ml: Mapping[str, float] | None

    def on(self, device: torch.device) -> "_Encodable":
        """On a device, in the types that are computed with."""
        label = None if self.label is None else self.label.to(device).long()
        return replace(self, image=self.image.to(device), label=label, reached=self.reached.to(device).float())

    def mirrored(self) -> "_Encodable":
        """Left for right."""
        label = None if self.label is None else self.label.flip(1)
        return replace(self, image=self.image.flip(2), label=label, reached=self.reached.flip(2))


@torch.no_grad()
def latents(run: Run) -> None:
    """Encode every case, its augmented copies where it is a training case, and the mirror images where asked.

    Copies are made on the CPU while others are encoded. An encoding that was killed goes on with the first case that
    is not on disk.
    """
    codec, store, c = trained_codec(run), run.store, run.config.latents
    training, folder = set(run.train_cases()), run.folder / "latents"
    copies = [c.copies if i in training else 0 for i in range(len(store.cases))]
    count = (len(copies) + sum(copies)) * (2 if c.mirror else 1)
    if Latents.whole(folder) and not (folder / ENCODING).exists() and len(Latents(folder).cases) == count:
        return  # it came back with its config, or finished just before a kill
    with LatentWriter(folder, count) as writer:
        first = 1 + max(writer.cases, default=-1)
        jobs = [(i, k) for i in range(first, len(copies)) for k in range(1 + copies[i])]
        with closing(in_order(partial(_encodable, run), jobs, _threads(run))) as made:
            for (i, k), one in zip(jobs, made, strict=True):
                plain = one.on(run.device)
                for side in (plain, plain.mirrored()) if c.mirror else (plain,):
                    arrays = _encoded(run, codec, side)
                    writer.add(arrays, i, mirrored=side is not plain, copy=k, volumes_ml=one.volumes_ml)
                if k == copies[i]:
                    writer.commit()
                    run.progress("latents", i + 1, len(copies), "cases")
        writer.finish(start_statistics(run), training)


def _threads(run: Run) -> int:
    """How many make copies: as the config says, else a few, as many as memory has room for."""
    if run.config.workers is not None:
        return run.config.workers
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    of_one = _IMAGES_A_THREAD * 4 * math.prod(run.store.shape) * max(1, len(run.store.channels))
    return max(1, min(cores, _MOST_THREADS, int(_SHARE * machine.memory_bytes()) // of_one))


def _encoded(run: Run, codec: Codec, one: _Encodable) -> dict[str, np.ndarray]:
    """A row of the latents."""
    posterior = tiling.encode(codec, one.image, one.label if codec.labels else None, tile=run.config.latents.tile)
    found = {
        "mean": posterior.mean[0].float(),
        "logvar": posterior.logvar[0].float(),
        # A latent is padding where all of its voxels are.
        "reached": F.max_pool3d(one.reached, codec.stride)[0, 0].bool(),
    }
    if follows_masks(run) and one.label is not None:
        narrow = torch.int8 if len(run.store.label_values) <= torch.iinfo(torch.int8).max else torch.int16
        found["masks"] = to_cells(one.label, codec.stride)[0].to(narrow)
    return {name: tensor.cpu().numpy() for name, tensor in found.items()}


def _encodable(run: Run, job: tuple[int, int]) -> _Encodable:
    """A case (k = 0) or its k-th augmented copy, a pure function of (seed, case, k)."""
    (i, k), store = job, run.store
    case = store.cases[i]
    image: np.ndarray = np.array(store.image(i), dtype=np.float32)
    ids = label = None
    if len(store.label_values) > 1:
        ids = label = store.label(i).astype(np.int16) if case.has_label else np.full(store.shape, -1, dtype=np.int16)
    there, volumes = reached(GeometryRecord.from_json(case.geometry)), None
    if k:
        augment = run.config.latents.augment.values()
        assert augment is not None, "the config refuses copies that nothing changes"
        augmentation = Augmentation(**augment, spacing_mm=store.spacing_mm)
        image, label = augmented(image, ids, there, augmentation, (run.config.seed, i, k))
        volumes = _volumes_again(run, i, ids, label) if case.has_label else None
    return _Encodable(
        k,
        torch.from_numpy(image)[None],
        None if label is None else torch.from_numpy(label)[None],
        torch.from_numpy(there)[None, None],
        volumes,
    )


def _volumes_again(run: Run, i: int, before: np.ndarray | None, after: np.ndarray | None) -> Mapping[str, float] | None:
    """Label volumes in ml of an augmented copy: the case's own, by how its label's voxels became more or fewer.

    The case's own were measured on its files; the ratio keeps what the prepared grid rounds away.
    """
    if before is None or after is None:
        return None
    case, names = run.store.cases[i], run.store.label_names
    old, new = (np.bincount(ids.clip(0).ravel(), minlength=len(names)).tolist() for ids in (before, after))
    voxel_ml = GeometryRecord.from_json(case.geometry).voxel_ml
    volumes = {}
    for k, name in enumerate(names):
        own = case.covariates.get(volume_column(name))
        if k and isinstance(own, int | float):
            volumes[volume_column(name)] = round(own * new[k] / old[k] if old[k] else new[k] * voxel_ml, 6)
    return volumes
