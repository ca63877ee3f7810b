import math

import numpy as np
import pytest
import torch

from medgen.store import warp
from medgen.store.augment import Augmentation, draw, rotations
from medgen.store.patches import PatchSampler, to_uint8

GENERATOR = torch.Generator().manual_seed(0)
IMAGES = (torch.rand(4, 2, 22, 25, 28, generator=GENERATOR) * 2 - 1).half()
LABELS = torch.randint(-1, 5, (4, 1, 22, 25, 28), dtype=torch.int16, generator=GENERATOR)
FULL = Augmentation(
    flip=(0, 1, 2),
    rotate_degrees=(20, 20, 20),
    scale=0.2,
    translate_voxels=2,
    intensity_scale=0.2,
    intensity_shift=0.2,
    gamma=0.5,
    noise=0.1,
    chance=0.7,
)


def sampler(augmentation=None, patch=(12, 13, 14), arrays=(IMAGES, LABELS), **options):
    return PatchSampler(list(arrays), patch, 6, seed=3, augmentation=augmentation, **options)


def smooth(*extent):
    """A volume that trilinear interpolation gets exactly: linear in the coordinates."""
    x, y, z = torch.meshgrid(*(torch.arange(n, dtype=torch.float32) for n in extent), indexing="ij")
    return (0.02 * x - 0.03 * y + 0.01 * z)[None, None]


def test_an_augmentation_that_does_nothing_returns_the_crop():
    for batched in (False, True):
        still = sampler(Augmentation(), batched=batched)(4)
        for a, b in zip(still.arrays, sampler()(4).arrays, strict=True):
            assert torch.equal(a, b)


def test_resampling_by_the_identity_returns_the_crop():
    box = IMAGES[0].float()
    out = torch.empty(2, 22, 25, 28)
    warp.linear_patch(box.transpose(0, 1).contiguous(), np.eye(3), np.zeros(3), out)
    assert (out - box).abs().max() < 1e-3
    ids = torch.empty(1, 22, 25, 28, dtype=torch.int64)
    warp.nearest_patch(LABELS[0], np.eye(3), np.zeros(3), ids)
    assert torch.equal(ids, LABELS[0].long())


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_turn_by_90_degrees_is_rot90(axis):
    cube, ids = IMAGES[0, :, :20, :20, :20].float(), LABELS[0, :, :20, :20, :20]
    angles = np.zeros((1, 3))
    angles[0, axis] = math.pi / 2
    linear = rotations(angles)
    origin = warp.origins(linear, np.zeros((1, 3)), np.zeros((1, 3)), (20, 20, 20))
    out, out_ids = torch.empty_like(cube), torch.empty_like(ids)
    warp.linear_patch(cube.transpose(0, 1).contiguous(), linear[0], origin[0], out)
    warp.nearest_patch(ids.contiguous(), linear[0], origin[0], out_ids)
    plane = {0: (2, 3), 1: (3, 1), 2: (1, 2)}[axis]
    # Content turns against the map of the coordinates.
    assert (out - torch.rot90(cube, -1, plane)).abs().max() < 2e-3
    assert torch.equal(out_ids, torch.rot90(ids, -1, plane))


def test_the_two_ways_of_resampling_agree_inside_and_beyond_the_volume():
    for patch in ((12, 13, 14), (22, 25, 28)):  # the second always reaches beyond
        fast, slow = (sampler(FULL, patch=patch, batched=b) for b in (False, True))
        for step in range(4):
            (image, ids), (image_, ids_) = fast(step).arrays, slow(step).arrays
            assert (image - image_).abs().max() < 5e-3
            # A coordinate half-way between two voxels may round to either.
            assert (ids != ids_).float().mean() < 1e-3
            assert ids.dtype == ids_.dtype == torch.int64


def test_resampling_is_trilinear():
    """A linear function is reproduced at the mapped coordinates, wherever they lie inside."""
    volume = smooth(30, 32, 34)
    augmentation = Augmentation(flip=(0, 1), rotate_degrees=(10, 8, 6), scale=0.1, translate_voxels=1.5)
    s = PatchSampler([volume.repeat(2, 1, 1, 1, 1)], (12, 12, 12), 4, seed=0, augmentation=augmentation)
    for step in range(5):
        batch = s(step)
        draws = draw(augmentation, np.random.default_rng([0, step, 0, 5]), 4, 1)
        grid = np.stack(np.meshgrid(*[np.arange(12.0)] * 3, indexing="ij"), axis=-1) - 5.5
        where = (
            np.einsum("bij,xyzj->bxyzi", draws.linear, grid) + (batch.starts + 5.5 + draws.shift)[:, None, None, None]
        )
        where = np.clip(where, 0, np.array([29, 31, 33]))
        expected = where @ np.array([0.02, -0.03, 0.01])
        np.testing.assert_allclose(batch.arrays[0][:, 0].numpy(), expected, atol=5e-5)


def test_a_flip_alone_is_the_flipped_crop_to_the_bit():
    plain, flipped = sampler()(2), sampler(Augmentation(flip=(0, 2)))(2)
    gathered = sampler(Augmentation(flip=(0, 2)), batched=True)(2)
    flips = draw(Augmentation(flip=(0, 2)), np.random.default_rng([3, 2, 0, 5]), 6, 2).flips
    assert flips[:, 0].any() and flips[:, 2].any() and not flips[:, 1].any()
    for a, b, c in zip(plain.arrays, flipped.arrays, gathered.arrays, strict=True):
        for i in range(6):
            expected = a[i].flip((1 + np.flatnonzero(flips[i])).tolist())
            assert torch.equal(b[i], expected) and torch.equal(c[i], expected)


def test_a_flip_folded_into_a_turn_is_the_flip_of_the_turned():
    turn = {"rotate_degrees": (15.0, 15.0, 15.0), "scale": 0.1}
    plain, flipped = sampler(Augmentation(**turn))(1), sampler(Augmentation(flip=(0, 1, 2), **turn))(1)
    flips = draw(Augmentation(flip=(0, 1, 2)), np.random.default_rng([3, 1, 0, 5]), 6, 2).flips
    for i in range(6):
        axes = (1 + np.flatnonzero(flips[i])).tolist()
        assert (flipped.arrays[0][i] - plain.arrays[0][i].flip(axes)).abs().max() < 2e-3


@pytest.mark.parametrize("batched", [False, True])
def test_image_and_label_stay_aligned(batched):
    """An image that is its own label stays so where no edge is near."""
    coarse = torch.randint(0, 4, (3, 1, 5, 5, 5), generator=torch.Generator().manual_seed(1))
    labels = coarse.repeat_interleave(8, 2).repeat_interleave(8, 3).repeat_interleave(8, 4)
    augmentation = Augmentation(flip=(0, 1, 2), rotate_degrees=(25, 25, 25), scale=0.2, translate_voxels=3)
    s = PatchSampler([labels.float(), labels], (20, 20, 20), 6, seed=0, augmentation=augmentation, batched=batched)
    image, ids = s(0).arrays
    assert (image - ids).abs().mean() < 0.2
    whole = (image - image.round()).abs() < 1e-3  # every neighbour has the same value
    assert whole.float().mean() > 0.4
    assert ((image.round() == ids) | ~whole).float().mean() > 0.99


@pytest.mark.parametrize("batched", [False, True])
def test_no_label_stays_no_label_and_no_new_id_appears(batched):
    unlabelled = LABELS.clone()
    unlabelled[1] = -1
    batch = sampler(FULL, arrays=(IMAGES, unlabelled), batched=batched)(0)
    ids = batch.arrays[1]
    assert (batch.cases == 1).any() and (ids[batch.cases == 1] == -1).all()
    assert set(ids.unique().tolist()) <= set(unlabelled.unique().tolist())


@pytest.mark.parametrize("batched", [False, True])
def test_nothing_outside_the_volume_is_read(batched):
    """A volume inside a larger one full of NaN, at sizes and turns that reach beyond it."""
    frame = torch.full((2, 1, 30, 30, 30), float("nan"))
    frame[:, :, 6:24, 6:24, 6:24] = torch.rand(2, 1, 18, 18, 18, generator=GENERATOR)
    inner = frame[:, :, 6:24, 6:24, 6:24]
    wild = Augmentation(flip=(0,), rotate_degrees=(180, 180, 180), scale=0.5, translate_voxels=30)
    s = PatchSampler([inner], (16, 17, 18), 4, seed=0, augmentation=wild, batched=batched)
    for step in range(10):
        image = s(step).arrays[0]
        assert image.min() >= inner.min() - 1e-5 and image.max() <= inner.max() + 1e-5


def test_turns_are_rigid_where_voxels_are_not_cubes():
    a = Augmentation(rotate_degrees=(40, 40, 40), spacing_mm=(1.0, 2.0, 4.0))
    linear = draw(a, np.random.default_rng(0), 5, 1).linear
    s = np.diag(a.spacing_mm)
    millimetres = s @ linear @ np.linalg.inv(s)
    np.testing.assert_allclose(
        millimetres @ millimetres.transpose(0, 2, 1), np.broadcast_to(np.eye(3), (5, 3, 3)), atol=1e-12
    )


def test_draws_lie_in_the_ranges_asked_for_and_happen_as_often_as_asked():
    d = draw(FULL, np.random.default_rng(0), 4000, 2)
    assert abs(d.warped.mean() - 0.7) < 0.03 and abs(d.flips.mean() - 0.5) < 0.02
    assert np.abs(d.shift).max() <= 2 and np.abs(d.gain - 1).max() <= 0.2 and np.abs(d.offset).max() <= 0.2
    assert d.exponent.min() >= 1 / 1.5 and d.exponent.max() <= 1.5 and d.noise.max() <= 0.1
    assert abs((d.exponent == 1).mean() - 0.3) < 0.03
    volume = np.abs(np.linalg.det(d.linear))
    assert volume.min() >= 1.2**-3 and volume.max() <= 1.2**3
    # Switching one option on leaves the others' numbers alone.
    other = draw(
        Augmentation(rotate_degrees=FULL.rotate_degrees, scale=0.2, chance=0.7), np.random.default_rng(0), 4000, 2
    )
    np.testing.assert_array_equal(np.abs(other.linear), np.abs(d.linear))


def test_intensities_change_as_drawn_and_labels_do_not():
    colour = Augmentation(intensity_scale=0.3, intensity_shift=0.2, gamma=0.5)
    plain, changed = sampler()(5), sampler(colour)(5)
    d = draw(colour, np.random.default_rng([3, 5, 0, 5]), 6, 2)
    x = plain.arrays[0].double().numpy()
    gain, offset, exponent = (v[..., None, None, None] for v in (d.gain, d.offset, d.exponent))
    expected = gain * (2 * ((x + 1) / 2) ** exponent - 1) + offset
    np.testing.assert_allclose(changed.arrays[0].numpy(), expected, atol=1e-5)
    assert torch.equal(plain.arrays[1], changed.arrays[1])


@pytest.mark.parametrize("batched", [False, True])
def test_noise_has_the_spread_drawn_and_differs_between_patches(batched):
    noisy = Augmentation(noise=0.5)
    difference = sampler(noisy, batched=batched)(0).arrays[0] - sampler()(0).arrays[0]
    d = draw(noisy, np.random.default_rng([3, 0, 0, 5]), 6, 2)
    np.testing.assert_allclose(difference.std(dim=(2, 3, 4)).numpy(), d.noise, rtol=0.1)
    flat = difference.reshape(12, -1)
    assert (torch.corrcoef(flat) - torch.eye(12)).abs().max() < 0.1


def test_bytes_stand_for_minus_one_to_one():
    stored = to_uint8(IMAGES)
    assert stored.dtype == torch.uint8
    for augmentation in (None, FULL):
        exact = sampler(augmentation)(0).arrays
        for batched in (False, True):
            options = {"kinds": ("image", "label"), "arrays": (stored, LABELS), "batched": batched}
            image, ids = sampler(augmentation, **options)(0).arrays
            assert (image - exact[0]).abs().max() < (1.01 / 255 if augmentation is None else 0.02)
            assert (ids != exact[1]).float().mean() < 1e-3


def test_bfloat16_volumes_and_autocast_leave_geometry_alone():
    augmentation = Augmentation(rotate_degrees=(20, 20, 20))
    plain = sampler(augmentation, batched=True)(0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = sampler(augmentation, batched=True)(0)
    assert all(torch.equal(a, b) for a, b in zip(plain.arrays, cast.arrays, strict=True))
    rounded = sampler(augmentation, arrays=(IMAGES.bfloat16(), LABELS))(0)
    assert (rounded.arrays[0] - plain.arrays[0]).abs().max() < 0.01
    assert torch.equal(rounded.arrays[1], sampler(augmentation)(0).arrays[1])


def test_volumes_of_one_plane_are_resampled_too():
    flat = IMAGES[:, :, :1]
    image = PatchSampler([flat], (1, 12, 12), 4, seed=0, augmentation=Augmentation(rotate_degrees=(20, 0, 0)))(
        0
    ).arrays[0]
    assert image.shape == (4, 2, 1, 12, 12) and image.isfinite().all()


def test_augmented_draws_are_keyed_by_seed_step_and_rank():
    make = lambda rank=0, step=7: sampler(FULL, rank=rank)(step).arrays[0]  # noqa: E731
    assert torch.equal(make(), make())
    assert not torch.equal(make(), make(rank=1)) and not torch.equal(make(), make(step=8))
