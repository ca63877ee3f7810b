"""Connected structures of a label map, each with how well another map keeps it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from medgen.measure.box import box_of

FOUND = 0.1
"""Share of a structure that the other map must cover to have found it (Commowick et al. 2018)."""


@dataclass(frozen=True)
class Structure:
    """One connected structure (26 neighbours) of a label.

    Attributes:
        id: its label.
        volume_ml: its volume.
        dice: Dice of it with the other map's voxels of that label nearest to it.
        covered: share of its voxels that the other map gives the same label.
    """

    id: int
    volume_ml: float
    dice: float
    covered: float


@dataclass(frozen=True)
class SizeClass:
    """The structures of one label with a volume from ``from_ml`` to below ``below_ml`` (None: no end).

    Attributes:
        from_ml: inclusive.
        below_ml: exclusive.
        count: structures.
        dice: their mean Dice, NaN where there is none.
        recall: share of them that was found, NaN where there is none.
    """

    from_ml: float
    below_ml: float | None
    count: int
    dice: float
    recall: float


def structures(
    truth: np.ndarray, found: np.ndarray, ids: Sequence[int], spacing_mm: Sequence[float]
) -> list[Structure]:
    """Every connected structure of ``truth``, judged on its own.

    A voxel of ``found`` counts for the structure of ``truth`` nearest to it, so that each is scored in its own
    territory: the Dice of a whole label says nothing of its small parts.

    Args:
        truth: (X, Y, Z) ids.
        found: (X, Y, Z) ids.
        ids: the labels to look at.
        spacing_mm: of both maps.

    Reference:
        Jaus et al. (2024), arXiv:2410.18684; recall at 10% coverage: Commowick et al. (2018),
        doi:10.1038/s41598-018-31911-7.
    """
    assert truth.shape == found.shape, f"label maps of shapes {truth.shape} and {found.shape}"
    voxel_ml = float(np.prod(spacing_mm)) / 1000.0
    scored = []
    for i in ids:
        box = box_of((truth == i) | (found == i))
        if box is None:
            continue
        in_truth, in_found = truth[box] == i, found[box] == i
        parts, count = ndimage.label(in_truth, structure=np.ones((3, 3, 3), bool))
        if not count:
            continue
        size = np.bincount(parts.ravel(), minlength=count + 1)[1:]
        territory = parts
        if (in_found & ~in_truth).any() and count > 1:
            nearest = ndimage.distance_transform_edt(
                ~in_truth, sampling=spacing_mm, return_distances=False, return_indices=True
            )
            territory = parts[tuple(nearest)]
        elif count == 1:
            territory = np.ones_like(parts)
        given = np.bincount(territory[in_found], minlength=count + 1)[1:]
        both = np.bincount(parts[in_found & in_truth], minlength=count + 1)[1:]
        dice = 2.0 * both / (size + given)
        scored += [
            Structure(int(i), float(n) * voxel_ml, float(d), float(b / n))
            for n, d, b in zip(size, dice, both, strict=True)
        ]
    return scored


def by_size(found: Sequence[Structure], edges_ml: Sequence[float]) -> list[SizeClass]:
    """Means over classes of volume: below the first edge, between the edges, from the last on."""
    classes = []
    for low, high in zip((0.0, *edges_ml), (*edges_ml, None), strict=True):
        inside = [s for s in found if s.volume_ml >= low and (high is None or s.volume_ml < high)]
        dice = float(np.mean([s.dice for s in inside])) if inside else float("nan")
        recall = float(np.mean([s.covered >= FOUND for s in inside])) if inside else float("nan")
        classes.append(SizeClass(low, high, len(inside), dice, recall))
    return classes
