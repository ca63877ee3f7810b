from collections.abc import Callable
from pathlib import Path

import numpy as np
from cohort_builders import decathlon, image_at, label_at, nnunet, text_at, volume

from medgen.cohort.load import load_case
from medgen.formats.detect import read_cohort
from medgen.volume import read_volume


def test_hippocampus(data_dir: Callable[[str], Path]) -> None:
    cohort = read_cohort(data_dir("hippocampus"))
    assert (cohort.format, len(cohort.cases), cohort.channels) == ("decathlon", 208, ("MRI",))
    assert cohort.label_names == {1: "Anterior", 2: "Posterior"}
    assert not cohort.schema.names and all(c.has_label for c in cohort.cases)
    for case in cohort.cases[:5]:
        loaded = load_case(case, cohort.channels)
        assert loaded.label is not None and set(np.unique(loaded.label.data)) == {0, 1, 2}


def test_decathlon_4d(tmp_path: Path) -> None:
    cohort = read_cohort(decathlon(tmp_path))
    assert (cohort.channels, cohort.label_names) == (("FLAIR", "T1w"), {1: "edema", 4: "core"})
    case = cohort.cases[0]
    assert (case.case_id, [s.component for s in case.images.values()]) == ("x", [0, 1])
    loaded = load_case(case, ("T1w", "FLAIR"))
    assert list(loaded.images) == ["T1w", "FLAIR"]
    assert np.array_equal(loaded.images["T1w"].data, volume(0, 2).data[1:])
    assert any("1 test images" in n for n in cohort.notes)
    with_test = read_cohort(tmp_path, include_test=True)
    assert {c.case_id: c.split for c in with_test.cases} == {"x": None, "y": None, "z": "test"}


def test_a_list_with_one_file_a_channel_and_no_label(tmp_path: Path) -> None:
    root = decathlon(tmp_path, training=[{"image": ["a/p_f.nii.gz", "a/p_t.nii.gz"]}])
    image_at(root / "a/p_f.nii.gz"), image_at(root / "a/p_t.nii.gz", 1)
    case = read_cohort(root).cases[0]
    assert not case.has_label and list(load_case(case, ("FLAIR", "T1w")).images) == ["FLAIR", "T1w"]


def test_decathlon_ids_of_four_digits_are_not_taken_for_channels(tmp_path: Path) -> None:
    text_at(tmp_path / "dataset.json", {"modality": {"0": "CT"}, "training": ["imagesTr/la_0007.nii.gz"]})
    image_at(tmp_path / "imagesTr/la_0007.nii.gz")
    assert read_cohort(tmp_path).format == "decathlon"


def test_nnunet(tmp_path: Path) -> None:
    root = nnunet(tmp_path)
    image_at(root / "imagesTr/c_0000.nii.gz")
    image_at(root / "imagesTs/t_0000.nii.gz")
    label_at(root / "labelsTr/nobody.nii.gz")
    text_at(root / "splits_final.json", [{"train": ["a_1"], "val": ["b_2"]}, {"train": ["b_2"], "val": ["a_1"]}])
    cohort = read_cohort(root)
    assert (cohort.format, cohort.channels, cohort.label_names) == ("nnunet", ("T1", "T2"), {1: "core", 2: "edema"})
    assert {c.case_id: (tuple(c.images), c.has_label, c.split) for c in cohort.cases} == {
        "a_1": (("T1", "T2"), True, "train"),
        "b_2": (("T1",), True, "val"),
        "c": (("T1",), False, None),
    }
    assert sum("nobody" in n or "imagesTs" in n for n in cohort.notes) == 2
    assert {c.case_id: c.split for c in read_cohort(root, fold=1, include_test=True).cases} == {
        "a_1": "val",
        "b_2": "train",
        "c": None,
        "t": "test",
    }


def test_nnunet_with_the_old_modality_key(tmp_path: Path) -> None:
    root = nnunet(tmp_path, channel_names=None, modality={"0": "T1", "1": "T2"}, labels={"0": "background", "1": "x"})
    cohort = read_cohort(root)
    assert (cohort.format, cohort.channels, cohort.label_names) == ("nnunet", ("T1", "T2"), {1: "x"})


def test_a_table_of_covariates_may_lie_beside(tmp_path: Path) -> None:
    root = nnunet(tmp_path)
    text_at(root / "covariates.tsv", "case_id\tsubject\tage\tsex\na_1\tp\t50\tF\nb_2\tp\t51\tn/a\n")
    cohort = read_cohort(root)
    assert [(c.subject_id, dict(c.covariates)) for c in cohort.cases] == [
        ("p", {"age": 50, "sex": "F"}),
        ("p", {"age": 51, "sex": None}),
    ]
    text_at(root / "covariates.tsv", "case_id\tsubject\nb_2\tn/a\na_1\tn/a\n")
    assert [c.subject_id for c in read_cohort(root).cases] == ["a_1", "b_2"], "who is not named is nobody's sibling"


def test_reading_the_label_of_nnunet_is_exact(tmp_path: Path) -> None:
    cohort = read_cohort(nnunet(tmp_path))
    loaded = load_case(cohort.cases[0], cohort.channels)
    assert loaded.label is not None
    assert np.array_equal(loaded.label.data, read_volume(tmp_path / "labelsTr/a_1.nii.gz", label=True).data)
