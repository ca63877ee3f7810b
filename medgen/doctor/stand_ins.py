"""What stands in for a cohort while the cost of training on it is measured or counted."""

from collections.abc import Sequence
from typing import cast

import numpy as np
import torch

from medgen.segment.network import Architecture, build
from medgen.segment.segmenter import Segmenter
from medgen.segment.task import SegmenterTask
from medgen.segment.train import BATCH, PATCH
from medgen.store.augment import Augmentation
from medgen.store.patches import Batch, PatchSampler

_CASES = 2


class Zeros:
    """In a sampler's place, nothing is cropped: patches of zeros, made when they are asked for.

    Args:
        channels: of the image.
        labels: ids; with 0 there are no label patches.
        shape: of the grid.
        patch: extents, the grid's by default.
        batch: patches a step.
        device: where they are made.
    """

    rank = 0

    def __init__(
        self,
        channels: int,
        labels: int,
        shape: Sequence[int],
        patch: Sequence[int] | None,
        batch: int,
        device: torch.device,
    ) -> None:
        self.channels, self.labels, self.batch, self.device = channels, labels, batch, device
        self.patch = tuple(min(p, n) for p, n in zip(patch or shape, shape, strict=True))

    def __call__(self, step: int) -> Batch:
        """Zeros of a batch's shape."""
        image = torch.zeros(self.batch, self.channels, *self.patch, device=self.device)
        arrays: tuple[torch.Tensor, ...] = (image,)
        if self.labels:
            label = torch.zeros(self.batch, 1, *self.patch, dtype=torch.int64, device=self.device)
            arrays = (image, label)
        return Batch(np.zeros(self.batch, int), np.zeros((self.batch, 3), int), arrays)

    def as_sampler(self) -> PatchSampler:
        """As what a task asks for."""
        return cast(PatchSampler, self)


def random_cases(
    channels: int,
    labels: int,
    shape: Sequence[int],
    patch: Sequence[int] | None,
    batch: int,
    augmentation: Augmentation | None,
    device: torch.device,
) -> PatchSampler:
    """A sampler of patches of two random cases, as trainings have one; arguments as of :class:`Zeros`."""
    arrays = [(torch.rand(_CASES, channels, *shape) * 2 - 1).half().to(device)]
    if labels:
        arrays.append(torch.randint(0, labels, (_CASES, 1, *shape), dtype=torch.int16).to(device))
    return PatchSampler(arrays, patch or shape, batch, seed=0, augmentation=augmentation)


def segmenter_task(channels: int, labels: int, shape: Sequence[int], device: torch.device) -> SegmenterTask:
    """The training of a segmenter on zeros, with the choices of :func:`medgen.segment.train.train_on`."""
    architecture = Architecture(channels, labels)
    zeros = Zeros(channels, labels, shape, PATCH, BATCH, device)
    segmenter = Segmenter(architecture, build(architecture).to(device), zeros.patch, {}, {})
    return SegmenterTask(segmenter, zeros.as_sampler(), [], learning_rate=1e-6)
