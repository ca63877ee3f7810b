"""The protocol for samples, on a made-up cohort whose answers are known."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import ndimage

from medgen import config
from medgen.cohort.schema import Covariate, Schema
from medgen.errors import InputError
from medgen.evaluation.fidelity import Made, fidelity, measured
from medgen.evaluation.fidelity_page import fidelity_lines
from medgen.evaluation.likeness import nearer
from medgen.evaluation.reference import halves, measure_reference
from medgen.prepare.grid import GeometryRecord, Grid
from medgen.segment.network import Architecture, build
from medgen.segment.segmenter import Segmenter
from medgen.stages import fidelity as stage
from medgen.stages.conditions import check_requests
from medgen.stages.run import Run
from medgen.store.prepared import Prepared, PreparedCase

EXTENT = (16, 16, 16)
QUICK = {"resamples": 60, "pairs": 10}


def case(rng):
    """A textured ball on black, with a black frame."""
    x = np.stack(np.meshgrid(*(np.arange(n) for n in EXTENT), indexing="ij")) - 7.5
    label = (((x - rng.uniform(-1, 1, 3).reshape(3, 1, 1, 1)) ** 2).sum(0) < rng.uniform(3, 5) ** 2).astype(np.uint8)
    texture = ndimage.gaussian_filter(rng.normal(size=EXTENT), 0.7)
    image = np.where(label, 0.6, -0.2) + 0.3 * texture * rng.uniform(0.5, 1.5)
    image[:2], image[-2:] = -1, -1
    return image[None].clip(-1, 1).astype(np.float32), label


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    rng, folder = np.random.default_rng(0), tmp_path_factory.mktemp("store")
    (folder / "cases").mkdir()
    # Half a voxel in ml: a registration's scaling counts.
    grid, world = Grid(EXTENT, np.diag([10.0, 10.0, 10.0, 1.0])), np.diag([0.5, 1.0, 1.0, 1.0])
    geometry = GeometryRecord(grid, grid, world).to_json()
    cases = []
    for i in range(56):
        image, label = case(rng)
        np.save(folder / "cases" / f"c{i:04d}_image.npy", image)
        np.save(folder / "cases" / f"c{i:04d}_label.npy", label)
        split = "train" if i < 32 else "val"
        volume = {"ball_ml": float(label.sum() / 2)}
        cases.append(PreparedCase(f"c{i:04d}", str(i), str(i), split, volume, True, (True,), geometry, (), {}))
    schema = Schema((Covariate("ball_ml"),))
    store = Prepared(
        folder, "x", ("T1",), (0, 1), ("background", "ball"), schema, (10, 10, 10), EXTENT, 4, tuple(cases)
    )
    torch.manual_seed(0)
    architecture = Architecture(1, 2, (8, 16))
    segmenter = Segmenter(architecture, build(architecture), EXTENT, {}).with_network(build(architecture))
    return measure_reference(store, segmenter, components=6)


def fresh(n, seed=9):
    rng = np.random.default_rng(seed)
    pairs = [case(rng) for _ in range(n)]
    return [Made(image, label, {"ball_ml": float(label.sum() / 2)}) for image, label in pairs]


def test_new_cases_of_the_same_kind_pass(cohort):
    found = fidelity(cohort, fresh(24), [s.image for s in fresh(8, 3)], **QUICK)
    json.dumps(found, allow_nan=False)
    assert found["n"] == 24
    for name in ("mmd", "mmd_poly", "frechet"):
        excess = found["excess"][name]
        assert excess["low"] < 0 < excess["high"], name
    assert found["samples"]["precision"]["value"] > 0.7 and found["samples"]["coverage"]["value"] > 0.7
    # The volume of a voxel is that in the subject's own space.
    exact = found["volumes"]["ball_ml"]["generated_label"]
    assert exact["ccc"]["value"] == pytest.approx(1) and exact["mae"]["value"] == pytest.approx(0)
    assert found["volumes"]["ball_ml"]["segmenter_on_real"]["n"] == 24
    assert found["memorisation"]["voxels"]["copies"] < 0.2
    assert found["memorisation"]["voxels"]["ratio"] == pytest.approx(1, abs=0.2)
    assert found["sharpness"]["laplacian_ratio_to_reconstructions"] == pytest.approx(1, abs=0.3)
    assert found["sharpness"]["frame_mean"]["samples"] == -1
    assert found == fidelity(cohort, fresh(24), [s.image for s in fresh(8, 3)], **QUICK)


def test_noise_blur_copies_and_disobedience_are_seen(cohort):
    rng = np.random.default_rng(1)
    good = fidelity(cohort, fresh(24), **QUICK)
    noisy = [
        replace(s, image=(s.image + rng.normal(0, 0.5, s.image.shape)).clip(-1, 1).astype(np.float32))
        for s in fresh(24)
    ]
    found = fidelity(cohort, noisy, **QUICK)
    assert found["excess"]["frechet"]["low"] > 0 and found["excess"]["mmd"]["low"] > 0
    assert found["sharpness"]["laplacian_ratio_to_real"] > 2 and found["sharpness"]["frame_mean"]["samples"] > -0.99
    longer = [replace(s, image=np.concatenate([s.image[:, 2:-2]] + [s.image[:, 6:8]] * 2, axis=1)) for s in fresh(24)]
    share = fidelity(cohort, longer, **QUICK)["sharpness"]["content_share"]
    assert share["samples"] > 1.15 * share["real"], "crops that are too large"
    share = good["sharpness"]["content_share"]
    assert share["samples"] == pytest.approx(share["real"], rel=0.1)
    blurred = [replace(s, image=ndimage.gaussian_filter(s.image, (0, 1.5, 1.5, 1.5))) for s in fresh(24)]
    found = fidelity(cohort, blurred, **QUICK)
    assert found["excess"]["frechet"]["value"] > good["excess"]["frechet"]["value"]
    assert (
        found["sharpness"]["laplacian_ratio_to_real"] < 0.3 and found["sharpness"]["spectrum_ratio_to_real"][-1] < 0.1
    )
    store = cohort.store
    copies = [Made(np.array(store.image(i)), np.array(store.label(i)), {"ball_ml": 1.0}) for i in range(24)]
    found = fidelity(cohort, copies, **QUICK)
    assert found["memorisation"]["features"]["copies"] == 1 and found["memorisation"]["voxels"]["ratio"] < 0.01
    assert found["volumes"]["ball_ml"]["generated_label"]["ccc"]["value"] is None  # one request for all


def test_which_of_two_sets_is_nearer_is_told_by_the_difference(cohort):
    rng = np.random.default_rng(1)
    good, also_good = measured(cohort, fresh(24)), measured(cohort, fresh(24, 5))
    noise = [
        replace(s, image=(s.image + rng.normal(0, 0.3, s.image.shape)).clip(-1, 1).astype(np.float32))
        for s in fresh(24)
    ]
    noisy = measured(cohort, noise)
    for key in ("frechet", "mmd", "mmd_poly"):
        there, back = (nearer(cohort, *two, resamples=60)[key] for two in ((good, noisy), (noisy, good)))
        assert there["low"] > 0 and there["value"] == pytest.approx(-back["value"], rel=0.2)
        alike = nearer(cohort, good, also_good, resamples=60)[key]
        assert alike["low"] < 0 < alike["high"]
        assert nearer(cohort, good, good, resamples=60)[key]["low"] <= 0
    # The floor falls out: it is what the excesses differ by.
    a, b = (fidelity(cohort, s, **QUICK)["excess"]["frechet"]["value"] for s in (fresh(24), noise))
    assert nearer(cohort, good, noisy, resamples=60)["frechet"]["value"] == pytest.approx(b - a, rel=0.2)


def test_images_without_labels_and_requests_are_measured(cohort):
    found = fidelity(cohort, [replace(s, label=None, request={}) for s in fresh(10)], **QUICK)
    assert found["volumes"]["ball_ml"]["segmenter"] == {"n": 0} and found["label_dice"]["samples"] is None
    assert found["n"] == 10


def test_what_cannot_be_compared_is_one_sentence(cohort):
    with pytest.raises(InputError, match="too few"):
        fidelity(cohort, fresh(5), **QUICK)
    bad = fresh(10)
    bad[3] = replace(bad[3], image=bad[3].image * np.nan)
    with pytest.raises(InputError, match="sample 3 is not finite"):
        fidelity(cohort, bad, **QUICK)
    few = replace(cohort.store, cases=cohort.store.cases[:34])
    with pytest.raises(InputError, match="32 and 2 training and held-out"):
        measure_reference(few, cohort.segmenter)
    two = replace(cohort.store, label_values=(0, 1, 2))
    with pytest.raises(InputError, match="another number"):
        measure_reference(two, cohort.segmenter)


def test_the_floor_is_that_of_cases_the_segmenter_has_not_seen(cohort):
    seen, unseen = halves(cohort.store)
    assert len(seen) == len(unseen) == 16 and not set(seen) & set(unseen)
    half = measure_reference(cohort.store, cohort.segmenter, components=6, unseen=unseen)
    assert [half.train_cases[r] for r in half.floor_rows] == list(unseen) and len(half.train) == 32
    whole, found = fidelity(cohort, fresh(24), **QUICK), fidelity(half, fresh(24), **QUICK)
    assert (whole["n"], found["n"]) == (24, 16)
    assert "unseen" in found["floor_of"] and "all" in whole["floor_of"]
    assert found["floor"] != whole["floor"]
    # Copies of any training case are looked for, seen or not.
    assert found["memorisation"] == whole["memorisation"]


def test_too_few_cases_are_not_halved(cohort):
    few = replace(cohort.store, cases=cohort.store.cases[:15] + cohort.store.cases[32:])
    assert halves(few) == (few.indices("train"), ())
    one = replace(cohort.store, cases=tuple(replace(c, subject_id="one") for c in cohort.store.cases))
    assert halves(one)[1] == (), "one subject stays on one side"


def a_run(cohort, folder, **report):
    raw = {"name": "x", "device": "cpu", "data": {"root": str(folder)}, "generate": {"n": 8}, "report": report}
    return Run(config.build(raw, "x"), folder, lambda *_: None, known_store=cohort.store)


def test_a_report_trains_the_segmenter_once_and_measures_by_it(cohort, tmp_path, monkeypatch):
    codec = SimpleNamespace(image_channels=1, labels=2)
    monkeypatch.setattr(stage, "trained_codec", lambda run: codec)
    monkeypatch.setattr(stage, "reconstruct", lambda codec, image, label, device: (image, label))
    assert stage.measuring(a_run(cohort, tmp_path)) is None
    measure = stage.measuring(a_run(cohort, tmp_path, fidelity={"segmenter_steps": 2}))
    asked = [replace(c, covariates={"requested_ball_ml": c.covariates["ball_ml"]}) for c in cohort.store.cases[:10]]
    samples = replace(cohort.store, cases=tuple(asked))
    found = measure(samples)
    weights = tmp_path / "fidelity" / "segmenter" / "segmenter.safetensors"
    first = weights.stat().st_mtime_ns
    assert found["volumes"]["ball_ml"]["generated_label"]["ccc"]["value"] == pytest.approx(1)
    assert "unseen" in found["floor_of"] and measure(samples) == found and weights.stat().st_mtime_ns == first
    page = "\n".join(fidelity_lines(found))
    assert "| Fréchet distance |" in page and "| ball_ml | 1 (1 to 1) |" in page and "reconstructions'" in page


@pytest.mark.parametrize(
    ("cases", "n", "word"),
    [(slice(0, 36), 8, "4 cases are on one side"), (slice(0, 56), 7, "generate.n is 7")],
)
def test_what_cannot_be_measured_is_refused_before_the_training(cohort, tmp_path, cases, n, word):
    run = a_run(cohort, tmp_path, fidelity=True)
    run = replace(
        run,
        config=run.config.model_copy(update={"generate": run.config.generate.model_copy(update={"n": n})}),
        known_store=replace(cohort.store, cases=cohort.store.cases[cases]),
    )
    with pytest.raises(InputError, match=word):
        check_requests(run)
