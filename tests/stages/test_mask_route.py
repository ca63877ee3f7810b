"""Pairs in which the image follows a mask: a label model's, a real one, or the user's."""

import copy
import json
import shutil
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import torch

from medgen import config, pipeline
from medgen.errors import InputError
from medgen.files import read_json
from medgen.generation.generator import Generator
from medgen.generation.masks import placed_mask
from medgen.generation.model import read_spec
from medgen.sampling.noise import Key
from medgen.stages.quality import check_sides
from medgen.stages.run import Fold, Run
from medgen.store.prepared import Prepared
from medgen.volume import Volume, write_volume
from tests.tiny import TINY, run


def masked(**sections):
    raw = copy.deepcopy(TINY)
    raw |= {"pairs": "mask", "latents": {"copies": 1}}
    for section, values in sections.items():
        raw[section] = {**raw.get(section, {}), **values} if isinstance(values, dict) else values
    return config.build(raw, "test")


@pytest.fixture(scope="module")
def finished(tiny_run, tmp_path_factory):
    folder = shutil.copytree(tiny_run, tmp_path_factory.mktemp("masks") / "tiny")
    report, did = run(folder, masked())
    assert {"labels autoencoder", "labels diffusion", "labels model", "autoencoder", "model", "synthetic"} <= did
    assert report["samples"]["count"] == 3
    return folder


@pytest.fixture(scope="module")
def generator(finished):
    loaded = Generator.load(finished / "model", device="cpu")
    return Generator(loaded.model, replace(loaded.drawing, space="grid"), loaded.context)


def rows_of(generator, n):
    from medgen.cohort.requests import plan

    chosen = plan(generator.schema, generator.model.joint)
    return [chosen.row(i, 0) for i in range(n)]


def given(generator, path, **changes):
    drawing = replace(generator.drawing, masks=path, **changes)
    return Generator(generator.model, drawing, generator.context)


def test_the_model_is_two_models(finished, generator):
    spec, _ = read_spec(finished / "model")
    inner, _ = read_spec(finished / "model" / "labels")
    assert spec.mask["stride"] == 4 and spec.codec_labels == 0 and inner.channels == () and not inner.mask
    assert generator.model.codec.labels == 0 and generator.model.labels.codec.image_channels == 0
    # The image model is told by the mask what the volume would tell it; users still ask for volumes.
    assert "ventricles_ml" not in generator.model.encoder.schema.names and "ventricles_ml" in generator.schema.names
    assert "ventricles_ml" in generator.model.labels.encoder.schema.names
    damaged = finished / "model" / "labels" / "network.safetensors"
    before = damaged.read_bytes()
    damaged.write_bytes(before[:-1] + b"x")
    with pytest.raises(InputError, match=r"network\.safetensors is missing or not the file"):
        Generator.load(finished / "model", device="cpu")
    damaged.write_bytes(before)


def test_a_sample_has_its_mask_as_label_and_is_a_function_of_its_key(generator):
    rows = rows_of(generator, 2)
    keys = [Key(0, 0), Key(0, 1)]
    drafts = list(generator.drafts(rows, keys))
    again = next(iter(generator.drafts(rows[1:], keys[1:])))
    np.testing.assert_array_equal(drafts[1].image, again.image)
    np.testing.assert_array_equal(drafts[1].probabilities, again.probabilities)
    assert drafts[0].mask == {"source": "label model"}
    sample = generator.finish(drafts[0])
    np.testing.assert_array_equal(sample.label.data[0], drafts[0].probabilities.argmax(axis=0))
    # A mask and its image do not share their noise: latents of both have one shape here.
    inner = Generator(generator.model.labels, replace(generator.drawing))
    alone = next(iter(inner.drafts(rows[:1], [replace(keys[0], part="mask")])))
    np.testing.assert_array_equal(alone.probabilities, drafts[0].probabilities)
    shared = next(iter(inner.drafts(rows[:1], keys[:1])))
    assert not np.array_equal(shared.probabilities, drafts[0].probabilities)


def test_given_masks_are_the_labels(finished, generator, tmp_path):
    store = Prepared.open(finished / "prepared")
    first = store.indices("train")[0]
    by_masks = given(generator, finished / "prepared")
    samples = by_masks.draw(rows_of(generator, 2), [Key(0, 0), Key(0, len(store.indices("train")))])
    for sample in samples:  # the masks begin again where they end
        values = np.array(store.label_values)[store.label(first)]
        np.testing.assert_array_equal(sample.label.data[0], values)
        assert sample.sidecar["mask"] == {"source": "given", "number": 0}
        assert sample.sidecar["drawn"]["ventricles_ml"] is None, "nothing was drawn that the mask decides"
    said = json.dumps(samples[0].sidecar)
    assert str(finished) not in said and store.cases[first].case_id not in said
    assert not np.array_equal(samples[0].images["T1w"].data, samples[1].images["T1w"].data)
    with pytest.raises(InputError, match="'ventricles_ml' is asked for, but the masks are given as they are"):
        by_masks.sample(volumes_ml={"Ventricles": 20}, force=True)


def test_a_users_label_file_is_laid_where_the_cohorts_labels_lie(finished, generator, tmp_path):
    spec, store = generator.model.spec, Prepared.open(finished / "prepared")
    ids = np.asarray(store.label(store.indices("train")[0]))
    values = np.array(spec.label_values)[ids].astype(np.int16)
    # The same voxels stored from right to left, in a larger box and elsewhere in the world.
    box = np.pad(values, 3)[::-1].copy()
    affine = np.diag([-spec.spacing_mm[0], *spec.spacing_mm[1:], 1.0])
    affine[:3, 3] = [31.0, -7.0, 12.0]
    path = tmp_path / "label.nii.gz"
    write_volume(path, Volume(box[None], affine))
    placed = placed_mask(path, spec)
    inside = np.argwhere(ids > 0)
    low, high = inside.min(axis=0), inside.max(axis=0)
    found = np.argwhere(placed > 0)
    np.testing.assert_array_equal(placed[tuple(found.T)], ids[tuple(inside.T)])
    assert np.abs((found.min(axis=0) + found.max(axis=0)) / 2 - np.array(spec.mask["centre"])).max() <= 0.5
    np.testing.assert_array_equal(found.max(axis=0) - found.min(axis=0), high - low)
    sample = given(generator, tmp_path).draw(rows_of(generator, 1), [Key(0, 0)])[0]
    np.testing.assert_array_equal(sample.label.data[0], np.array(spec.label_values)[placed])


def test_an_array_is_followed_from_python(finished, generator):
    store = Prepared.open(finished / "prepared")
    values = np.array(store.label_values)[store.label(store.indices("val")[0])]
    sample = generator.sample(mask=values, seed=3)
    np.testing.assert_array_equal(sample.label.data[0], values)
    with pytest.raises(InputError, match="masks are label maps of the model's shape"):
        generator.sample(mask=values[1:])


def test_asked_volumes_are_met_by_the_edit_that_takes_them(finished, generator):
    edited = given(generator, finished / "prepared", edits=({"kind": "volume", "structure": "Ventricles"},))
    before = given(generator, finished / "prepared").sample(seed=0).sidecar["measured"]["ventricles_ml"]
    asked = 1.3 * before
    sample = edited.sample(seed=0, volumes_ml={"Ventricles": asked}, force=True)
    voxel_ml = float(np.prod(generator.model.spec.spacing_mm)) / 1000
    assert abs(sample.sidecar["measured"]["ventricles_ml"] - asked) < max(0.05 * asked, voxel_ml)
    assert sample.sidecar["mask"]["edited"] and sample.sidecar["drawing"]["masks"]["edits"]


def test_a_mask_that_an_edit_cannot_change_costs_its_own_sample_only(finished, generator, tmp_path):
    """The second of two masks has no ventricles to grow."""
    from medgen.cohort.requests import plan
    from medgen.generation.dataset import generate
    from medgen.generation.gates.panel import Gates
    from medgen.generation.gates.setting import Setting
    from medgen.generation.left_out import LeftOut

    store, spec = Prepared.open(finished / "prepared"), generator.model.spec
    values = np.array(spec.label_values)[store.label(store.indices("train")[0])].astype(np.int16)
    lacking = np.where(values == spec.label_values[spec.label_names.index("Ventricles")], 0, values)
    for name, data in (("a", values), ("b", lacking)):
        write_volume(tmp_path / "masks" / f"{name}.nii.gz", Volume(data[None], np.diag([*spec.spacing_mm, 1.0])))
    edited = given(generator, tmp_path / "masks", edits=({"kind": "volume", "structure": "Ventricles"},))
    asked = plan(edited.schema, edited.model.joint, where="ventricles_ml=20", force=True)
    with pytest.raises(InputError, match=r"sample 1: mask 1 cannot be edited: .*leave that mask out"):
        edited.draw([asked.row(i, 0) for i in range(2)], [Key(0, 0), Key(0, 1)])
    gates = Gates.of(spec, Setting({}, others=False, attempts=2))
    found = generate(edited, tmp_path / "out", 2, asked, seed=0, gates=gates)
    assert found.made == 1
    (record,) = LeftOut(tmp_path / "out").records().values()
    said = [draw["faults"]["edit"]["mask"] for draw in record["rejected"]]
    assert len(said) == 2 and all(words.startswith("mask 1 cannot be edited") for words in said)


def test_masks_that_do_not_fit_are_refused(finished, generator, tmp_path):
    spec = generator.model.spec
    affine = np.diag([*spec.spacing_mm, 1.0])

    def written(name, data):
        write_volume(tmp_path / name, Volume(data[None].astype(np.int16), affine))
        return tmp_path / name

    strange, empty = np.zeros(spec.shape), np.zeros(spec.shape)
    strange[4:8, 4:8, 4:8] = 99
    with pytest.raises(InputError, match=r"strange\.nii.*label value 99, which the model does not know"):
        given(generator, written("strange.nii", strange))
    with pytest.raises(InputError, match=r"empty\.nii labels nothing"):
        given(generator, written("empty.nii", empty))
    with pytest.raises(InputError, match=r"large\.nii: \d+% of what it labels lies outside the model's grid"):
        given(generator, written("large.nii", np.ones([2 * n for n in spec.shape])))
    with pytest.raises(InputError, match=r"nowhere does not exist; give a label file"):
        given(generator, tmp_path / "nowhere")
    (tmp_path / "none").mkdir()
    with pytest.raises(InputError, match=r"none holds no \.nii"):
        given(generator, tmp_path / "none")


def test_a_joint_model_follows_no_mask(tiny_run, finished):
    joint = Generator.load(tiny_run / "model", device="cpu")
    with pytest.raises(InputError, match="draws image and label together and follows no mask"):
        given(joint, finished / "prepared")
    raw = copy.deepcopy(TINY)
    raw["generate"]["masks"] = "somewhere"
    with pytest.raises(InputError, match=r"generate\.masks belongs to the route in which images follow masks"):
        config.build(raw, "test")


def test_what_needs_a_decoded_label_is_refused(finished, tmp_path):
    from medgen.generation.distil import Distillation, distil
    from medgen.training.loop import Schedule

    with pytest.raises(InputError, match="follows masks, and a student learns from covariates alone"):
        distil(finished / "model", tmp_path / "student", Distillation(), Schedule(steps=1), device="cpu")
    steered = {"steering": [{"kind": "volume_gradient"}]}
    with pytest.raises(InputError, match="volume_gradient"):
        run(shutil.copytree(finished, tmp_path / "tiny"), masked(generate=steered))
    with pytest.raises(InputError, match="distil learns from covariates"):
        masked(distil={"training": {"steps": 1}})


def test_only_what_changed_is_trained_again(finished, tmp_path):
    folder = shutil.copytree(finished, tmp_path / "tiny")
    _, did = run(folder, masked())
    assert not did, did
    other = {"diffusion": {**TINY["diffusion"], "training": {**TINY["diffusion"]["training"], "steps": 4}}}
    _, did = run(folder, masked(labels=other), until="model")
    assert {"labels diffusion", "labels model", "model"} <= did
    assert not did & {"labels autoencoder", "autoencoder", "latents", "diffusion"}, did


def view(tiny_run, folder, hidden_share):
    """The tiny cohort with the labels of most training cases hidden."""
    store = Prepared.open(tiny_run / "prepared")
    train = [store.cases[i].case_id for i in store.indices("train")]
    hidden = frozenset(train[: int(len(train) * hidden_share)])
    sides = {case.case_id: case.split or "test" for case in store.cases}
    return Fold(tiny_run, sides, hidden), hidden


def test_cases_without_a_label_train_the_image_model(tiny_run, tmp_path):
    fold, hidden = view(tiny_run, tmp_path, 0.5)
    under_way = Run(masked(), tmp_path / "run", lambda *_: None, fold=fold)
    pipeline._run_stages(under_way, pipeline.STAGES, "model")
    index = read_json(tmp_path / "run" / "latents" / "index.json")
    masks = np.load(tmp_path / "run" / "latents" / "masks.npy")
    for row, case in enumerate(index["cases"]):
        unknown = under_way.store.cases[case].case_id in hidden
        assert bool((masks[row] == -1).all()) == unknown
    inner = read_json(tmp_path / "run" / "labels" / "latents" / "index.json")
    assert len(inner["cases"]) >= len(index["cases"]) - len(hidden)
    spec, _ = read_spec(tmp_path / "run" / "model")
    assert not [c for c in spec.encoder["schema"] if c["name"] == "has_label"], "a mask says by itself what is unknown"
    sample = Generator.load(tmp_path / "run" / "model", device="cpu").sample(seed=1)
    assert torch.isfinite(torch.from_numpy(sample.images["T1w"].data.astype(np.float32))).all()


def segmenting(steps):
    raw = copy.deepcopy(TINY)
    raw["data"] |= {"unlabelled": "segment", "segmenter_steps": steps}
    return config.build(raw, "test")


def test_cases_without_a_label_can_be_segmented_first(tiny_run, tmp_path):
    fold, hidden = view(tiny_run, tmp_path, 0.5)
    cfg = segmenting(3)
    under_way = Run(cfg, tmp_path / "run", lambda *_: None, fold=fold)
    pipeline._run_stages(under_way, pipeline.STAGES, "latents")
    keys = {case.key for case in under_way.prepared.cases if case.case_id in hidden}
    made = read_json(tmp_path / "run" / "segmented" / "index.json")["volumes_ml"]
    assert set(made) == keys
    store = under_way.store
    i = next(k for k, case in enumerate(store.cases) if case.key in keys)
    assert store.cases[i].has_label and not under_way.prepared.cases[i].has_label
    ids = np.asarray(store.label(i))
    ml = float(np.prod(store.spacing_mm)) / 1000
    assert store.cases[i].covariates["ventricles_ml"] == pytest.approx(
        (ids == store.label_names.index("Ventricles")).sum() * ml, rel=1e-4
    )
    # The hidden label itself is nowhere: garbage in its place changes nothing.
    segmenter = (tmp_path / "run" / "segmented" / "segmenter" / "segmenter.safetensors").read_bytes()
    poisoned = shutil.copytree(tiny_run, tmp_path / "poisoned")
    for key in keys:
        path = poisoned / "prepared" / "cases" / f"{key}_label.npy"
        np.save(path, np.zeros_like(np.load(path)))
    again = Run(cfg, tmp_path / "again", lambda *_: None, fold=replace(fold, shared=poisoned))
    pipeline._run_stages(again, pipeline.STAGES, "segmented")
    assert (tmp_path / "again" / "segmented" / "segmenter" / "segmenter.safetensors").read_bytes() == segmenter


def test_a_label_that_a_case_has_by_now_is_not_replaced_by_one_that_was_made_for_it(tiny_run, tmp_path):
    fold, _ = view(tiny_run, tmp_path, 0.5)
    cfg = segmenting(1)
    first = Run(cfg, tmp_path / "run", lambda *_: None, fold=fold)
    pipeline._run_stages(first, pipeline.STAGES, "segmented")
    assert (tmp_path / "run" / "segmented" / "index.json").is_file() and first.lacks_labels
    labelled = Run(cfg, tmp_path / "run", lambda *_: None, fold=replace(fold, hidden=frozenset()))
    pipeline._run_stages(labelled, pipeline.STAGES, "segmented")
    assert not labelled.lacks_labels
    whole = Prepared.open(tiny_run / "prepared")
    stale = labelled.prepared.labelled_by(tmp_path / "run" / "segmented")
    for store in (labelled.store, stale):
        for i, case in enumerate(store.cases):
            assert np.array_equal(store.label(i), whole.label(i)) and case.covariates == whole.cases[i].covariates


def test_one_label_map_that_cannot_be_followed_is_refused_before_any_is(finished, generator, tmp_path):
    store = Prepared.open(finished / "prepared")
    ids = np.array(store.label(0))
    for name, data in (("a", ids), ("b", np.where(ids == 1, 77, ids)), ("c", ids * 0)):
        nib.save(nib.Nifti1Image(data.astype(np.uint8), np.diag([*store.spacing_mm, 1.0])), tmp_path / f"{name}.nii.gz")
    with pytest.raises(InputError, match=r"b\.nii\.gz holds the label value 77"):
        given(generator, tmp_path)
    (tmp_path / "b.nii.gz").unlink()
    with pytest.raises(InputError, match=r"c\.nii\.gz labels nothing"):
        given(generator, tmp_path)


def test_folds_are_not_given_the_label_maps_of_the_whole_cohort(finished, tmp_path):
    raw = copy.deepcopy(TINY)
    raw |= {"pairs": "mask", "data": {**raw["data"], "folds": 2}}
    raw["generate"] = {**raw["generate"], "masks": str(finished / "prepared")}
    with pytest.raises(InputError, match="would reach folds that hold them out"):
        pipeline.run_experiment(config.build(raw, "test"), folder=tmp_path)


def test_labels_with_sides_are_not_mirrored(tiny_run, tmp_path):
    store = Prepared.open(tiny_run / "prepared")
    sided = replace(store, label_names=("background", "LeftPart", *store.label_names[2:]))
    for section in ({"latents": {"mirror": True}}, {"autoencoder": {**TINY["autoencoder"], "augment": {"flip": True}}}):
        cfg = config.build(copy.deepcopy(TINY) | section, "test")
        check_sides(Run(cfg, tmp_path, lambda *_: None, known_store=store))
        with pytest.raises(InputError, match="'LeftPart' has a side"):
            check_sides(Run(cfg, tmp_path, lambda *_: None, known_store=sided))
