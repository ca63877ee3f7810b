"""Patch loaders of MONAI and TorchIO, set up as their documentation does, for ``patches.py``.

Both get the cohort in memory: float32 images and uint8 labels. "augmented" means the same for all: flips of each axis,
a turn up to 15 degrees about each axis with a zoom up to 10%, intensities scaled and shifted up to 10% and noise up to
0.1, to every patch; images trilinear, labels nearest.

- MONAI: ``CacheDataset`` as it is, metadata tracking off, dictionary transforms on the patch. By default it copies the
  whole cached volume for every item; "uncopied" is ``copy_cache=False``, which its tutorials do not set.
- TorchIO: ``Queue`` with ``UniformSampler``, 10 patches a volume, transforms on the whole volume as in its examples,
  so that they are paid once for 10 patches.
"""

from collections.abc import Iterator
from math import pi

import monai
import torch
import torchio as tio
from monai import transforms as mt
from monai.data import CacheDataset, DataLoader, list_data_collate

BATCH = 8
DEGREES, ZOOM, SCALE, SHIFT, NOISE = 15.0, 0.1, 0.1, 0.1, 0.1
KEYS = ("image", "label")
PER_VOLUME = 10
QUEUE = 40

Case = dict[str, torch.Tensor]


def _monai_augmentation() -> list[mt.Transform]:
    turn = [DEGREES * pi / 180] * 3
    return [
        mt.RandAffined(
            KEYS,
            prob=1.0,
            rotate_range=turn,
            scale_range=[ZOOM] * 3,
            mode=("bilinear", "nearest"),
            padding_mode="border",
        ),
        *(mt.RandFlipd(KEYS, prob=0.5, spatial_axis=axis) for axis in range(3)),
        mt.RandScaleIntensityd("image", factors=SCALE, prob=1.0),
        mt.RandShiftIntensityd("image", offsets=SHIFT, prob=1.0),
        mt.RandGaussianNoised("image", prob=1.0, std=NOISE),
    ]


def monai_loader(
    cases: list[Case], size: int, *, samples: bool, copied: bool, augmented: bool, workers: int
) -> Iterator[int]:
    """Yields the number of patches of each batch, for ever; ``samples`` crops four patches from a volume at a time."""
    monai.data.set_track_meta(False)
    roi = [size] * 3
    crop: mt.Transform = (
        mt.RandSpatialCropSamplesd(KEYS, roi_size=roi, num_samples=4, random_size=False)
        if samples
        else mt.RandSpatialCropd(KEYS, roi_size=roi, random_size=False)
    )
    chain = mt.Compose([crop, *(_monai_augmentation() if augmented else [])])
    dataset = CacheDataset(cases * max(1, 200 // len(cases)), chain, progress=False, copy_cache=copied)
    loader = DataLoader(
        dataset,
        batch_size=BATCH // 4 if samples else BATCH,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        persistent_workers=workers > 0,
        collate_fn=list_data_collate,
    )
    while True:
        for batch in loader:
            assert batch["image"].shape[2:] == batch["label"].shape[2:] == (size, size, size)
            yield len(batch["image"])


def _levels(x: torch.Tensor) -> torch.Tensor:
    gain, offset = 2 * torch.rand(2) - 1
    return x * (1 + SCALE * gain) + SHIFT * offset


def _torchio_augmentation() -> tio.Transform:
    return tio.Compose(
        [
            tio.RandomFlip(axes=(0, 1, 2), flip_probability=0.5),
            tio.RandomAffine(scales=ZOOM, degrees=DEGREES, image_interpolation="linear"),
            tio.Lambda(_levels, types_to_apply=[tio.INTENSITY]),
            tio.RandomNoise(std=(0, NOISE)),
        ]
    )


def torchio_loader(cases: list[Case], size: int, *, augmented: bool, workers: int) -> Iterator[int]:
    """Yields the number of patches of each batch, for ever."""
    subjects = [
        tio.Subject(image=tio.ScalarImage(tensor=case["image"]), label=tio.LabelMap(tensor=case["label"]))
        for case in cases
    ]
    dataset = tio.SubjectsDataset(subjects, transform=_torchio_augmentation() if augmented else None)
    queue = tio.Queue(
        dataset,
        max_length=QUEUE,
        samples_per_volume=PER_VOLUME,
        sampler=tio.UniformSampler(size),
        num_workers=workers,
    )
    loader = tio.SubjectsLoader(queue, batch_size=BATCH, num_workers=0, drop_last=True)
    while True:
        for batch in loader:
            assert batch["image"][tio.DATA].shape[2:] == (size, size, size)
            yield len(batch["image"][tio.DATA])
