"""Warp, volume and mirror."""

import numpy as np
import pytest

from medgen.edit import mirror, volume, warp
from medgen.edit.flow import jacobian
from medgen.edit.scene import Scene
from medgen.errors import InputError
from medgen.measure.topology import topology
from tests.edit.scenes import NAMES, ball, oasis

RNG = np.random.default_rng(0)


def resized(scene, target=None, **options):
    return volume.edit(scene, target or {}, RNG, **options)


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (1.0, 2.0, 0.7)])
@pytest.mark.parametrize("displacement", [2.0, 8.0])
def test_a_warp_folds_nothing_and_leaves_the_border(spacing, displacement):
    for seed in range(3):
        moved = warp.field((40, 30, 36), spacing, np.random.default_rng(seed), displacement, 8.0).at()
        assert jacobian(moved).min() > 0 and np.abs(moved).max() > 0.5
        for axis in range(3):
            assert not np.take(moved, (0, -1), axis=axis + 1).any()


def test_a_warp_moves_by_its_seed_and_keeps_what_it_is_told_to():
    scene = ball()
    a, b, c = (warp.edit(scene, {}, np.random.default_rng(s), displacement_mm=3.0, keep=["chamber"]) for s in (0, 0, 1))
    np.testing.assert_array_equal(a.ids, b.ids)
    assert (a.ids != c.ids).any() and (a.ids != scene.ids).any()
    assert topology(a.ids == 2).euler == topology(a.ids == 2).components == 1
    assert warp.edit(scene, {}, RNG, displacement_mm=0.0) is scene


def test_a_warp_keeps_thin_structures_whole_where_asked():
    ids = np.ones((40, 40, 24), np.int16)
    ids[8:32, 20, 12] = 2  # one voxel thick
    thread = Scene(ids, NAMES, (1.0, 1.0, 1.0))
    for seed in range(3):
        kept = warp.edit(thread, {}, np.random.default_rng(seed), displacement_mm=4.0, smooth_mm=8.0, keep=["Chamber"])
        assert topology(kept.ids == 2).components == topology(kept.ids == 2).euler == 1


@pytest.mark.parametrize("ml", [0.15, 1.2, 3.0])
@pytest.mark.parametrize(
    ("shape", "spacing"), [((40, 36, 32), (1.0, 1.0, 1.0)), ((40, 18, 46), (1.0, 2.0, 0.7))], ids=["even", "uneven"]
)
def test_a_volume_is_met_and_the_outside_stays(ml, shape, spacing):
    scene = ball(shape, spacing)
    after = resized(scene, structure="chamber", ml=ml)
    assert after.volumes_ml()["Chamber"] == pytest.approx(ml, abs=scene.voxel_ml)
    np.testing.assert_array_equal(after.ids == 0, scene.ids == 0)
    t = topology(after.ids == 2)
    assert (t.components, t.euler) == (1, 1)


def test_the_flow_pushes_and_does_not_eat():
    """A thin shell of another label around the chamber is carried outwards whole."""
    scene = ball(radius=4.0)
    ids = scene.ids.copy()
    ids[(ids == 1) & (ball(radius=6.0).ids == 2)] = 3
    scene = Scene(ids, (*NAMES, "Shell"), scene.spacing_mm)
    after = resized(scene, structure="Chamber", by=4.0, gives=["Tissue"])
    assert topology(after.ids == 3).euler == topology(scene.ids == 3).euler == 2  # a hollow ball
    assert 0.9 < after.volumes_ml()["Shell"] / scene.volumes_ml()["Shell"] < 1.4  # two voxels thick


def test_a_structure_on_the_rim_pushes_the_background():
    scene = ball(radius=14.0, shell=1.0)  # the chamber alone
    after = resized(scene, structure="chamber", by=0.5)
    assert (after.ids == 2).sum() == round(0.5 * (scene.ids == 2).sum())
    with pytest.raises(InputError, match="give way"):
        resized(scene, structure="chamber", by=1.2, hold=["background"])


def test_what_is_asked_decides_where_no_volume_is_given():
    scene = ball()
    for name in ("Chamber", "chamber", "chamber_ml"):
        assert resized(scene, {name: 1.0}, structure="chamber").volumes_ml()["Chamber"] == pytest.approx(1.0)
    assert resized(scene, {"tissue": 1.0}, structure="chamber") is scene
    assert resized(scene, {"chamber": 1.0}, structure="chamber", ml=0.3).volumes_ml()["Chamber"] == pytest.approx(0.3)


def test_unknown_voxels_stay_and_are_not_counted():
    scene = ball()
    ids = scene.ids.copy()
    ids[:, :, :10] = -1
    scene = Scene(ids, NAMES, scene.spacing_mm)
    for after in (resized(scene, structure="chamber", ml=1.0), warp.edit(scene, {}, RNG, displacement_mm=3.0)):
        np.testing.assert_array_equal(after.ids == -1, ids == -1)
    assert resized(scene, structure="chamber", ml=1.0).volumes_ml()["Chamber"] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"structure": "chamber", "ml": 500.0}, "can grow by"),
        ({"structure": "chamber", "ml": 1e-5}, "lesion_remove"),
        ({"structure": "chmber", "ml": 1.0}, "did you mean 'Chamber'"),
        ({"structure": "Other", "ml": 1.0}, "not in the label map"),
        ({"structure": "chamber", "ml": 1.0, "by": 2.0}, "give one"),
        ({"structure": "chamber", "ml": 1.0, "gives": ["chamber"]}, "cannot be among"),
        ({}, "name what to resize"),
    ],
)
def test_what_cannot_be_is_refused(options, word):
    scene = Scene(ball().ids, (*NAMES, "Other"), (1.0, 1.0, 1.0))
    with pytest.raises(InputError, match=word) as caught:
        resized(scene, **options)
    assert "\n" not in str(caught.value)


def test_ventricles_of_a_brain(data_dir):
    scene = oasis(data_dir)
    before = {i: topology(scene.ids == i) for i in (4, 5)}
    for ml in (10.0, 80.0):
        after = resized(scene, {"ventricles_ml": ml}, structure="ventricles")
        found, t = after.volumes_ml(), topology(after.ids == 4)
        assert found["Ventricles"] == pytest.approx(ml, rel=0.01)
        assert (t.components, t.euler) == (before[4].components, before[4].euler)
        assert (after.ids == 0).sum() == (scene.ids == 0).sum()
        for name, share in (("GM", 0.93), ("WM", 0.9), ("Hippocampus", 0.8), ("CSF", 0.9)):
            assert found[name] > share * scene.volumes_ml()[name]


def test_a_mirror_swaps_sides_and_refuses_what_it_would_confuse():
    ids = np.zeros((6, 4, 4), np.int16)
    ids[1], ids[4] = 1, 2
    ids[0] = -1
    sided = Scene(ids, ("background", "Left-Part", "Right-Part"), (1.0, 1.0, 1.0))
    pairs = [["Left-Part", "Right-Part"]]
    turned = mirror.edit(sided, {}, RNG, chance=1.0, swap=pairs)
    assert turned.ids[:, 0, 0].tolist() == [0, 1, 0, 0, 2, -1]
    assert mirror.edit(turned, {}, RNG, chance=1.0, swap=pairs).ids.tolist() == ids.tolist()
    assert mirror.edit(sided, {}, RNG, chance=0.0, swap=pairs) is sided
    with pytest.raises(InputError, match="has a side"):
        mirror.edit(sided, {}, RNG)
    names = ["LeftHippocampus", "HippocampusLeft", "CSFRight", "ctx-lh-cuneus", "putamen_R"]
    assert mirror.sided_names([*names, "Bright", "leftover", "ventricles", "GM"]) == names
    assert mirror.edit(ball(), {}, RNG, chance=1.0).ids.shape == ball().ids.shape
