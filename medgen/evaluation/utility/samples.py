"""How many synthetic cases are copies of training cases."""

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from medgen.evaluation.codec_quality import rounded
from medgen.measure.neighbours import nearness, voxel_space
from medgen.store.prepared import Prepared

_MOST_VALUES = 50_000  # of an image in the space of neighbours
_QUANTILE = 0.05
_LEAST = 4  # training cases, below which their own distances say nothing


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
