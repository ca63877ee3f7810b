"""Real and synthetic cases in one dataset: whole, restored, and each where it may be."""

from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest

from medgen.cohort.load import load_case
from medgen.cohort.splits import assign
from medgen.errors import InputError
from medgen.files import read_json
from medgen.formats.detect import open_writer, read_cohort
from medgen.generation.combine import Part, combine
from medgen.volume import Volume
from tests.formats.cohort_builders import AFFINE, INFO, SHAPE, label, sample, volume
from tests.validators import bids_errors, check_nnunet

REAL = ("pat_1", "pat_2", "pat_3", "pat_4")
SIDES = [
    {"pat_1": "train", "pat_2": "train", "pat_3": "val", "pat_4": "val"},
    {"pat_1": "val", "pat_2": "val", "pat_3": "train", "pat_4": "train"},
]


def counts(seed: int) -> Volume:
    return Volume(np.random.default_rng(seed).integers(-3, 900, (1, *SHAPE)).astype(np.int16), AFFINE)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    """Four real cases: whole-numbered T1w, real-numbered FLAIR."""
    folder = tmp_path_factory.mktemp("real")
    writer = open_writer("nnunet", folder, replace(INFO, real=frozenset(REAL)))
    for i, name in enumerate(REAL):
        writer.write(sample(name, i, images={"T1w": counts(i), "FLAIR": volume(i)}, covariates={"age": 30.0 + i}))
    writer.close()
    return read_cohort(folder)


@pytest.fixture(scope="module")
def parts(tmp_path_factory, cohort):
    # The cohort's labels are 1 and 2, and so are those of a model trained on it.
    info = replace(INFO, label_names=dict(cohort.label_names))
    found = []
    for fold, kind in enumerate(("bids", "decathlon")):
        folder = tmp_path_factory.mktemp(f"synthetic{fold}")
        writer = open_writer(kind, folder, info)
        for i in range(2):
            images = {"T1w": counts(10 * fold + i), "FLAIR": volume(10 * fold + i)}
            writer.write(sample(f"syn{i:06d}", 10 * fold + i, images=images, label=label((0, 1, 2), i)))
        writer.close()
        found.append(Part(folder, kind, info, fold, f"fold{fold + 1}"))
    return found


@pytest.mark.parametrize("kind", ["bids", "nnunet", "decathlon"])
def test_each_synthetic_case_trains_in_its_own_fold_only(kind, cohort, parts, tmp_path, monkeypatch):
    found = combine(cohort, SIDES, parts, tmp_path, format=kind)
    assert (found.real, found.synthetic, found.left_out) == (4, 4, ())
    for fold, split in enumerate(read_json(tmp_path / "splits_final.json")):
        synthetic = {i for i in split["train"] if "syn" in i}
        assert len(synthetic) == 2 and all(f"fold{fold + 1}syn" in i for i in synthetic)
        assert len(split["train"]) == 4 and len(split["val"]) == 2 and not any("syn" in i for i in split["val"])
    if kind == "bids":
        assert bids_errors(tmp_path) == []
    if kind == "nnunet":
        check_nnunet(tmp_path, monkeypatch)
    back = {c.case_id.removeprefix("sub-").replace("_", ""): c for c in read_cohort(tmp_path).cases}
    for name, original in zip(REAL, cohort.cases, strict=True):
        made, case = back[name.replace("_", "")], load_case(original, INFO.channels)
        again = load_case(made, INFO.channels)
        assert all(np.array_equal(again.images[c].data, case.images[c].data) for c in INFO.channels)
        assert np.array_equal(again.label.data, case.label.data) and np.array_equal(
            again.label.affine, case.label.affine
        )
        assert made.covariates["origin"] == "real" and made.covariates["age"] == original.covariates["age"]
    assert back["fold2syn000001"].covariates["origin"] == "synthetic"
    again = read_cohort(tmp_path).cases
    assert {c.case_id for c in again if c.synthetic} == {c.case_id for c in again if "syn" in c.case_id}
    for seed in range(3):  # a run on the combined dataset holds out real cases alone
        sides = assign(again, validation=0.4, seed=seed)
        # The split is that of one fold, which leaves out what the others' models made.
        where = {sides[c.case_id] for c in again if c.synthetic}
        assert where == {"train", "test"} and "val" in sides.values()
    kinds = {p.name: nib.load(p).get_data_dtype().kind for p in tmp_path.rglob("*.nii.gz")}
    if kind != "decathlon":  # whose channels share a file
        assert {k for name, k in kinds.items() if "T1w" in name or "_0000" in name} == {"i"}
        assert {k for name, k in kinds.items() if "FLAIR" in name or "_0001" in name} == {"f"}

    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()}
    combine(cohort, SIDES, parts, tmp_path, format=kind)
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()} == before


def test_what_cannot_be_used_is_told(cohort, parts, tmp_path):
    first, second, third, fourth = cohort.cases
    less = cohort.with_cases(
        (first, replace(second, label=()), replace(third, images={"T1w": third.images["T1w"]}), fourth)
    )
    sides = [{**fold, "pat_4": "test"} for fold in SIDES]
    found = combine(less, sides, parts, tmp_path, format="nnunet")
    assert found.real == 1
    assert set(found.left_out) == {"1 without a label", "1 without every channel", "1 in no fold"}
    with pytest.raises(InputError, match="other cases already"):
        combine(cohort, SIDES, parts[:1], tmp_path, format="nnunet")
    with pytest.raises(InputError, match="one id as bids"):
        twice = cohort.with_cases((first, replace(second, case_id="pat1")))
        combine(twice, [{"pat_1": "train", "pat1": "val"}], parts[:1], tmp_path / "x", format="bids")


@pytest.mark.parametrize("kind", ["bids", "nnunet", "decathlon"])
def test_sessions_of_one_person_stay_together(kind, cohort, parts, tmp_path):
    people = ("a", "a", "b", "c")
    cases = tuple(replace(case, subject_id=person) for case, person in zip(cohort.cases, people, strict=True))
    combine(replace(cohort, cases=cases), SIDES, parts, tmp_path, format=kind)
    if kind == "bids":
        assert bids_errors(tmp_path) == []
    back = read_cohort(tmp_path)
    of = {c.case_id.removeprefix("sub-").replace("_", ""): c.subject_id for c in back.cases}
    assert [of[name.replace("_", "")] for name in REAL] == [f"subject{n:04d}" for n in (1, 1, 2, 3)]
    assert len(set(of.values())) == len(of) - 1, "every synthetic case is a subject of its own"
    assert "subject" not in back.schema
