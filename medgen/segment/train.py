"""Train a segmenter on pairs, whether real, synthetic or both."""

import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from medgen.errors import InputError
from medgen.files import digest, read_json, remove_partials, write_json
from medgen.segment.network import Architecture, build
from medgen.segment.pairs import Pair, digests, loader, pairs_of, shape_of
from medgen.segment.randomise import Randomisation
from medgen.segment.segmenter import INDEX, WEIGHTS, Segmenter
from medgen.segment.task import SegmenterTask
from medgen.store.augment import Augmentation
from medgen.store.patches import PatchSampler
from medgen.store.pool import held
from medgen.store.prepared import Prepared
from medgen.training import checkpoint
from medgen.training.distributed import World
from medgen.training.loop import Progress, Schedule
from medgen.training.loop import train as run_loop
from medgen.training.precision import device_of

VERSION = 1
"""Of this room's results: raise it when the same cases and choices give another segmenter."""

PATCH, BATCH = (96, 96, 96), 2
"""What a segmenter is trained on at a step, where nothing else is asked for."""

CLASSICAL = Augmentation(
    rotate_degrees=(15.0, 15.0, 15.0),
    scale=0.15,
    translate_voxels=2.0,
    intensity_scale=0.15,
    intensity_shift=0.1,
    gamma=0.35,
    noise=0.1,
    chance=0.8,
)
"""Augmentation that keeps the side of the body, for voxels that are cubes; see :func:`classical`."""

_IDENTITY = "identity.json"


def grid_of(store: Prepared) -> dict[str, Any]:
    """What a segmenter of a prepared cohort is told of its channels, labels and voxels, so that it can be refused."""
    return {
        "channels": list(store.channels),
        "label_names": list(store.label_names),
        "spacing_mm": list(store.spacing_mm),
    }


def classical(spacing_mm: Sequence[float]) -> Augmentation:
    """:data:`CLASSICAL` on a grid of such voxels, in mm."""
    x, y, z = spacing_mm
    return replace(CLASSICAL, spacing_mm=(x, y, z))


def train_on(
    store: Prepared,
    indices: Iterable[int],
    folder: str | Path,
    *,
    steps: int,
    seed: int = 0,
    device: str | torch.device = "auto",
    on_progress: Progress | None = None,
) -> Segmenter:
    """:func:`train` with classical augmentation on cases of a prepared cohort, validated on its side "val".

    Args:
        store: the cohort.
        indices: of the cases; those without a label teach nothing.
        folder: of the segmenter.
        steps: of the optimiser.
        seed: of the first weights, the patches and the augmentation.
        device: where to train.
        on_progress: called with (done, total, remark).

    Raises:
        InputError: no case with a label, a folder that is something else, or a training that diverged.
    """
    return train(
        pairs_of(store, indices),
        folder,
        labels=len(store.label_values),
        held_out=pairs_of(store, store.indices("val")),
        steps=steps,
        augmentation=classical(store.spacing_mm),
        seed=seed,
        device=device,
        grid=grid_of(store),
        on_progress=on_progress,
    )


def train(
    cases: Sequence[Pair],
    folder: str | Path,
    *,
    labels: int,
    held_out: Sequence[Pair] = (),
    extra: Sequence[Pair] = (),
    share: float = 0.5,
    randomisation: Randomisation | None = None,
    widths: Sequence[int] = (16, 32, 64, 128),
    patch: Sequence[int] = PATCH,
    steps: int = 2000,
    batch: int = BATCH,
    learning_rate: float = 1e-3,
    augmentation: Augmentation | None = CLASSICAL,
    seed: int = 0,
    device: str | torch.device = "auto",
    precision: str = "auto",
    resident: int | None = None,
    grid: Mapping[str, Any] | None = None,
    on_progress: Progress | None = None,
) -> Segmenter:
    """Train a segmenter, or go on where a killed training stopped, or load it where the same one is finished.

    The result is a pure function of the cases, the choices and the machine; the number of steps is fixed, so that
    trainings on few and on many cases cost the same.

    Args:
        cases: (image (C, X, Y, Z) in [-1, 1], label ids (X, Y, Z)) on one grid; -1 marks voxels that teach nothing.
        folder: of the segmenter. What it holds of another training is replaced.
        labels: label ids with background.
        held_out: cases to validate on, never trained on.
        extra: more cases, synthetic ones for example, that make up a share of the patches however many they are.
        share: of the patches that are of ``extra``, in (0, 1); without extra cases it is not looked at.
        randomisation: images of random contrast are made from the labels at every step, in place of the cases' own;
            None for none. The geometric part of ``augmentation`` comes before it.
        widths: channels of each level.
        patch: extents of a training patch, clipped to the grid's.
        steps: of the optimiser.
        batch: patches a step.
        learning_rate: of AdamW, warmed up and then falling to 0 as a cosine.
        augmentation: classical augmentation; None for none.
        seed: of the first weights, the patches and the augmentation.
        device: where to train.
        precision: float32, bfloat16 or auto.
        resident: how many cases are on the device at a time; by default all, or what fits into 0.4 of its memory.
        grid: of the cases, see :func:`grid_of`; it is written down and changes nothing.
        on_progress: called with (done, total, remark).

    Returns:
        The segmenter with averaged weights, as :meth:`Segmenter.load` would load it from the folder.

    Raises:
        InputError: no case, cases of different shapes, a label id out of range, a folder that is something else, or
            a training that diverged.
    """
    folder, where = Path(folder), device_of(device) if isinstance(device, str) else device
    if extra and not (cases and 0 < share < 1):
        raise InputError(f"extra cases are mixed with others by a share between 0 and 1, not {share:g} of {len(cases)}")
    pairs = [*cases, *extra]
    channels, *extent = shape_of(pairs)
    architecture = Architecture(channels, labels, tuple(widths))
    window = tuple(min(p, n) for p, n in zip(patch, extent, strict=True))
    training: dict[str, Any] = {
        "cases": len(cases),
        "steps": steps,
        "batch": batch,
        "learning_rate": learning_rate,
        "augmentation": None if augmentation is None else asdict(augmentation),
        "seed": seed,
        "precision": precision,
    }
    # What is off adds nothing, so that older segmenters are not trained again.
    training |= {"extra": len(extra), "share": share} if extra else {}
    training |= {"randomisation": {**asdict(randomisation), "precision": "float32"}} if randomisation else {}
    training |= {"resident": resident} if resident else {}
    identity = digest([VERSION, asdict(architecture), window, training, *digests(pairs, labels)])
    _claim(folder, identity)
    if (folder / INDEX).is_file():
        return Segmenter.load(folder, device=where)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = build(architecture).to(where)
    segmenter = Segmenter(architecture, net, window, training, dict(grid or {}))
    mix = (len(extra), share) if extra else None
    volumes = held(loader(pairs, labels), len(pairs), device=where, seed=seed, resident=resident, mix=mix)
    sampler = PatchSampler(volumes, window, batch, seed=seed, kinds=("image", "label"), augmentation=augmentation)
    task = SegmenterTask(
        segmenter, sampler, held_out, learning_rate=learning_rate, seed=seed, randomisation=randomisation
    )
    schedule = Schedule(
        steps=steps, warmup=min(50, steps // 10), precision=precision, validate_every=max(1, steps // 4)
    )
    # Stages that train one are the first process's alone.
    run_loop(task, folder, schedule, where, on_progress, here=World())
    net.load_state_dict(checkpoint.load_average(folder / checkpoint.NAME, "net", net), strict=True)
    done = segmenter.with_network(net)
    done.save(folder)
    (folder / checkpoint.NAME).unlink()  # it is finished: what was kept to go on is four times the weights
    return done


def _claim(folder: Path, identity: str) -> None:
    """Make the folder this training's own: what another training left in it is removed."""
    path = folder / _IDENTITY
    if folder.is_dir():
        remove_partials(folder)
    if path.is_file():
        if read_json(path) == {"identity": identity}:
            return
        for name in (INDEX, WEIGHTS, checkpoint.NAME, "log.jsonl"):
            (folder / name).unlink(missing_ok=True)
        for name in ("tensorboard", "panels"):
            shutil.rmtree(folder / name, ignore_errors=True)
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} holds something else already; choose a new folder for the segmenter")
    write_json(path, {"identity": identity})
