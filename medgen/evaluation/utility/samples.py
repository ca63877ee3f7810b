"""Synthetic cases as the segmenter takes them: on the cohort's grid, with the cohort's label ids; and their copies."""

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from medgen.errors import InputError
from medgen.evaluation.codec_quality import rounded
from medgen.measure.neighbours import nearness, voxel_space
from medgen.segment.task import Pair
from medgen.store.prepared import Prepared

_MOST_VALUES = 50_000  # of an image in the space of neighbours
_QUANTILE = 0.05
_LEAST = 4  # training cases, below which their own distances say nothing


def pairs_of_samples(samples: Prepared, store: Prepared) -> list[Pair]:
    """The pairs of prepared samples with the label ids of a cohort, in the samples' order.

    Labels are known by their names, for a format may have renumbered them, else by their values.

    Raises:
        InputError: the samples have a label that the cohort has not, or channels of another number.
    """
    if len(samples.channels) != len(store.channels):
        raise InputError(
            f"{samples.folder} has the channels {', '.join(samples.channels)}, the cohort {', '.join(store.channels)}"
        )
    by_name = {name: i for i, name in enumerate(store.label_names)}
    by_value = {value: i for i, value in enumerate(store.label_values)}
    ids = []
    for name, value in zip(samples.label_names, samples.label_values, strict=True):
        known = by_name.get(name, by_value.get(value))
        if known is None:
            raise InputError(
                f"{samples.folder} has a label '{name}' that the cohort has not; generate the samples anew"
            )
        ids.append(known)
    table = np.array(ids, dtype=np.uint8 if len(store.label_values) <= 256 else np.uint16)
    order = sorted(range(len(samples.cases)), key=lambda i: samples.cases[i].case_id)
    return [(samples.image(i), table[np.asarray(samples.label(i))]) for i in order if samples.cases[i].has_label]


def copy_rates(
    store: Prepared, train: Sequence[int], held_out: Sequence[int], samples: Sequence[np.ndarray]
) -> dict[str, Any]:
    """How many samples, and how many held-out cases, are nearer to a training case than training cases usually are.

    Args:
        store: the prepared cohort.
        train: positions of the images that the generator was trained on, with a label or without.
        held_out: positions of cases that it never saw.
        samples: images (C, X, Y, Z) on the same grid.

    Returns:
        :class:`medgen.measure.neighbours.Nearness` as JSON; ``counts`` says whether the samples' rate is at most that
        of real cases, and is null where there are too few cases to tell.
    """
    if len(train) < _LEAST or not held_out or not samples:
        return {"counts": None, "quantile": _QUANTILE}
    block = max(2, math.ceil((math.prod(store.shape) * len(store.channels) / _MOST_VALUES) ** (1 / 3)))
    block = min(block, *store.shape)

    def space(images: Sequence[np.ndarray]) -> np.ndarray:
        return np.stack([voxel_space(np.asarray(image, np.float32), block) for image in images])

    real = [space([store.image(i) for i in side]) for side in (train, held_out)]
    found = nearness(space(samples), real[1], real[0], _QUANTILE)
    figures = {key: rounded(value) for key, value in asdict(found).items()}
    return {**figures, "counts": found.copies <= found.held_out_copies, "quantile": _QUANTILE, "block": block}
