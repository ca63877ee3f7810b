import itertools

import numpy as np
import pytest
from scipy import ndimage

from medgen.measure.topology import euler_number, topology


def blank(n=12):
    return np.zeros((n, n, n), bool)


def cube():
    m = blank()
    m[3:7, 3:7, 3:7] = True
    return m


def ring():
    m = blank()
    m[2:9, 2:9, 4:6] = True
    m[4:7, 4:7, :] = False
    return m


def shell():
    m = cube()
    m[4:6, 4:6, 4:6] = False
    return m


def corner_pair():
    m = blank()
    m[2, 2, 2] = m[3, 3, 3] = True
    return m


@pytest.mark.parametrize(
    ("mask", "euler", "components"),
    [
        (cube(), 1, 1),
        (ring(), 0, 1),
        (shell(), 2, 1),
        (corner_pair(), 1, 1),
        (cube() | np.roll(cube(), 5, 0), 2, 2),
        (ring() | np.roll(cube(), (5, 5, 5), (0, 1, 2)), 1, 2),
        (blank(), 0, 0),
        (~blank(), 1, 1),
    ],
)
def test_known_shapes(mask, euler, components):
    assert euler_number(mask) == euler
    assert topology(mask).euler == euler and topology(mask).components == components


def test_euler_equals_a_count_of_the_cells_one_by_one():
    mask = np.pad(np.random.default_rng(0).random((9, 9, 9)) < 0.3, 2)
    cells = set()
    for x, y, z in zip(*np.nonzero(mask), strict=True):
        for a, b, c in itertools.product((0, 1, 2), repeat=3):
            cells.add((2 * x + a, 2 * y + b, 2 * z + c))
    signs = [(-1) ** sum(i % 2 for i in cell) for cell in cells]
    assert euler_number(mask) == sum(signs)


def test_it_does_not_depend_on_place_or_orientation():
    mask = ndimage.binary_dilation(np.random.default_rng(1).random((10, 11, 12)) < 0.02)
    first = topology(mask)
    assert first == topology(np.pad(mask, ((3, 0), (0, 2), (1, 1))).transpose(2, 0, 1)[::-1])


def test_specks_are_loose_and_no_pieces():
    mask = blank(20)
    mask[2:8, 2:8, 2:8] = mask[12:18, 2:8, 2:8] = True  # a left and a right half: two pieces
    mask[15, 15, 15] = True
    t = topology(mask)
    assert (t.pieces, t.components, t.voxels) == (2, 3, 433) and t.loose == pytest.approx(1 / 433)
    assert topology(mask, piece=0.001).pieces == 3
