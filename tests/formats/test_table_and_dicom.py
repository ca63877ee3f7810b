from pathlib import Path

import numpy as np
import pytest
from cohort_builders import dicom_series, image_at, label_at, text_at

from medgen.cohort.case import Case, Source
from medgen.cohort.load import load_case, load_image
from medgen.errors import InputError
from medgen.formats.detect import read_cohort
from medgen.formats.dicom import _sequence

SECRET = "Zyxwv"


def test_table_of_channels_labels_and_covariates(tmp_path: Path) -> None:
    for name in ("i/a1.nii.gz", "i/a2.nii.gz", "i/b2.nii.gz"):
        image_at(tmp_path / name)
    for name in ("m.nii.gz", "n.nii.gz", "o.nii.gz"):
        label_at(tmp_path / name)
    text_at(
        tmp_path / "list.csv",
        "case;subject;T1_path;T2_path;label_7;label_cyst_path;label_core;mask;split;Age;weight\n"
        "k2;s;i/a1.nii.gz;i/a2.nii.gz;m.nii.gz;n.nii.gz;;o.nii.gz;training;40;71,5\n"
        "k1;s;;i/b2.nii.gz;;;;;test;n/a;\n",
    )
    cohort = read_cohort(tmp_path)
    assert (cohort.format, cohort.channels) == ("table", ("T1", "T2"))
    assert cohort.label_names == {7: "label_7", 8: "cyst", 9: "core"}
    k1, k2 = cohort.cases
    assert (k1.case_id, tuple(k1.images), k1.has_label, k1.split) == ("k1", ("T2",), False, "test")
    assert (k2.split, k2.subject_id, [f.value for f in k2.label]) == ("train", "s", [7, 8])
    assert k2.mask is not None
    assert dict(k2.covariates) == {"age": 40, "weight": 71.5} and set(k1.covariates.values()) == {None}
    loaded = load_case(k2, cohort.channels)
    assert loaded.label is not None and set(np.unique(loaded.label.data)) <= {0, 7, 8}


def test_table_with_one_image_column_and_a_root(tmp_path: Path) -> None:
    image_at(tmp_path / "d/x.nii.gz"), label_at(tmp_path / "d/y.nii.gz", (0, 3))
    text_at(tmp_path / "t/list.tsv", "image\tlabel\tsex\nx.nii.gz\ty.nii.gz\tF\n")
    text_at(tmp_path / "t/dseg.tsv", "index\tname\n3\tcore\n")
    cohort = read_cohort(tmp_path / "t/list.tsv", root=str(tmp_path / "d"))
    assert cohort.label_names == {3: "core"}
    assert [(c.case_id, c.subject_id, dict(c.covariates)) for c in cohort.cases] == [("x", "x", {"sex": "F"})]
    with pytest.raises(InputError, match="does not exist under"):
        read_cohort(tmp_path / "t/list.tsv")


@pytest.mark.parametrize("row", ['"5 mm lesion,40', '40,"5 mm lesion'])
def test_a_stray_quotation_mark_takes_no_row_with_it(tmp_path: Path, row: str) -> None:
    for name in "abc":
        image_at(tmp_path / f"{name}.nii.gz")
    text_at(tmp_path / "list.csv", f"image,x,y\na.nii.gz,{row}\nb.nii.gz,1,50\nc.nii.gz,2,60\n")
    assert [c.case_id for c in read_cohort(tmp_path / "list.csv").cases] == ["a", "b", "c"]


def test_repeated_file_names_get_numbers(tmp_path: Path) -> None:
    image_at(tmp_path / "p/t1.nii.gz"), image_at(tmp_path / "q/t1.nii.gz")
    text_at(tmp_path / "list.csv", "path\np/t1.nii.gz\nq/t1.nii.gz\n")
    assert [c.case_id for c in read_cohort(tmp_path / "list.csv").cases] == ["case0001", "case0002"]


def test_dicom_cohort_keeps_age_and_sex_and_nothing_else(tmp_path: Path) -> None:
    private = {
        "PatientName": f"{SECRET}^Anna",
        "PatientID": f"{SECRET}7",
        "PatientBirthDate": "19500102",
        "StudyDescription": SECRET,
        "InstitutionName": SECRET,
    }
    root = tmp_path / "export"
    data = dicom_series(root / "a", study="1.2.9", series="1.2.9.1", PatientAge="071Y", PatientSex="F", **private)
    dicom_series(root / "b", study="1.2.8", series="1.2.8.1", PatientAge="018M", PatientSex="M", PatientID="other")
    dicom_series(root / "b", study="1.2.8", series="1.2.8.2", prefix="scout", z_mm=(0, 2), PatientID="other")
    dicom_series(root / "c", study="1.2.7", series="1.2.7.1", PatientID=f"{SECRET}7")
    cohort = read_cohort(root)
    assert (cohort.format, cohort.name, cohort.channels) == ("dicom", "dicom", ("CT",))
    assert [(c.case_id, c.subject_id, dict(c.covariates)) for c in cohort.cases] == [
        ("case0001", "subject0001", {"age": None, "sex": None}),
        ("case0002", "subject0002", {"age": 1.5, "sex": "M"}),
        ("case0003", "subject0001", {"age": 71, "sex": "F"}),
    ]
    assert SECRET not in repr(cohort) and "1950" not in repr(cohort)
    assert any("fewer than 5 slices" in n for n in cohort.notes)
    volume = load_image(cohort.cases[2].images["CT"])
    assert volume.orientation == "LPS"
    assert np.array_equal(volume.data[0], data)
    expected = np.array([[-0.5, 0, 0, -10], [0, -1.5, 0, 20], [0, 0, 2, 0], [0, 0, 0, 1]])
    assert np.allclose(volume.affine, expected, atol=1e-9)


def test_dicom_channels(tmp_path: Path) -> None:
    for i in (1, 2):
        base = {"study": f"1.{i}", "PatientID": f"p{i}", "Modality": "MR"}
        flat = tmp_path / f"p{i}"
        described = ("T1 MPRAGE sag", "t2_tse", "T2 FLAIR", "post gado t1", "Magic phantom", f"Mr {SECRET}{i}")
        for k, description in enumerate(described, start=1):
            tags = {"SeriesDescription": description, "SeriesNumber": k}
            dicom_series(flat, series=f"1.{i}.{k}", prefix=f"s{k}_", **base, **tags)
    cohort = read_cohort(tmp_path)
    assert cohort.channels == ("FLAIR", "MR_6", "Magic_phantom", "T1w", "T1w_ce", "T2w")
    assert SECRET not in repr(cohort)
    case = read_cohort(tmp_path, channels=("T2w", "T1w")).cases[0]
    assert list(load_case(case, ("T2w", "T1w")).images) == ["T2w", "T1w"]
    with pytest.raises(InputError, match="no channel 'PET'"):
        read_cohort(tmp_path, channels=("PET",))


@pytest.mark.parametrize(
    ("z_mm", "tags", "said"),
    [
        ((0, 2, 4, 8, 10, 12), {}, "slices are missing"),
        ((0, 2, 4, 6.4, 8, 10), {}, "unevenly spaced"),
        ((0, 2, 4, 4, 6, 8), {}, "at one position"),
        ((0, 2, 4, 6, 8), {"ImageOrientationPatient": [1, 0, 0, 0, 0.96, 0.28]}, "gantry tilt"),
        ((0, 2, 4, 6, 8), {"ImagePositionPatient": None}, "lacks position"),
    ],
)
def test_dicom_series_that_are_no_even_stack(tmp_path: Path, z_mm: tuple, tags: dict, said: str) -> None:
    dicom_series(tmp_path, z_mm=z_mm, **tags)
    with pytest.raises(InputError, match=said):
        load_image(Source(tmp_path))


def test_dicom_faults(tmp_path: Path) -> None:
    dicom_series(tmp_path / "a/x", z_mm=(0, 2, 4, 6, 8))
    dicom_series(tmp_path / "a/y", z_mm=(10, 12, 14, 16, 18))
    with pytest.raises(InputError, match="one DICOM series"):
        read_cohort(tmp_path / "a")
    with pytest.raises(InputError, match="no DICOM series"):
        load_image(Source(tmp_path))
    dicom_series(tmp_path / "b", z_mm=(0, 2))
    with pytest.raises(InputError, match="at least 5 slices"):
        read_cohort(tmp_path / "b")
    dicom_series(tmp_path / "c", PatientAge="old")
    with pytest.raises(InputError, match="not an age"):
        read_cohort(tmp_path / "c")
    half = next((tmp_path / "a/x").glob("*.dcm"))
    half.write_bytes(half.read_bytes()[:-40])
    for read in (read_cohort, lambda p: load_case(Case("k", "k", {"CT": Source(p)}), ("CT",))):
        with pytest.raises(InputError, match=f"{half.name} is a DICOM file that cannot be read"):
            read(tmp_path / "a/x")


def test_labels_and_masks_are_known_with_path_in_their_names(tmp_path: Path) -> None:
    image_at(tmp_path / "i.nii.gz"), label_at(tmp_path / "l.nii.gz"), label_at(tmp_path / "m.nii.gz")
    text_at(tmp_path / "list.csv", "t1w_path,segmentation_path,brain_mask_path\ni.nii.gz,l.nii.gz,m.nii.gz\n")
    case = read_cohort(tmp_path).cases[0]
    assert (list(case.images), case.has_label, case.mask is not None) == (["t1w"], True, True)
    text_at(tmp_path / "list.csv", "t1w_path,lesion_mask_path\ni.nii.gz,l.nii.gz\n")
    with pytest.raises(InputError, match="is 'lesion_mask_path' a label map or an image"):
        read_cohort(tmp_path)


@pytest.mark.parametrize(
    ("description", "channel"),
    [
        ("T1 MPRAGE sag", "T1w"),
        ("T2* GRE", "T2starw"),
        ("t2_star", "T2starw"),
        ("t2_fl2d_tra_hemo", "T2starw"),
        ("t2_tse", "T2w"),
        ("T1 map MOLLI", "T1map"),
        ("Ax T2 posterior fossa", "T2w"),
        ("T1 postop", "T1w"),
        ("T1 post", "T1w_ce"),
        ("t1_mprage +C", "T1w_ce"),
    ],
)
def test_series_that_only_sound_alike_are_told_apart(description: str, channel: str) -> None:
    assert _sequence(description) == channel
