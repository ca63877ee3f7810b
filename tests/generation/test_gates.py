"""What each gate lets pass and what it stops, on phantoms of two labels and on real cases."""

import json
import math
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy import ndimage

from medgen.cohort.given import Fixed, Range
from medgen.cohort.requests import Row
from medgen.errors import InputError
from medgen.files import read_json, write_json
from medgen.generation.accept import asked_numbers
from medgen.generation.gates import setting as gating
from medgen.generation.gates.cloud import Cloud
from medgen.generation.gates.law import Law
from medgen.generation.gates.panel import Gates, learn
from medgen.generation.gates.seam import Seen
from medgen.generation.gates.setting import Setting
from medgen.generation.model import Kind, ModelSpec
from medgen.segment.network import Architecture, build
from medgen.segment.segmenter import Segmenter
from tests.encodings import write_latents

EVERY = Setting({"consistency": True, "position": True, "intensity": {"level": 0.001}})
NAMES = ("background", "front", "back")


def spec_of(learnt, names=NAMES, latent_shape=(1, 2, 2, 2)):
    kind = Kind("none", {})
    return ModelSpec(
        name="x",
        channels=("T1w",),
        label_values=tuple(range(len(names))),
        label_names=tuple(names),
        spacing_mm=(1.0, 1.0, 1.0),
        shape=(24, 24, 24),
        latent_shape=latent_shape,
        codec=kind,
        process=kind,
        network=kind,
        encoder={},
        schema=[],
        joint={},
        derived={},
        statistics={"mean": [0.0], "std": [1.0]},
        records=[],
        sampling={},
        trained_on={},
        gates=learnt,
    )


def case(seed, swap=False):
    """Two touching balls in a darker box, of varying size, place and brightness."""
    rng = np.random.default_rng(seed)
    x, y, z = np.mgrid[:24, :24, :24]
    place = 12 + rng.normal(0, 0.4, 3)
    image = np.full((24, 24, 24), -1.0)
    image[2:22, 2:22, 2:22] = -0.3 + rng.normal(0, 0.03)
    label = np.zeros((24, 24, 24), np.uint8)
    for i, shift in ((1, 3.5), (2, -3.5)):
        r = 3.6 + rng.normal(0, 0.15)
        ball = (x - place[0]) ** 2 + (y - place[1] - shift) ** 2 + (z - place[2]) ** 2 < r**2
        label[ball & (label == 0)] = i
        image[ball] = 0.2 + 0.3 * (i == 2) + rng.normal(0, 0.03)
    image += rng.normal(0, 0.02, image.shape)
    return as_seen(np.clip(image, -1, 1)[None], label, NAMES)


def as_seen(image, label, names, latent=None, spacing=(1.0, 1.0, 1.0), requested=None):
    ml = float(np.prod(spacing)) / 1000
    measured = {f"{n.lower()}_ml": float((label == i).sum()) * ml for i, n in enumerate(names) if i}
    return Seen(image, label, ("T1w",), tuple(names), spacing, measured, requested or {}, latent)


def relabelled(seen, label):
    return replace(as_seen(seen.image, label, seen.names), requested=seen.requested)


@pytest.fixture(scope="module")
def learnt():
    return learn(case(seed) for seed in range(60))


@pytest.fixture(scope="module")
def gates(learnt):
    return Gates.of(spec_of(learnt), EVERY)


def test_new_real_cases_pass(gates):
    passed = [gates.judge(case(seed)).accepted for seed in range(1000, 1060)]
    assert np.mean(passed) >= 0.95


def fragments(seen):
    label = seen.label.copy()
    label[3:6, 3:6, 3:6] = 1
    return relabelled(seen, label)


def hole(seen):
    label = seen.label.copy()
    deep = np.argwhere(ndimage.binary_erosion(label == 2, iterations=2))
    for x, y, z in (deep[0], deep[-1], deep[len(deep) // 2]):
        label[x, y, z] = 0
    return relabelled(seen, label)


def swapped(seen):
    return relabelled(seen, np.array([0, 2, 1], np.uint8)[seen.label])


def shifted(seen):
    return relabelled(seen, np.roll(seen.label, 3, 0))


def grown(seen):
    label = seen.label.copy()
    label[ndimage.binary_dilation(label == 1, iterations=3) & (label == 0)] = 1
    return relabelled(seen, label)


def absent(seen):
    return relabelled(seen, np.where(seen.label == 2, 0, seen.label))


def outline(seen):
    image = seen.image.copy()
    inside = seen.label > 0
    image[0][inside & ~ndimage.binary_erosion(inside)] += 0.4
    return replace(seen, image=image)


def bright(seen):
    return replace(seen, image=seen.image + 1.5)


def flat(seen):
    return replace(seen, image=seen.image * 0.1)


def broken(seen):
    image = seen.image.copy()
    image[0, 5, 5, 5] = np.nan
    return replace(seen, image=image)


def missed(seen):
    twice = seen.measured["front_ml"] * 2
    return replace(seen, requested={"front_ml": (twice, twice)})


@pytest.mark.parametrize(
    ("damage", "gate"),
    [
        (fragments, "topology"),
        (hole, "topology"),
        (swapped, "position"),
        (swapped, "consistency"),
        (shifted, "consistency"),
        (grown, "volumes"),
        (absent, "volumes"),
        (outline, "consistency"),
        (bright, "intensity"),
        (flat, "intensity"),
        (broken, "finite"),
        (missed, "request"),
    ],
)
def test_what_is_broken_is_stopped_by_the_gate_that_should(gates, damage, gate):
    for seed in (2000, 2001, 2002):
        faults = gates.judge(damage(case(seed))).faults
        assert gate in faults and all(said for said in faults[gate].values())
    if damage is broken:
        assert list(faults) == ["finite"], "nothing else is asked of what is not finite"


def test_scores_are_finite_json_and_figures_name_no_case(gates, learnt):
    judgement = gates.judge(case(3000))
    assert judgement.accepted
    json.dumps({"scores": judgement.scores, "learnt": learnt}, allow_nan=False)
    assert set(judgement.scores) == {"consistency", "intensity", "position", "request", "topology", "volumes"}


def test_a_request_widens_the_range_of_volumes_and_holds_the_draw_to_it(learnt):
    gates = Gates.of(spec_of(learnt), Setting({"volumes": True, "request": True}, others=False))
    large = grown(case(2000))
    asked = large.measured["front_ml"]
    assert "volumes" in gates.judge(large).faults
    assert gates.judge(replace(large, requested={"front_ml": (asked, asked)})).accepted


def test_an_unlabelled_case_does_not_say_that_a_structure_may_be_absent():
    known = [case(seed) for seed in range(12)]
    bare = replace(case(99), label=None, measured={})
    gates = Gates.of(spec_of(learn([*known, bare])), Setting({"volumes": True}, others=False))
    missing = case(2000)
    missing = replace(missing, measured={**missing.measured, "front_ml": 0.0})
    assert "volumes" in gates.judge(missing).faults
    without = [replace(c, measured={k: v for k, v in c.measured.items() if k != "front_ml"}) for c in known[:3]]
    lacking = Gates.of(spec_of(learn([*known[3:], *without])), Setting({"volumes": True}, others=False))
    assert lacking.judge(missing).accepted, "some of the cohort's own have none"


def test_a_range_is_answered_by_everything_in_it(learnt):
    gates = Gates.of(spec_of(learnt), Setting({"request": {"tolerance": 1.0}}, others=False))
    seen, law = case(2000), Law(**learnt["request"]["laws"]["front_ml"])
    found = seen.measured["front_ml"]

    def judged(low, high):
        return gates.judge(replace(seen, requested={"front_ml": (low, high)}))

    wide = judged(found - 5 * law.std, found + 5 * law.std)
    assert wide.accepted and wide.scores["request"]["front_ml"] == 0.0
    assert judged(found + 0.5 * law.std, math.inf).accepted, "within the tolerance of the range's end"
    beyond = judged(found + 1.5 * law.std, found + 9 * law.std)
    assert beyond.scores["request"]["front_ml"] == pytest.approx(-1.5, abs=1e-3)
    assert " to " in beyond.faults["request"]["front_ml"]
    assert "or less" in judged(-math.inf, found - 2 * law.std).faults["request"]["front_ml"]


def test_what_a_request_asks_is_its_range_where_it_has_one():
    values = {"a_ml": 5.0, "b_ml": 6.0, "hour": 23.0, "sex": "F"}
    given = {"a_ml": Range(4.0, None), "b_ml": Fixed(6.0), "hour": Range(22.0, 4.0), "sex": Fixed("F")}
    row = Row(values, frozenset(given), given=given)
    assert asked_numbers(row) == {"a_ml": (4.0, math.inf), "b_ml": (6.0, 6.0), "hour": (23.0, 23.0)}


def test_a_smoother_label_is_no_fault():
    """Real labels with specks and tunnels: a draw without any passes, one with more does not."""

    def rough(seed):
        seen = case(seed)
        rng = np.random.default_rng(seed)
        label = seen.label.copy()
        for _ in range(rng.integers(3, 6)):
            label[tuple(rng.integers(1, 4, 3))] = 1
        return relabelled(seen, label)

    gates = Gates.of(spec_of(learn(rough(s) for s in range(40))), Setting({"topology": True}, others=False))
    assert gates.judge(case(0)).accepted and not gates.judge(fragments(case(0))).accepted


def test_small_cohorts_and_models_without_labels_judge_what_they_can(learnt):
    few = Gates.of(spec_of(learn([case(0), case(1)])), EVERY)
    assert few.judge(case(2)).accepted
    with pytest.raises(InputError, match="has a level, for which the model folder holds no figures"):
        Gates.of(spec_of({}, names=()), EVERY)
    bare = Gates.of(spec_of({}, names=()), Setting({**EVERY.kinds, "intensity": True}))
    assert set(bare.judges) == {"intensity"} and "holds no" in bare.silent["request"]
    image_only = replace(case(0), label=None, measured={}, names=())
    assert bare.judge(image_only).accepted and not bare.judge(bright(image_only)).accepted


def test_bounds_keep_the_share_of_real_cases_they_promise():
    rng = np.random.default_rng(0)
    kept, near = [], []
    for _ in range(300):
        x = rng.normal(size=40)
        low, high = Law.of(list(x)).bounds(0.01)
        kept.append(np.mean((low <= (new := rng.normal(size=50))) & (new <= high)))
        points = rng.normal(size=(41, 3)) @ np.array([[1, 0.8, 0], [0, 0.6, 0.3], [0, 0, 1]])
        rows = [dict(zip("abc", p, strict=True)) for p in points]
        cloud = Cloud.of("abc", rows[:-1])
        near.append(cloud.distance(rows[-1]) <= cloud.bound(0.01))
    assert np.mean(kept) >= 0.99 and np.mean(near) >= 0.97
    assert Law.of([1.0, 2.0]).bounds(0.01) == (-math.inf, math.inf)
    assert Cloud.from_json(json.loads(json.dumps(cloud.to_json()))) == cloud
    odd = [{"a": float(i == 0), "b": float(i % 7)} for i in range(20)]  # all but one case share a score
    assert math.isfinite(Cloud.of("ab", odd).far)


class TestNeighbour:
    @pytest.fixture
    def run(self, tmp_path, tiny_run):
        """A run folder whose latents are ten random cases of the tiny run's prepared cohort."""
        import shutil

        from medgen.store.prepared import Prepared

        shutil.copytree(tiny_run / "prepared", tmp_path / "prepared", ignore=shutil.ignore_patterns("*.npy"))
        store = Prepared.open(tmp_path / "prepared")
        mean = np.random.default_rng(0).normal(size=(len(store), 2, 4, 4, 4)).astype(np.float32)
        write_latents(tmp_path / "latents", mean, np.full_like(mean, -6), range(len(store)))
        index = read_json(tmp_path / "latents" / "index.json")
        write_json(tmp_path / "latents" / "index.json", {**index, "mean": [0.0, 0.0], "std": [1.0, 1.0]})
        (tmp_path / "model").mkdir()
        return tmp_path, mean[list(store.indices("train"))]

    def gates(self, run, folder, std=1.0):
        spec = replace(spec_of({}, latent_shape=(2, 4, 4, 4)), statistics={"mean": [0.0, 0.0], "std": [std, std]})
        return Gates.of(spec, Setting({"neighbour": True}, others=False), folder)

    def test_a_copy_is_stopped_and_a_new_case_is_not(self, run):
        folder, train = run
        gates = self.gates(run, folder / "model")
        copy = replace(case(0), latent=torch.from_numpy(train[1] + 0.05))
        assert "nearness" in gates.judge(copy).faults["neighbour"]
        new = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(1)) * 10  # as far from all of them
        assert gates.judge(replace(case(0), latent=new)).accepted
        assert "run" not in gates.recorded()["kinds"]["neighbour"]

    def test_where_it_cannot_judge_it_says_so(self, run, tmp_path_factory):
        folder, _ = run
        assert "beside the model" in self.gates(run, None).silent["neighbour"]
        assert "beside the model" in self.gates(run, tmp_path_factory.mktemp("bare")).silent["neighbour"]
        assert "another experiment" in self.gates(run, folder / "model", std=2.0).silent["neighbour"]
        (folder / "prepared" / "index.json").unlink()
        assert "beside the model" in self.gates(run, folder / "model").silent["neighbour"]


@pytest.mark.parametrize(
    ("kinds", "word"),
    [
        ({"topologie": True}, "did you mean 'topology'"),
        ({"topology": {"lvl": 1}}, "did you mean 'level'"),
        ({"topology": {"level": "a"}}, "a number"),
        ({"topology": {"level": -0.1}}, "above 0 and below 0.5"),
        ({"volumes": {"level": 0}}, "above 0 and below 0.5"),
        ({"volumes": {"request": -1.0}}, "request is 0 or more"),
        ({"intensity": {"beyond": 2.0}}, "beyond is between 0 and 1"),
        ({"request": {"tolerance": -1.0}}, "tolerance is 0 or more"),
        ({"position": {"level": 0.9}}, "position"),
        ({"consistency": {"level": 0.9}}, "consistency"),
        ({"agreement": {"min_dice": 3.0}}, "min_dice is between 0 and 1"),
        ({"agreement": True}, "segmenter"),
        ({"neighbour": {"quantile": 2.0}}, "between 0 and 1"),
        ({"neighbour": {"run": "nowhere"}}, "not a run folder"),
    ],
)
def test_faults_of_a_setting_are_one_sentence(kinds, word):
    with pytest.raises(InputError, match=word):
        Setting(kinds).check()


def test_words_of_the_command_line():
    shipped = Setting()
    assert set(shipped.active()) == {"intensity", "neighbour", "request", "topology", "volumes"}
    assert gating.parse(["none"], shipped).active() == {}
    said = gating.parse(["topology: off", "position", "{request: {tolerance: 0.5}}"], shipped)
    assert set(said.active()) == {"intensity", "neighbour", "position", "request", "volumes"}
    assert said.active()["request"] == {"tolerance": 0.5}
    assert set(gating.parse(["none", "volumes"], shipped).active()) == {"volumes"}
    assert gating.from_json(json.loads(json.dumps(said.to_json()))) == said
    for word in ("[a]", "topology: 3", "{"):
        with pytest.raises(InputError, match="--gate is"):
            gating.parse([word], shipped)


def test_a_config_says_gates_in_the_same_words():
    from medgen import config

    def kinds(gates):
        return config.build({"name": "a", "generate": {"gates": gates}}, "a").generate.gates

    assert kinds("none").others is False and kinds({"kinds": {"topology": False}}).kinds == {"topology": False}
    with pytest.raises(InputError, match="did you mean 'attempts'"):
        kinds({"attempt": 3})


def test_a_model_keeps_the_setting_without_paths():
    kept = Setting({"neighbour": {"run": "/home/x", "quantile": 0.02}, "agreement": {"segmenter": "/home/y"}}).to_json()
    assert kept["kinds"] == {"neighbour": {"quantile": 0.02}}


def test_real_held_out_cases_pass_and_broken_ones_do_not(data_dir):
    """Hippocampi: a share of the cases learns, others are judged, then damaged."""
    folder = data_dir("hippocampus")
    names = ("background", "Anterior", "Posterior")
    cases = []
    for path in sorted((folder / "labelsTr").glob("hippocampus_*.nii.gz"))[:110]:
        scan = nib.load(folder / "imagesTr" / path.name)
        image = np.asarray(scan.dataobj, dtype=np.float32)
        low, high = np.percentile(image, [0.5, 99.5])
        label = np.asarray(nib.load(path).dataobj).astype(np.uint8)
        cases.append(as_seen(np.clip((image - low) / (high - low) * 2 - 1, -1, 1)[None], label, names))
    new, known = cases[::5], [c for i, c in enumerate(cases) if i % 5]
    gates = Gates.of(spec_of(learn(known), names), EVERY)
    faults = [gates.judge(seen).faults for seen in new]
    for kind in gates.judges:
        assert np.mean([kind not in f for f in faults]) >= 0.9, (kind, [f[kind] for f in faults if kind in f])
    for damage, gate in ((fragments, "topology"), (bright, "intensity"), (broken, "finite"), (absent, "volumes")):
        assert np.mean([gate in gates.judge(damage(seen)).faults for seen in new]) == 1, damage
    assert np.mean(["position" in gates.judge(swapped(seen)).faults for seen in new]) == 1
    moved = [relabelled(s, np.roll(s.label, 3 * sign, axis)) for s in new[:6] for axis in range(3) for sign in (1, -1)]
    assert np.mean(["consistency" in gates.judge(seen).faults for seen in moved]) >= 0.7


@pytest.mark.parametrize(
    ("grid", "word"),
    [
        ({}, None),
        ({"channels": ["T1w"], "label_names": list(NAMES), "spacing_mm": [1.01, 1.0, 1.0]}, None),
        ({"channels": ["FLAIR"]}, "channels FLAIR, where the model has T1w"),
        ({"label_names": ["background", "back", "front"]}, "labels background, back, front, where"),
        ({"spacing_mm": [2.0, 2.0, 2.0]}, "voxels of 2 x 2 x 2 mm, where the model has 1 x 1 x 1 mm"),
    ],
)
def test_a_segmenter_of_another_cohort_is_refused(tmp_path, grid, word):
    architecture = Architecture(1, 3, (4, 8))
    Segmenter(architecture, build(architecture), (24, 24, 24), {}, grid).save(tmp_path)
    setting = Setting({"agreement": {"segmenter": str(tmp_path)}}, others=False)
    if word is None:
        assert "agreement" in Gates.of(spec_of({}), setting).judges
    else:
        with pytest.raises(InputError, match=word):
            Gates.of(spec_of({}), setting)
    with pytest.raises(InputError, match="2 labels, where the model has 1"):
        Gates.of(spec_of({}, names=NAMES[:2]), setting)
