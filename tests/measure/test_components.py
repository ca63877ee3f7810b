import numpy as np
import pytest

from medgen.measure.box import box_of
from medgen.measure.components import by_size, structures

MM = (1.0, 1.0, 1.0)


def cube(shape, *corners, size=4):
    label = np.zeros(shape, np.uint8)
    for x, y, z in corners:
        label[x : x + size, y : y + size, z : z + size] = 1
    return label


def test_each_structure_is_scored_in_its_own_territory():
    truth = cube((40, 20, 20), (2, 2, 2), (30, 10, 10))
    found = cube((40, 20, 20), (3, 2, 2))  # the first moved by one voxel, the second lost
    near, lost = structures(truth, found, [1], MM)
    assert near.volume_ml == pytest.approx(0.064) and near.dice == pytest.approx(0.75)
    assert near.covered == pytest.approx(0.75)
    assert (lost.dice, lost.covered) == (0.0, 0.0)


def test_false_voxels_count_against_the_nearest_structure():
    truth = cube((40, 20, 20), (2, 2, 2), (30, 10, 10))
    found = truth | cube((40, 20, 20), (36, 10, 10), size=2)
    first, second = structures(truth, found, [1], MM)
    assert first.dice == 1.0
    assert second.dice == pytest.approx(2 * 64 / (64 + 72))


def test_territories_follow_millimetres_and_not_voxels():
    truth = np.zeros((21, 21, 3), np.uint8)
    truth[0, 10, 1] = truth[16, 2, 1] = 1
    found = truth.copy()
    found[10, 10, 1] = 1  # 10 voxels from the first, and from the second 6 along x and 8 along y
    first, second = structures(truth, found, [1], (0.5, 5.0, 1.0))
    assert first.dice == pytest.approx(2 / 3) and second.dice == 1.0
    first, second = structures(truth, found, [1], (5.0, 0.5, 1.0))
    assert first.dice == 1.0 and second.dice == pytest.approx(2 / 3)


def test_labels_without_structures_and_size_classes():
    truth = cube((30, 30, 30), (1, 1, 1), (20, 20, 20), size=3)
    truth[8:18, 8:18, 8:18] = 1
    assert structures(truth, truth, [2], MM) == []
    classes = by_size(structures(truth, truth, [1, 2], MM), (0.1, 2.0))
    assert [(c.from_ml, c.below_ml, c.count) for c in classes] == [(0.0, 0.1, 2), (0.1, 2.0, 1), (2.0, None, 0)]
    assert classes[0].dice == classes[0].recall == 1.0 and np.isnan(classes[2].dice)


def test_found_is_a_tenth_covered():
    truth = np.zeros((20, 20, 20), np.uint8)
    truth[:10, 0, 0] = truth[:10, 10, 10] = 1
    found = np.zeros_like(truth)
    found[0, 0, 0] = 1
    (small,) = by_size(structures(truth, found, [1], MM), (1.0,))[:1]
    assert small.count == 2 and small.recall == 0.5


def test_a_box_holds_the_mask_and_stays_within_the_array():
    mask = np.zeros((6, 7, 8), bool)
    assert box_of(mask) is None
    mask[1, 2:5, 7] = True
    assert box_of(mask) == (slice(1, 2), slice(2, 5), slice(7, 8))
    assert box_of(mask, 2) == (slice(0, 4), slice(0, 7), slice(5, 8))
    assert box_of(mask, (0, 1, 3)) == (slice(1, 2), slice(1, 6), slice(4, 8))
