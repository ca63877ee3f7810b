"""What samples are held against: figures of the real cases, measured once for all models that are compared."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from medgen.cohort.case import numbered
from medgen.errors import InputError
from medgen.measure.features import Projection
from medgen.measure.neighbours import voxel_space
from medgen.measure.overlap import dice
from medgen.prepare.grid import GeometryRecord
from medgen.segment.segmenter import Segmenter
from medgen.store.prepared import Prepared

Progress = Callable[[int, int, str], None]
LEAST = 8
"""Cases of a side below which nothing is compared."""


@dataclass(frozen=True, eq=False)
class Measured:
    """Figures of a set of n images.

    Attributes:
        features: (n, F) of the segmenter.
        voxels: (n, V) block means, whose distances are RMS differences.
        found_ml: (n, L - 1) volumes of the ids that the segmenter finds, in ml, the background left out.
        soft_ml: (n, L - 1) its soft volumes. A segmenter that was trained briefly is never quite sure of the
            background, and over a large grid that adds up.
        label_ml: (n, L - 1) volumes of the images' own labels, in ml; NaN where an image has none.
        dice: (n, L - 1) Dice of the own label with what the segmenter finds; NaN where undefined.
    """

    features: np.ndarray
    voxels: np.ndarray
    found_ml: np.ndarray
    soft_ml: np.ndarray
    label_ml: np.ndarray
    dice: np.ndarray

    def __len__(self) -> int:
        return len(self.features)


@dataclass(frozen=True, eq=False)
class Reference:
    """A prepared cohort as the protocol sees it.

    Attributes:
        store: the cohort.
        segmenter: trained on its training cases, or independent of them.
        inside: (X, Y, Z) bool: where most training cases are no padding. Features and sharpness are taken here.
        frame: (X, Y, Z) bool: where at least 19 of 20 training cases are padding.
        block: voxels along each axis whose mean the voxel space takes.
        train_cases: positions of the training cases in the cohort.
        held_out_cases: positions of the held-out cases.
        train: figures of the training cases.
        held_out: figures of the held-out cases.
        projection: principal components of the training cases' features.
        unseen: positions among the training cases of those that the segmenter has not seen; the floor is theirs. None
            where it has seen them all, or none of them: then it is that of all training cases.
    """

    store: Prepared
    segmenter: Segmenter
    inside: np.ndarray
    frame: np.ndarray
    block: int
    train_cases: tuple[int, ...]
    held_out_cases: tuple[int, ...]
    train: Measured
    held_out: Measured
    projection: Projection
    unseen: tuple[int, ...] | None = None

    @property
    def floor_rows(self) -> list[int]:
        """Rows of ``train`` that stand for real cases in the floor."""
        return list(range(len(self.train)) if self.unseen is None else self.unseen)

    def voxel_ml(self) -> float:
        """Median over the training cases of a prepared voxel's volume in the subject's own space."""
        return float(np.median([_voxel_ml(self.store, i) for i in self.train_cases]))


def halves(store: Prepared) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Training cases in two: those that a segmenter may see, and those that stay unseen for the floor.

    Subjects take turns, so that both halves hold what the order of the cohort holds. Where the second half would have
    fewer than 8 cases, or none of the first a label, it is empty and the first has all.
    """
    train = store.indices("train")
    number = numbered(store.cases[i].subject_id for i in train)
    first, second = (tuple(i for i in train if number[store.cases[i].subject_id] % 2 == side) for side in (0, 1))
    enough = len(second) >= LEAST and any(store.cases[i].has_label for i in first)
    return (first, second) if enough else (train, ())


def measure_reference(
    store: Prepared,
    segmenter: Segmenter,
    *,
    components: int = 16,
    block: int = 2,
    unseen: Sequence[int] = (),
    least: int = LEAST,
    on_progress: Progress | None = None,
) -> Reference:
    """Measure the training and the held-out cases of a cohort.

    Args:
        store: with a split into "train" and "val".
        segmenter: for the cohort's labels.
        components: of the features' projection, fitted on the training cases.
        block: voxels whose mean the voxel space takes.
        unseen: training cases that the segmenter was not trained on, as positions in the store; see :func:`halves`.
        least: training and held-out cases that there must be; distributions need 8, volumes fewer.
        on_progress: called with (done, total, what).

    Raises:
        InputError: fewer training or held-out cases, or a segmenter for other labels.
    """
    sides = tuple(store.indices("train")), tuple(store.indices("val"))
    if min(map(len, sides)) < least:
        found = " and ".join(str(len(side)) for side in sides)
        raise InputError(
            f"{store.folder} has {found} training and held-out cases; the comparison needs {least} of each"
        )
    if segmenter.architecture.labels != len(store.label_values):
        raise InputError(f"the segmenter knows {segmenter.architecture.labels} labels, the cohort has another number")
    filled = np.mean([np.asarray(store.image(i) > -1).any(axis=0) for i in sides[0]], axis=0)
    inside, frame = filled >= 0.5, filled <= 0.05
    total, done = sum(map(len, sides)), 0
    measured = []
    for side in sides:
        images = (np.asarray(store.image(i), np.float32) for i in side)
        labels = (np.asarray(store.label(i)) if store.cases[i].has_label else None for i in side)
        voxel_ml = [_voxel_ml(store, i) for i in side]

        def tell(count: int, offset: int = done) -> None:
            if on_progress:
                on_progress(offset + count, total, "real cases measured")

        measured.append(measure_images(images, labels, voxel_ml, segmenter, inside, block=block, tell=tell))
        done += len(side)
    train, held_out = measured
    projection = Projection.fit(train.features, components)
    rows = tuple(sides[0].index(i) for i in unseen) or None
    return Reference(store, segmenter, inside, frame, block, *sides, train, held_out, projection, rows)


def measure_images(
    images: Iterable[np.ndarray],
    labels: Iterable[np.ndarray | None],
    voxel_ml: Sequence[float],
    segmenter: Segmenter,
    inside: np.ndarray,
    *,
    block: int = 2,
    tell: Callable[[int], None] = lambda count: None,
) -> Measured:
    """Figures of images (C, X, Y, Z) in [-1, 1] with label ids (X, Y, Z) or None, on the prepared grid."""
    features, voxels, found, soft, own, overlap = [], [], [], [], [], []
    ids = range(1, segmenter.architecture.labels)
    for done, (image, label, ml) in enumerate(zip(images, labels, voxel_ml, strict=True), start=1):
        features.append(segmenter.features(image, inside))
        voxels.append(voxel_space(image, block))
        probabilities = segmenter.probabilities(image)
        predicted = probabilities.argmax(axis=0)
        found.append(np.array([(predicted == i).sum() for i in ids]) * ml)
        soft.append(probabilities[1:].sum(axis=(1, 2, 3), dtype=np.float64) * ml)
        if label is None:
            own.append(np.full(len(ids), np.nan))
            overlap.append([float("nan")] * len(ids))
        else:
            own.append(np.array([(label == i).sum() for i in ids]) * ml)
            overlap.append(dice(predicted, label, ids))
        tell(done)
    columns = (features, voxels, found, soft, own, overlap)
    return Measured(*(np.stack([np.asarray(row) for row in column]) for column in columns))


def _voxel_ml(store: Prepared, index: int) -> float:
    return GeometryRecord.from_json(store.cases[index].geometry).voxel_ml
