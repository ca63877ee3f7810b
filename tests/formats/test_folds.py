"""Folds beside real and synthetic cases, as nnU-Net and MONAI read them."""

from dataclasses import replace
from pathlib import Path

import pytest
from cohort_builders import INFO, sample

import medgen
from medgen.errors import InputError
from medgen.files import read_json
from medgen.formats.detect import open_writer, read_cohort

SPLITS = (
    {"train": ("pat_1", "pat_2", "fold1syn0"), "val": ("pat_3",)},
    {"train": ("pat_3", "pat_2", "fold2syn0", "gone"), "val": ("pat_1",)},
)
MIXED = replace(INFO, real=frozenset({"pat_1", "pat_2", "pat_3"}), splits=SPLITS)


def written(kind: str, out: Path) -> Path:
    writer = open_writer(kind, out, MIXED)
    for i, name in enumerate(("pat_1", "pat_2", "pat_3", "fold1syn0", "fold2syn0")):
        writer.write(sample(name, i))
    writer.close()
    return out


@pytest.mark.parametrize("kind", ["nnunet", "decathlon"])
def test_splits_name_what_is_there(kind: str, tmp_path: Path) -> None:
    out = written(kind, tmp_path)
    assert read_json(out / "splits_final.json") == [
        {"train": ["fold1syn0", "pat_1", "pat_2"], "val": ["pat_3"]},
        {"train": ["fold2syn0", "pat_2", "pat_3"], "val": ["pat_1"]},
    ]
    assert open_writer(kind, out, MIXED).committed() == {"pat_1", "pat_2", "pat_3", "fold1syn0", "fold2syn0"}
    assert {c.case_id for c in read_cohort(out).cases} == {"pat_1", "pat_2", "pat_3", "fold1syn0", "fold2syn0"}
    for fold, own in enumerate(("fold1syn0", "fold2syn0")):
        train = {row["case_id"] for row in medgen.datalist(out, fold=fold)}
        val = {row["case_id"] for row in medgen.datalist(out, fold=fold, side="val")}
        assert not train & val and {i for i in train | val if "syn" in i} == {own} <= train
    with pytest.raises(InputError, match="there is no fold 2"):
        medgen.datalist(out, fold=2)


def test_a_training_on_one_fold_leaves_the_other_folds_synthetic_cases_out(tmp_path: Path) -> None:
    sides = {c.case_id: c.split for c in read_cohort(written("nnunet", tmp_path), fold=1).cases}
    assert sides["fold2syn0"] == "train" and sides["fold1syn0"] == "test" and sides["pat_1"] == "val"


@pytest.mark.parametrize("kind", ["nnunet", "decathlon"])
def test_monai_reads_a_fold(kind: str, tmp_path: Path) -> None:
    from monai.auto3dseg.utils import datafold_read
    from monai.transforms import LoadImaged

    out = written(kind, tmp_path)
    for fold, (own, val) in enumerate((("fold1syn0", "pat_3"), ("fold2syn0", "pat_1"))):
        training, validation = datafold_read(str(out / f"datalist_fold{fold}.json"), str(out), fold=fold)
        names = [Path(row["label"]).name.removesuffix(".nii.gz") for row in training]
        assert [Path(row["label"]).name for row in validation] == [f"{val}.nii.gz"]
        assert own in names and val not in names and len(names) == 3
        loaded = LoadImaged(("image", "label"), ensure_channel_first=True)(training[0])
        assert loaded["image"].shape[0] == 2 and loaded["image"].shape[1:] == loaded["label"].shape[1:]


def test_who_knows_no_folds_sees_no_synthetic_case_of_one(tmp_path: Path) -> None:
    from monai.data import load_decathlon_datalist

    content = read_json(written("decathlon", tmp_path) / "dataset.json")
    assert [(e["label"], e["fold"]) for e in content["training"]] == [
        ("./labelsTr/pat_1.nii.gz", 1),
        ("./labelsTr/pat_2.nii.gz", -1),
        ("./labelsTr/pat_3.nii.gz", 0),
    ]
    assert [e["folds"] for e in content["training_of_one_fold"]] == [[0], [1]]
    assert len(load_decathlon_datalist(str(tmp_path / "dataset.json"), True, "training")) == 3
    assert "3 real cases and 2 synthetic" in content["description"]


@pytest.mark.parametrize(
    ("kind", "name"), [("bids", "pat_1"), ("nnunet", "other_1"), ("decathlon", "../pat_1"), ("nnunet", "pat_")]
)
def test_only_real_cases_keep_their_own_ids(kind: str, name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="letters and digits"):
        open_writer(kind, tmp_path, MIXED).write(sample(name))


@pytest.mark.parametrize("kind", ["nnunet", "decathlon", "bids"])
def test_medgens_own_reader_keeps_to_a_fold(kind: str, tmp_path: Path) -> None:
    """A model of all synthetic cases would have learnt, through them, from the patients that it is measured on."""
    out = tmp_path / "out"
    if kind == "bids":
        plain = ({"train": ("pat1", "fold1syn0"), "val": ("pat2",)}, {"train": ("pat2", "fold2syn0"), "val": ("pat1",)})
        info = replace(INFO, real=frozenset({"pat1", "pat2"}), splits=plain)
        writer = open_writer(kind, out, info)
        for i, name in enumerate(("pat1", "pat2", "fold1syn0", "fold2syn0")):
            writer.write(sample(name, i))
        writer.close()
    else:
        written(kind, out)
    for fold, (own, other) in enumerate((("fold1syn0", "fold2syn0"), ("fold2syn0", "fold1syn0"))):
        cohort = read_cohort(out, fold=fold)
        sides = {c.case_id.removeprefix("sub-"): c.split for c in cohort.cases}
        assert (sides[own], sides[other]) == ("train", "test") and "val" in sides.values()
    assert all(c.split for c in read_cohort(out).cases), "also where nothing is said"
