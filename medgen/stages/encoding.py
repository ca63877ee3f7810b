"""Stage latents."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F

from medgen.cohort.schema import volume_column
from medgen.models import tiling
from medgen.models.mask import to_cells
from medgen.prepare.grid import GeometryRecord
from medgen.prepare.padding import reached
from medgen.stages.ancestor import start_statistics
from medgen.stages.codec import trained_codec
from medgen.stages.copies import augmented
from medgen.stages.masks import follows_masks
from medgen.stages.run import Run
from medgen.store.augment import Augmentation
from medgen.store.latents import Latents, LatentStatistics


@dataclass(frozen=True)
class _Encodable:
    """A case, or an augmented copy of it: tensors (1, ...) on the device.

    Attributes:
        copy: 0 for the case itself.
        image: (1, C, X, Y, Z) float32.
        label: (1, X, Y, Z) int64, -1 where a case has none; None for a cohort without labels.
        reached: (1, 1, X, Y, Z) float32, 1 where the case's files reach.
        volumes_ml: of the label, where it was measured again.
    """

    copy: int
    image: torch.Tensor
    label: torch.Tensor | None
    reached: torch.Tensor
    volumes_ml: Mapping[str, float] | None

    def mirrored(self) -> "_Encodable":
        """Left for right."""
        label = None if self.label is None else self.label.flip(1)
        return replace(self, image=self.image.flip(2), label=label, reached=self.reached.flip(2))


class _Rows:
    """Rows of one array that is allocated once.

    Small arrays that stay, made between large ones that go, would keep the heap from giving those back: 22 GB for the
    110 MB of 1,500 latents.
    """

    def __init__(self, count: int) -> None:
        self.count, self.array = count, np.empty(0)

    def put(self, row: int, tensor: torch.Tensor) -> None:
        """Copy a tensor into its row."""
        value = tensor.detach().cpu().numpy()
        if not self.array.size:
            self.array = np.empty((self.count, *value.shape), value.dtype)
        self.array[row] = value


@torch.no_grad()
def latents(run: Run) -> None:
    """Encode every case, its augmented copies where it is a training case, and the mirror images where asked."""
    codec, store, c = trained_codec(run), run.store, run.config.latents
    cases: list[int] = []
    mirrored, copies, volumes = [], [], []
    training = set(run.train_cases())
    count = (len(store.cases) + c.copies * len(training)) * (2 if c.mirror else 1)
    mean, logvar, there, masks = (_Rows(count) for _ in range(4))
    for i in range(len(store.cases)):
        for one in _encodables(run, i, c.copies if i in training else 0):
            for side in (one, one.mirrored()) if c.mirror else (one,):
                posterior = tiling.encode(codec, side.image, side.label if codec.labels else None, tile=c.tile)
                row = len(cases)
                if follows_masks(run) and side.label is not None:
                    masks.put(row, to_cells(side.label, codec.stride)[0])
                mean.put(row, posterior.mean[0].float())
                logvar.put(row, posterior.logvar[0].float())
                # A latent is padding where all of its voxels are.
                there.put(row, F.max_pool3d(side.reached, codec.stride)[0, 0].bool())
                cases.append(i)
                mirrored.append(side is not one)
                copies.append(one.copy)
                volumes.append(one.volumes_ml)
        run.progress("latents", i + 1, len(store.cases), "cases")
    rows = [r for r, i in enumerate(cases) if i in training]
    Latents.write(
        run.folder / "latents",
        mean.array,
        logvar.array,
        cases,
        mirrored,
        start_statistics(run) or LatentStatistics.measure(mean.array[rows], logvar.array[rows]),
        copies=copies,
        volumes_ml=volumes,
        reached=there.array,
        masks=masks.array if masks.array.size else None,
    )


def _encodables(run: Run, i: int, copies: int) -> Iterator[_Encodable]:
    """A case and its augmented copies, each a pure function of (seed, case, number)."""
    store, device, augment = run.store, run.device, run.config.latents.augment.values()
    case = store.cases[i]
    image = np.asarray(store.image(i), dtype=np.float32)
    ids = None
    if len(store.label_values) > 1:
        ids = store.label(i).astype(np.int16) if case.has_label else np.full(store.shape, -1, dtype=np.int16)
    there = reached(GeometryRecord.from_json(case.geometry))

    def encodable(k: int, image: np.ndarray, ids: np.ndarray | None, volumes: Mapping[str, float] | None) -> _Encodable:
        label = None if ids is None else torch.from_numpy(ids)[None].long().to(device)
        return _Encodable(
            k,
            torch.from_numpy(image)[None].to(device),
            label,
            torch.from_numpy(there)[None, None].float().to(device),
            volumes,
        )

    yield encodable(0, image, ids, None)
    if not copies or augment is None:
        return
    augmentation = Augmentation(**augment, spacing_mm=store.spacing_mm)
    for k in range(1, copies + 1):
        made, label = augmented(image, ids, there, augmentation, (run.config.seed, i, k))
        yield encodable(k, made, label, _volumes_again(run, i, ids, label) if case.has_label else None)


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
