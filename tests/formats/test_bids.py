import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from cohort_builders import bids, image_at, label_at, text_at

from medgen.cohort.load import load_case
from medgen.errors import InputError
from medgen.formats.detect import read_cohort


def test_oasis(data_dir: Callable[[str], Path]) -> None:
    cohort = read_cohort(data_dir("oasis"))
    assert (cohort.format, len(cohort.cases), cohort.channels) == ("bids", 30, ("T1w",))
    assert cohort.label_names == {1: "CSF", 2: "GM", 3: "WM", 4: "Ventricles", 5: "Hippocampus"}
    assert cohort.schema.names == ("age", "sex")
    assert (cohort.schema["age"].minimum, cohort.schema["age"].maximum) == (18, 90)
    assert cohort.schema["age"].unit == "year" and cohort.schema["sex"].levels == ("F", "M")
    assert all(c.has_label and None not in c.covariates.values() for c in cohort.cases)
    loaded = load_case(cohort.cases[0], cohort.channels)
    assert loaded.label is not None and set(np.unique(loaded.label.data)) == {0, 1, 2, 3, 4, 5}
    assert np.array_equal(loaded.label.affine, loaded.images["T1w"].affine)


def test_ms(data_dir: Callable[[str], Path]) -> None:
    cohort = read_cohort(data_dir("ms"))
    assert (len(cohort.cases), cohort.channels, cohort.label_names) == (3, ("T1w", "T2w", "FLAIR"), {1: "lesion"})
    assert [c.covariates for c in cohort.cases] == [{"age": a, "sex": "F"} for a in (53, 47, 40)]
    only = read_cohort(data_dir("ms"), channels=("FLAIR",))
    loaded = load_case(only.cases[0], only.channels)
    assert loaded.label is not None and set(np.unique(loaded.label.data)) == {0, 1}
    assert tuple(loaded.images) == ("FLAIR",)


def test_sessions_runs_and_missing_channels(tmp_path: Path) -> None:
    root = bids(tmp_path / "d", ("01",))
    for name in ("ses-a_run-1_T1w", "ses-a_run-2_T1w", "ses-a_FLAIR", "ses-b_T1w"):
        image_at(root / f"sub-02/{name.split('_')[0]}/anat/sub-02_{name}.nii.gz")
    image_at(root / "sub-02/ses-a/func/sub-02_ses-a_task-rest_bold.nii.gz")
    label_at(root / "derivatives/x/sub-02/ses-b/anat/sub-02_ses-b_dseg.nii.gz")
    label_at(root / "derivatives/x/sub-02/ses-a/anat/sub-02_ses-a_run-2_dseg.nii.gz")
    cohort = read_cohort(root)
    assert {c.case_id: (tuple(c.images), c.has_label) for c in cohort.cases} == {
        "sub-01": (("T1w",), False),
        "sub-02_ses-a_run-1": (("T1w", "FLAIR"), False),
        "sub-02_ses-a_run-2": (("T1w", "FLAIR"), True),
        "sub-02_ses-b": (("T1w",), True),
    }
    assert {c.subject_id for c in cohort.cases} == {"sub-01", "sub-02"}


def test_one_image_in_two_files_is_refused(tmp_path: Path) -> None:
    root = bids(tmp_path, ("01",))
    image_at(root / "sub-01/anat/sub-01_T1w.nii")
    with pytest.raises(InputError, match=r"sub-01 has several images 'T1w', .*; keep one"):
        read_cohort(root)


def test_several_images_of_one_suffix_are_channels(tmp_path: Path) -> None:
    root = bids(tmp_path, ("01", "02"))
    image_at(root / "sub-01/anat/sub-01_ce-gd_T1w.nii.gz")
    image_at(root / "sub-02/anat/sub-02_acq-fast_FLAIR.nii.gz")
    cohort = read_cohort(root)
    assert cohort.channels == ("T1w", "FLAIR", "ce-gd_T1w")
    assert any("ce-gd_T1w" in note for note in cohort.notes)
    chosen = read_cohort(root, channels=("ce-gd_T1w",))
    assert [c.case_id for c in chosen.cases] == ["sub-01"]
    with pytest.raises(InputError, match="no image is a 'T2w'"):
        read_cohort(root, channels=("T2w",))


def test_participants_and_sessions_tables(tmp_path: Path) -> None:
    root = bids(tmp_path, ("01", "02"))
    shutil.rmtree(root / "sub-02")
    for ses in ("1", "2"):
        image_at(root / f"sub-03/ses-{ses}/anat/sub-03_ses-{ses}_T1w.nii.gz")
    image_at(root / "sub-04/anat/sub-04_T1w.nii.gz")
    text_at(
        root / "participants.tsv",
        b"\xef\xbb\xbfparticipant_id\tage\tgender\tsite\tremarks\r\nsub-01\t89+\tmale\tA\tfine\r\n"
        b"03\t40\t2\tB\tn/a\r\nsub-99\t30\tF\tA\tgone\r\n",
    )
    text_at(root / "sub-03/sub-03_sessions.tsv", "session_id\tage\tweight\nses-1\tn/a\t70\nses-2\t42.5\t71\n")
    text_at(root / "participants.json", {"weight": {"Units": "kg"}})
    cohort = read_cohort(root)
    rows = {c.case_id: c.covariates for c in cohort.cases}
    assert rows["sub-01"] == {"age": 89, "sex": "M", "site": "A", "weight": None}
    assert rows["sub-03_ses-1"] == {"age": 40, "sex": "F", "site": "B", "weight": 70}
    assert rows["sub-03_ses-2"] == {"age": 42.5, "sex": "F", "site": "B", "weight": 71}
    assert rows["sub-04"] == {"age": None, "sex": None, "site": None, "weight": None}
    assert cohort.schema["weight"].unit == "kg"
    said = " ".join(cohort.notes)
    assert "1 participants have no image" in said and "1 subjects with images have no row" in said
    assert "'remarks'" in said


def test_labels_of_several_kinds_are_merged_in_order(tmp_path: Path) -> None:
    root = bids(tmp_path, ("01",))
    folder = root / "derivatives/seg/sub-01/anat"
    label_at(folder / "sub-01_dseg.nii.gz", (0, 1, 2), 1)
    label_at(folder / "sub-01_label-lesion_mask.nii.gz", (0, 1), 2)
    label_at(folder / "sub-01_desc-brain_mask.nii.gz", (0, 1), 3)
    with pytest.raises(InputError, match=r"dseg\.tsv"):
        read_cohort(root)
    text_at(root / "derivatives/seg/dseg.tsv", "index\tname\n1\tGM\n2\tWM\n")
    cohort = read_cohort(root)
    case = cohort.cases[0]
    assert cohort.label_names == {1: "GM", 2: "WM", 3: "lesion"}
    assert case.mask is not None and case.mask.path.name == "sub-01_desc-brain_mask.nii.gz"
    loaded = load_case(case, cohort.channels)
    assert loaded.label is not None and loaded.mask is not None
    tissue = load_case(read_cohort(root, label_suffix="dseg").cases[0], ("T1w",)).label
    lesion = load_case(read_cohort(root, label_suffix="mask").cases[0], ("T1w",)).label
    assert tissue is not None and lesion is not None
    assert np.array_equal(loaded.label.data, np.where(lesion.data != 0, 3, tissue.data))
    assert set(np.unique(loaded.mask.data)) == {0, 1}


def test_a_choice_of_labels_is_asked_for(tmp_path: Path) -> None:
    root = bids(tmp_path, ("01",))
    label_at(root / "derivatives/a/sub-01/anat/sub-01_dseg.nii.gz", (0, 1))
    label_at(root / "derivatives/b/sub-01/anat/sub-01_desc-x_dseg.nii.gz", (0, 2))
    label_at(root / "derivatives/b/sub-01/anat/sub-01_desc-y_dseg.nii.gz", (0, 3))
    label_at(root / "derivatives/b/sub-01/anat/sub-01_space-MNI_desc-x_dseg.nii.gz", (0, 3))
    with pytest.raises(InputError, match="several folders hold labels \\(a, b\\)"):
        read_cohort(root)
    with pytest.raises(InputError, match="label_desc"):
        read_cohort(root, label_derivative="b")
    with pytest.raises(InputError, match="there are: a: dseg"):
        read_cohort(root, label_desc="z")
    one = read_cohort(root, label_desc="y").cases[0].label
    assert [f.source.path.name for f in one] == ["sub-01_desc-y_dseg.nii.gz"]
    both = read_cohort(root, label_derivative="b", label_desc=("y", "x")).cases[0].label
    assert [f.source.path.name for f in both] == ["sub-01_desc-y_dseg.nii.gz", "sub-01_desc-x_dseg.nii.gz"]
    assert read_cohort(root, label_entity={"desc": "y"}).cases[0].label == one
    assert any("match no image" in n for n in read_cohort(root, label_desc="x").notes)


def test_names_beside_the_label_win(tmp_path: Path) -> None:
    root = bids(tmp_path, ("01",))
    label_at(root / "derivatives/a/sub-01/anat/sub-01_dseg.nii.gz", (0, 1))
    text_at(root / "dseg.tsv", "index\tname\n1\tfar\n2\tother\n")
    text_at(root / "derivatives/a/sub-01/anat/sub-01_dseg.tsv", "index\tname\n1\tnear\n")
    assert read_cohort(root).label_names == {1: "near", 2: "other"}


def test_roi_named_by_desc_and_foreground_as_label_when_asked(tmp_path: Path) -> None:
    root = bids(tmp_path / "a", ("01",))
    label_at(root / "sub-01/anat/sub-01_desc-tumour_roi.nii.gz")
    cohort = read_cohort(root)
    assert cohort.label_names == {1: "tumour"} and cohort.cases[0].label[0].value == 1
    other = bids(tmp_path / "b", ("01",))
    label_at(other / "derivatives/m/sub-01/anat/sub-01_desc-brain_mask.nii.gz")
    assert not read_cohort(other).cases[0].has_label
    assert read_cohort(other, label_suffix="mask").label_names == {1: "brain"}


def test_sessions_that_tables_do_not_name_are_told(tmp_path: Path) -> None:
    """Spreadsheets take the zero from 01; what is said of sessions is then of none of them."""
    root = bids(tmp_path, ())
    for ses in ("01", "02"):
        image_at(root / f"sub-a/ses-{ses}/anat/sub-a_ses-{ses}_T1w.nii.gz")
        image_at(root / f"sub-b/ses-{ses}/anat/sub-b_ses-{ses}_T1w.nii.gz")
    rows = "sub-a\t1\t30\nsub-a\t2\t31\nsub-b\tn/a\t50\n"
    text_at(root / "participants.tsv", f"participant_id\tsession_id\tage\n{rows}")
    text_at(root / "sub-b/sub-b_sessions.tsv", "session_id\tweight\nses-1\t70\nses-02\t71\n")
    cohort = read_cohort(root)
    told = " ".join(cohort.notes)
    assert "2 sessions of subjects that it knows have no row there, for example ses-01 of sub-a" in told
    assert "sub-b_sessions.tsv: 1 sessions" in told
    assert [c.covariates["age"] for c in cohort.cases] == [None, None, 50, 50]
    assert [c.covariates["weight"] for c in cohort.cases] == [None, None, None, 71]
