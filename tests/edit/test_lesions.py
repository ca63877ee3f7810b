import numpy as np
import pytest
from scipy import ndimage

from medgen.edit import lesion_insert, lesion_remove
from medgen.edit.scene import Scene
from medgen.errors import InputError
from medgen.measure.topology import topology
from medgen.volume import Volume, write_volume
from tests.edit.scenes import NAMES, ball, oasis

NAMED = (*NAMES, "Lesion")


def brain(spacing=(1.0, 1.0, 1.0), shape=(40, 36, 32)):
    return Scene(ball(shape, spacing).ids, NAMED, spacing)


def inserted(scene, seed=0, target=None, **options):
    return lesion_insert.edit(scene, target or {}, np.random.default_rng(seed), label="lesion", **options)


def sizes(scene):
    parts, _ = ndimage.label(scene.ids == 3, np.ones((3, 3, 3)))
    return np.sort(np.bincount(parts.ravel())[1:]) * scene.voxel_ml


@pytest.mark.parametrize(
    ("shape", "spacing"), [((40, 36, 32), (1.0, 1.0, 1.0)), ((40, 18, 46), (1.0, 2.0, 0.7))], ids=["even", "uneven"]
)
def test_lesions_have_their_number_volume_and_place(shape, spacing):
    scene = brain(spacing, shape)
    for seed in range(4):
        after = inserted(scene, seed, n=[4, 4], ml=[0.1, 0.3], within=["tissue"])
        found = sizes(after)
        assert len(found) == 4 and found.min() > 0.1 - scene.voxel_ml and found.max() < 0.3 + scene.voxel_ml
        assert (scene.ids[after.ids == 3] == 1).all()
        np.testing.assert_array_equal(after.ids[after.ids != 3], scene.ids[after.ids != 3])


def test_equal_seeds_make_equal_lesions_that_are_no_balls():
    a, b, c = (inserted(brain(), seed, n=[1, 1], ml=[0.5, 0.5], within=["tissue"]) for seed in (3, 3, 4))
    np.testing.assert_array_equal(a.ids, b.ids)
    assert (a.ids != c.ids).any() and (a.ids == 3).sum() == 500
    at = np.argwhere(a.ids == 3)
    spread = np.sqrt(((at - at.mean(0)) ** 2).sum(1).mean())
    assert spread > 1.05 * np.sqrt(0.6) * (3 * 500 / (4 * np.pi)) ** (1 / 3)  # a ball's


def test_what_is_asked_in_all_is_shared_among_them():
    scene = inserted(brain(), n=[1, 1], ml=[0.2, 0.2])
    after = inserted(scene, 1, {"lesion_ml": 1.0}, n=[3, 3])
    assert after.volumes_ml()["Lesion"] == pytest.approx(1.0) and len(sizes(after)) == 4
    assert inserted(scene, n=[3, 3]) is scene
    with pytest.raises(InputError, match="put lesion_remove before it"):
        inserted(scene, 1, {"lesion_ml": 0.1})


def test_near_draws_them_towards_a_structure():
    scene, away = brain(), ndimage.distance_transform_edt(brain().ids != 2)
    options = {"n": [3, 3], "ml": [0.02, 0.02], "within": ["tissue"]}

    def mean(**more):
        return np.mean([away[inserted(scene, s, **options, **more).ids == 3].mean() for s in range(8)])

    assert mean(near="chamber", near_mm=1.5) < 0.7 * mean()


def test_lesions_touch_only_where_they_may():
    ids = np.zeros((12, 12, 12), np.int16)
    ids[3:9, 3:9, 3:9] = 1
    scene = Scene(ids, NAMED, (1.0, 1.0, 1.0))
    with pytest.raises(InputError, match="no room for a lesion"):
        inserted(scene, n=[2, 2], ml=[0.1, 0.1])
    assert (inserted(scene, n=[2, 2], ml=[0.1, 0.1], touching=True).ids == 3).sum() == 200


def test_shapes_may_come_from_a_bank(tmp_path):
    mask = np.zeros((40, 20, 20), np.float32)
    mask[4:36, 8:11, 8:11] = 1  # rods
    write_volume(tmp_path / "rods.nii.gz", Volume(mask[None], np.eye(4)))
    scene = Scene(np.ones((64, 64, 64), np.int16), NAMED, (1.0, 1.0, 1.0))
    for seed in range(3):
        after = inserted(scene, seed, n=[1, 1], ml=[0.288, 0.288], bank=tmp_path)
        at = np.argwhere(after.ids == 3)
        widths = np.sqrt(np.linalg.eigvalsh(np.cov(at.T)))
        assert len(at) == 288 and widths[2] > 4 * widths[1]
    with pytest.raises(InputError, match="no label map"):
        inserted(scene, ml=[0.1, 0.1], bank=_empty(tmp_path))


def _empty(folder):
    (folder / "empty").mkdir()
    return folder / "empty"


def test_removal_by_size_fills_with_what_is_around():
    scene = brain()
    small = inserted(scene, 0, n=[3, 3], ml=[0.02, 0.04], within=["tissue"])
    both = inserted(small, 1, n=[1, 1], ml=[0.3, 0.3], within=["tissue"])
    large = lesion_remove.edit(both, {}, None, label="lesion", below_ml=0.1)
    assert len(sizes(both)) == 4 and sizes(large) == pytest.approx([0.3])
    assert len(sizes(lesion_remove.edit(both, {}, None, label=3, above_ml=0.1))) == 3
    none = lesion_remove.edit(both, {}, None, label="lesion")
    assert not (none.ids == 3).any()
    np.testing.assert_array_equal(none.ids == 0, scene.ids == 0)


def test_only_a_lesion_at_the_rim_becomes_background():
    ids = np.zeros((12, 10, 10), np.int16)
    ids[1:9, 2:8, 2:8] = 1
    ids[6:9, 4:6, 4:6] = 3  # reaches the background by one face
    ids[10, 5, 5] = 3  # lies in the background
    after = lesion_remove.edit(Scene(ids, NAMED, (1.0, 1.0, 1.0)), {}, None, label="lesion")
    assert (after.ids[6:9, 4:6, 4:6] == 1).all() and after.ids[10, 5, 5] == 0
    alone = Scene(np.where(ids == 3, 3, 0).astype(np.int16), NAMED, (1.0, 1.0, 1.0))
    assert not lesion_remove.edit(alone, {}, None, label="lesion").ids.any()


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"n": [5, 1]}, "fewest and the most"),
        ({"n": [1.5, 2]}, "fewest and the most"),
        ({"ml": [0, 1]}, "smallest and the largest"),
        ({"within": ["tisue"]}, "did you mean 'Tissue'"),
        ({"near": "lesion", "ml": [0.1, 0.1]}, "drop near"),
        ({"bank": "nowhere"}, "is not there"),
    ],
)
def test_faults_are_one_sentence(options, word):
    with pytest.raises(InputError, match=word):
        inserted(brain(), **options)


def test_lesions_of_a_brain_and_back(data_dir):
    scene = oasis(data_dir)
    new = lesion_insert.edit(
        scene, {}, np.random.default_rng(0), label="Lesion", new=True, n=[6, 6], ml=[0.2, 1.5], within=["WM"],
        near="ventricles", bank=data_dir("ms") / "derivatives" / "lesions" / "sub-ms26",
    )  # fmt: skip
    assert new.names[-1] == "Lesion" and (scene.ids[new.ids == 6] == 3).all()
    assert topology(new.ids == 6).components == 6
    back = lesion_remove.edit(new, {}, None, label="Lesion")
    assert (back.ids == 0).sum() == (scene.ids == 0).sum()
    assert (back.ids == scene.ids)[new.ids == 6].mean() > 0.6
