"""Pairs of image and label: what a segmenter is trained on, whether real, synthetic or both."""

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np
import torch

from medgen.errors import InputError
from medgen.store.pool import Load
from medgen.store.prepared import Prepared

Pair = tuple[np.ndarray, np.ndarray]
"""An image (C, X, Y, Z) in [-1, 1] and its label ids (X, Y, Z), -1 where they are not known."""


def pairs_of(store: Prepared, indices: Iterable[int]) -> list[Pair]:
    """Image and label (memory maps) of those cases of a prepared cohort that have a label."""
    return [(store.image(i), store.label(i)) for i in indices if store.cases[i].has_label]


def shape_of(pairs: Sequence[Pair]) -> tuple[int, ...]:
    """Of the images that a segmenter is trained on, (C, X, Y, Z).

    Raises:
        InputError: no pair, or pairs of different shapes.
    """
    if not pairs:
        raise InputError("a segmenter needs at least one labelled case to be trained on; there is none")
    shapes = {(image.shape, label.shape) for image, label in pairs}
    image_shape, label_shape = next(iter(shapes))
    if len(shapes) > 1 or len(image_shape) != 4 or image_shape[1:] != label_shape:
        raise InputError(f"the cases of a segmenter must share one grid, found {sorted(shapes)}; prepare them together")
    return image_shape


def digests(pairs: Sequence[Pair], labels: int) -> tuple[str, str]:
    """Of all images and of all labels, read case by case: the cohort need not fit into memory.

    Args:
        pairs: what is trained on.
        labels: label ids with background.

    Raises:
        InputError: an id out of range.
    """
    of_images, of_labels = hashlib.sha256(), hashlib.sha256()
    for pair in pairs:
        image, label = _stored(pair)
        if label.max() >= labels or label.min() < -1:
            raise InputError(
                f"label ids run from {label.min()} to {label.max()}, but {labels} ids from 0 were announced; give ids, "
                "not values"
            )
        of_images.update(image.data)
        of_labels.update(label.data)
    return of_images.hexdigest(), of_labels.hexdigest()


def loader(pairs: Sequence[Pair], labels: int) -> Load:
    """Number of a pair -> image (C, X, Y, Z) float16 and label (1, X, Y, Z) of the smallest integers that hold ids."""
    ids = torch.int8 if labels <= torch.iinfo(torch.int8).max + 1 else torch.int16

    def load(number: int) -> tuple[torch.Tensor, torch.Tensor]:
        image, label = _stored(pairs[number])
        return torch.from_numpy(image), torch.from_numpy(label).to(ids)

    return load


def _stored(pair: Pair) -> tuple[np.ndarray, np.ndarray]:
    """Image (C, X, Y, Z) float16 and label (1, X, Y, Z) int16, copied."""
    image, label = pair
    return np.array(image, dtype=np.float16, order="C"), np.array(label, dtype=np.int16, order="C")[None]
