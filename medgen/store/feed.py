"""From a prepared cohort to a patch sampler: storage, centres, and a pool where the cohort does not fit."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import torch

from medgen.store.augment import Augmentation
from medgen.store.centres import Centres, Chances
from medgen.store.patches import Kind, PatchSampler, to_uint8
from medgen.store.pool import held
from medgen.store.prepared import Prepared

Storage = Literal["float16", "bfloat16", "uint8"]


def patch_feed(
    store: Prepared,
    cases: Sequence[int],
    patch: Sequence[int],
    batch: int,
    *,
    seed: int,
    device: torch.device,
    rank: int = 0,
    storage: Storage = "float16",
    resident: int | None = None,
    chances: Chances | None = None,
    augmentation: Augmentation | None = None,
    labels: bool = True,
) -> PatchSampler:
    """A sampler of images and, where the cohort has labels, of label ids.

    Args:
        store: the prepared cohort.
        cases: positions in it; ``Batch.cases`` counts in this sequence.
        patch: extents of a patch.
        batch: patches a step.
        seed: of the experiment.
        device: where volumes are kept.
        rank: of this process in a distributed training.
        storage: of images on the device.
        resident: how many cases are on the device at a time; by default all, or what fits into 0.4 of its memory.
        chances: of patches centred on something.
        augmentation: of patches; its spacing is set to the store's.
        labels: False leaves label ids out all the same; centres may still be labels.
    """
    known = len(store.label_values) > 1
    labelled = known and labels
    kinds: tuple[Kind, ...] = ("image", "label") if labelled else ("image",)
    # -1 for "no label here" has to fit beside the ids.
    ids = next(d for d in (torch.int8, torch.int16, torch.int32) if len(store.label_values) <= torch.iinfo(d).max + 1)

    def load(number: int) -> tuple[torch.Tensor, ...]:
        image = torch.from_numpy(np.array(store.image(cases[number])))
        image = to_uint8(image) if storage == "uint8" else image.to(getattr(torch, storage))
        if not labelled:
            return (image,)
        if not store.cases[cases[number]].has_label:
            return image, torch.full((1, *store.shape), -1, dtype=ids)
        return image, torch.from_numpy(np.asarray(store.label(cases[number])).astype(np.int32))[None].to(ids)

    centres = None
    if chances is not None and chances.total > 0:
        pairs = ((store.image(i), store.label(i) if store.cases[i].has_label else None) for i in cases)
        centres = Centres.build(pairs, len(store.label_values) if known else 0, seed=seed)
    if augmentation is not None:
        augmentation = replace(augmentation, spacing_mm=store.spacing_mm)
    return PatchSampler(
        held(load, len(cases), device=device, seed=seed, rank=rank, resident=resident),
        patch,
        batch,
        seed=seed,
        rank=rank,
        kinds=kinds,
        centres=centres,
        chances=chances,
        augmentation=augmentation,
    )
