"""Shells and sides, against shapes whose answers are known."""

import numpy as np
import pytest

from medgen.measure.boundary import shell_contrast
from medgen.measure.sides import centred, mean_shape, sidedness


def ball(radius: float = 7, extent: int = 24) -> np.ndarray:
    grid = np.indices((extent,) * 3) - (extent - 1) / 2
    return (grid**2).sum(axis=0) <= radius**2


def comma(shift: tuple[int, int, int] = (0, 0, 0)) -> np.ndarray:
    """A body of label 1 with a tail of label 2 to one side."""
    label = np.zeros((24, 20, 16), np.uint8)
    label[6:12, 6:12, 5:10] = 1
    label[12:18, 8:10, 6:8] = 2
    return np.roll(label, shift, (0, 1, 2))


@pytest.mark.parametrize("printed", [0.0, 0.25, -0.5])
def test_an_imprinted_outline_is_the_contrast_of_the_shell(printed):
    mask = ball()
    image = np.random.default_rng(0).normal(0.1, 0.05, mask.shape)
    inner = np.zeros_like(mask)
    inner[1:-1, 1:-1, 1:-1] = mask[1:-1, 1:-1, 1:-1]
    for axis in range(3):
        inner &= np.roll(mask, 1, axis) & np.roll(mask, -1, axis)
    image[mask & ~inner] += printed
    assert shell_contrast(image, mask) == pytest.approx(printed, abs=0.01)


def test_where_the_grid_cuts_a_structure_there_is_no_boundary():
    mask, image = np.zeros((12, 12, 12), bool), np.zeros((12, 12, 12))
    mask[:, :, :6] = True
    image[:, :, 5] = 1.0
    assert shell_contrast(image, mask) == 1.0


def test_what_is_too_small_has_no_contrast():
    mask = np.zeros((8, 8, 8), bool)
    assert np.isnan(shell_contrast(np.zeros(mask.shape), mask))
    mask[2:5, 2:5, 2:5] = True
    assert np.isnan(shell_contrast(np.zeros(mask.shape), mask))


def test_a_label_map_is_on_its_own_side_wherever_it_lies():
    shape = mean_shape([comma(), comma((1, 2, 0)), comma((-3, 0, 2))], (1, 2))
    assert shape.max() == 1.0, "after centring they are one shape"
    own, other = (sidedness(one, shape, (1, 2)) for one in (comma((2, -1, 3)), np.flip(comma(), 0)))
    assert own > 0.05 and other == pytest.approx(-own)


def test_what_is_symmetric_is_on_neither_side():
    round_one = ball().astype(np.uint8)
    assert sidedness(round_one, mean_shape([round_one], (1,)), (1,)) == 0
    assert np.isnan(sidedness(np.zeros_like(round_one), mean_shape([round_one], (1,)), (1,)))


def test_centring_moves_by_whole_voxels():
    moved = centred(comma((4, -3, 2)))
    assert np.bincount(moved.ravel()).tolist() == np.bincount(comma().ravel()).tolist()
    assert np.array_equal(moved, centred(comma()))


def test_the_hippocampi_of_the_decathlon(data_dir):
    """All are cut out alike: hardly one lies nearer to the mirror image of what the others have in common."""
    import nibabel as nib

    files = sorted((data_dir("hippocampus") / "labelsTr").glob("hippo*.nii.gz"))[:40]
    labels = []
    for file in files:
        image = nib.as_closest_canonical(nib.load(file))
        whole = np.zeros((64, 72, 64), np.uint8)
        voxels = np.asarray(image.dataobj).astype(np.uint8)
        whole[tuple(slice(0, n) for n in voxels.shape)] = voxels
        labels.append(whole)
    shape = mean_shape(labels[:20], (1, 2))
    own = np.mean([sidedness(one, shape, (1, 2)) > 0 for one in labels[20:]])
    assert own >= 0.9
