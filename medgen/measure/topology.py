"""How a structure hangs together: its connected pieces, and its tunnels and cavities by the Euler number."""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from medgen.measure.box import box_of

_NEIGHBOURS_26 = np.ones((3, 3, 3), dtype=bool)


@dataclass(frozen=True)
class Topology:
    """Topology of one structure, voxels touching by a corner being connected (26 neighbours).

    Attributes:
        voxels: of the structure.
        components: connected components.
        pieces: components that hold at least the asked share of the voxels.
        loose: share of the voxels that lie in none of the pieces.
        euler: components minus tunnels plus cavities.
    """

    voxels: int
    components: int
    pieces: int
    loose: float
    euler: int


def topology(mask: np.ndarray, *, piece: float = 0.05) -> Topology:
    """Topology of a structure.

    Args:
        mask: (X, Y, Z) bool.
        piece: share of the voxels from which a component counts as a piece rather than as a speck.
    """
    inside = cropped(mask)
    if inside is None:
        return Topology(0, 0, 0, 0.0, 0)
    parts, count = ndimage.label(inside, structure=_NEIGHBOURS_26)
    sizes = np.bincount(parts.ravel(), minlength=count + 1)[1:]
    total = int(sizes.sum())
    large = sizes >= piece * total
    return Topology(total, int(count), int(large.sum()), float(sizes[~large].sum() / total), euler_number(inside))


def euler_number(mask: np.ndarray) -> int:
    """Euler number of a structure whose voxels are closed cubes: corners - edges + faces - cubes of their union.

    A solid ball has 1, a ring 0, a hollow ball 2; several structures add up. Cubes that share no more than a corner
    are connected, which makes this the number for 26 neighbours.

    Args:
        mask: (X, Y, Z) bool.

    Reference:
        Kong and Rosenfeld (1989), "Digital topology: introduction and survey", section 7.
    """
    padded = np.pad(np.asarray(mask, dtype=bool), 1)
    total = 0
    # A cell is a product of points and unit intervals: it belongs to the union where a cube around it does. Along an
    # axis on which it is a point, that is the cube before or after it.
    for points in np.ndindex(2, 2, 2):
        cells = padded
        for axis, point in enumerate(points):
            if point:
                cells = np.logical_or(_cut(cells, axis, slice(None, -1)), _cut(cells, axis, slice(1, None)))
        total += (-1) ** (3 - sum(points)) * int(cells.sum())
    return total


def cropped(mask: np.ndarray) -> np.ndarray | None:
    """The box around a structure (X, Y, Z); None where it is empty."""
    box = box_of(mask)
    return None if box is None else mask[box]


def _cut(array: np.ndarray, axis: int, part: slice) -> np.ndarray:
    where = [slice(None)] * 3
    where[axis] = part
    return array[tuple(where)]
