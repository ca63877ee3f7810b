"""The arms: what each gives the segmenter to train on. The number of steps and the network are the same in all."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from medgen.segment.pairs import Pair
from medgen.segment.randomise import Randomisation
from medgen.segment.segmenter import Segmenter
from medgen.segment.train import classical
from medgen.store.augment import Augmentation


@dataclass(frozen=True, eq=False)
class Material:
    """What there is to train on at one size.

    Attributes:
        labelled: the labelled real cases.
        unlabelled: images (C, X, Y, Z) of the other real cases that are not held out.
        synthetic: n -> the synthetic pairs of the first n requests; made or read when they are asked for.
        teacher: seed -> the segmenter of the arm ``classical`` of this size.
        spacing_mm: of the grid.
    """

    labelled: Sequence[Pair]
    unlabelled: Sequence[np.ndarray]
    synthetic: Callable[[int], Sequence[Pair]]
    teacher: Callable[[int], Segmenter]
    spacing_mm: tuple[float, float, float]

    @property
    def classical(self) -> Augmentation:
        """Classical augmentation on this grid."""
        return classical(self.spacing_mm)


@dataclass(frozen=True, eq=False)
class Recipe:
    """What :func:`medgen.segment.train.train` takes of an arm."""

    cases: Sequence[Pair]
    augmentation: Augmentation | None
    extra: Sequence[Pair] = ()
    randomisation: Randomisation | None = None


def _real(material: Material, seed: int, n: int) -> Recipe:
    return Recipe(material.labelled, None)


def _classical(material: Material, seed: int, n: int) -> Recipe:
    return Recipe(material.labelled, material.classical)


def _synthetic(material: Material, seed: int, n: int) -> Recipe:
    return Recipe(material.labelled, material.classical, extra=material.synthetic(n))


def _pseudo(material: Material, seed: int, n: int) -> Recipe:
    teacher = material.teacher(seed)
    pairs = [(image, teacher.predict(image)) for image in material.unlabelled]
    return Recipe(material.labelled, material.classical, extra=pairs)


def _synthetic_only(material: Material, seed: int, n: int) -> Recipe:
    return Recipe(material.synthetic(n), material.classical)


def _randomised(material: Material, seed: int, n: int) -> Recipe:
    geometric = replace(material.classical, intensity_scale=0.0, intensity_shift=0.0, gamma=0.0, noise=0.0)
    return Recipe(material.labelled, geometric, randomisation=Randomisation())


Arm = Callable[[Material, int, int], Recipe]
"""(material, seed, number of synthetic cases) -> recipe."""

ARMS: Mapping[str, Arm] = {
    "real": _real,
    "classical": _classical,
    "pseudo": _pseudo,
    "randomised": _randomised,
    "synthetic": _synthetic,
    "synthetic_only": _synthetic_only,
}
DRAWS = frozenset({"synthetic", "synthetic_only"})
"""Arms that need synthetic cases."""
MIXES = frozenset({"synthetic", "pseudo"})
"""Arms that mix extra cases with real ones."""
TOLD = {
    "real": "real cases, no augmentation",
    "classical": "real cases, classical augmentation",
    "pseudo": "real and, of the unlabelled images, pseudo-labelled cases; classical augmentation",
    "randomised": "images of random contrast from the real label maps",
    "synthetic": "real and synthetic cases, classical augmentation",
    "synthetic_only": "synthetic cases alone, classical augmentation",
}
"""The arms in words."""


def lacks(arm: str, unlabelled: int) -> str:
    """Why an arm cannot be at a size, empty where it can.

    Args:
        arm: a key of :data:`ARMS`.
        unlabelled: how many unlabelled images there are.
    """
    return "no unlabelled image at this size" if arm == "pseudo" and not unlabelled else ""
