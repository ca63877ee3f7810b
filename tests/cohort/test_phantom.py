"""The phantom cohort: what was drawn is what the voxels hold, and the files are the same however they were made."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from medgen.cohort.phantom import make_phantom, participant, write_phantom
from medgen.cohort.phantom_causal import AGE_RANGE_YEARS, HEAD_SCALE, STREAM_ANATOMY, draw_subject, stream
from medgen.cohort.phantom_shape import CSF, GM, VENTRICLES, WM, exponential, pull_map, random_velocity
from medgen.cohort.phantom_template import Grid, Template, load_template
from medgen.errors import InputError
from medgen.measure.image import mean_pairwise_ssim
from medgen.volume import read_volume

SEED = 3
COUNT = 10


@pytest.fixture(scope="module")
def template() -> Template:
    return load_template(4.0)


@pytest.fixture(scope="module")
def phantoms(template: Template) -> list[tuple[np.ndarray, np.ndarray]]:
    return [make_phantom(template, draw_subject(SEED, i), SEED, i) for i in range(COUNT)]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("phantom") / "cohort"
    write_phantom(out, n=3, spacing_mm=6.0, seed=SEED, workers=1)
    return out


def _ml(template: Template, label: np.ndarray, value: int) -> float:
    return float((label == value).sum() * template.target.voxel_ml)


# --- causes --------------------------------------------------------------------------------------------------------


def test_causes_follow_the_model_that_is_written_down() -> None:
    subjects = [draw_subject(0, i) for i in range(2000)]
    age = np.array([s.age_years for s in subjects])
    male = np.array([s.sex == "M" for s in subjects])
    scale = np.array([s.head_scale for s in subjects])
    ventricles = np.array([s.ventricles_ml for s in subjects])
    csf = np.array([s.csf_share for s in subjects])
    assert age.min() >= AGE_RANGE_YEARS[0] and age.max() <= AGE_RANGE_YEARS[1]
    assert abs(age.mean() - 55) < 2 and 0.45 < male.mean() < 0.55
    assert scale[male].mean() / scale[~male].mean() == pytest.approx(HEAD_SCALE["M"] / HEAD_SCALE["F"], abs=0.005)
    assert 0.6 < np.corrcoef(age, np.log(ventricles))[0, 1] < 0.9
    assert np.percentile(ventricles, 5) < 16 and np.percentile(ventricles, 95) > 50
    assert ventricles.min() > 6 and ventricles.max() < 110
    assert np.corrcoef(age, csf)[0, 1] > 0.9 and csf.min() > 0.05 and csf.max() < 0.3


def test_a_subject_depends_on_seed_and_index_alone() -> None:
    assert draw_subject(1, 5) == draw_subject(1, 5)
    assert len({draw_subject(s, i) for s in range(5) for i in range(20)}) == 100


# --- shape ---------------------------------------------------------------------------------------------------------


def test_exponential_of_a_constant_and_of_a_rotation() -> None:
    grid = Grid((21, 21, 21), (-50.0, -50.0, -50.0), 5.0)
    constant = np.broadcast_to(np.array([2.0, -1.0, 0.5]).reshape(3, 1, 1, 1), (3, *grid.shape))
    np.testing.assert_allclose(exponential(constant, grid), constant, atol=1e-4)
    x, y, z = grid.points()
    angle = 0.2
    turned = exponential(np.stack([-angle * y, angle * x, 0 * z]), grid)
    expected = np.stack([np.cos(angle) * x - np.sin(angle) * y, np.sin(angle) * x + np.cos(angle) * y, z])
    inner = np.hypot(x, y) < 35
    np.testing.assert_allclose((grid.points() + turned)[:, inner], expected[:, inner], atol=0.02)


def test_random_velocity_has_the_amplitude_it_states(template: Template) -> None:
    v = np.stack([random_velocity(np.random.default_rng(i), template.coarse) for i in range(20)])
    assert np.hypot(3.6, 1.9) == pytest.approx(v.std(), rel=0.15)


@pytest.mark.parametrize("index", range(6))
def test_the_warp_folds_nowhere(index: int, template: Template) -> None:
    subject = draw_subject(SEED, index)
    points = pull_map(template, subject, stream(SEED, index, STREAM_ANATOMY))
    spacing = template.target.spacing_mm
    jacobian = np.stack([np.stack(np.gradient(p, spacing)) for p in points]).transpose(2, 3, 4, 0, 1)
    determinant = np.linalg.det(jacobian)
    assert determinant.min() > 0.02
    # On average a head of scale s is pulled from the template by 1 / s along each axis.
    assert np.median(determinant) == pytest.approx(subject.head_scale**-3, rel=0.25)


def test_ventricles_hold_what_the_causal_model_asked_for(
    template: Template, phantoms: list[tuple[np.ndarray, np.ndarray]]
) -> None:
    wanted = np.array([draw_subject(SEED, i).ventricles_ml for i in range(COUNT)])
    measured = np.array([_ml(template, label, VENTRICLES) for label, _ in phantoms])
    assert wanted.max() / wanted.min() > 2
    np.testing.assert_allclose(measured, wanted, rtol=0.02)


def test_grey_matter_falls_with_age_and_the_head_grows_with_its_scale(
    template: Template, phantoms: list[tuple[np.ndarray, np.ndarray]]
) -> None:
    subjects = [draw_subject(SEED, i) for i in range(COUNT)]
    volumes = np.array([[_ml(template, label, v) for v in (CSF, GM, WM, VENTRICLES)] for label, _ in phantoms])
    head = volumes.sum(axis=1)
    age = np.array([s.age_years for s in subjects])
    slope = np.polyfit(age, volumes[:, 1] / head, 1)[0]
    assert -0.004 < slope < -0.001
    assert np.corrcoef(age, volumes[:, 1] / head)[0, 1] < -0.7
    assert np.corrcoef([s.head_scale for s in subjects], np.cbrt(head))[0, 1] > 0.4
    assert (head > 900).all() and (head < 2000).all()


# --- image ---------------------------------------------------------------------------------------------------------


def test_images_have_t1_contrast_and_an_empty_background(phantoms: list[tuple[np.ndarray, np.ndarray]]) -> None:
    for label, image in phantoms:
        assert label.dtype == np.uint8 and image.dtype == np.int16
        np.testing.assert_array_equal(image > 0, label > 0)
        means = [image[label == v].mean() for v in (VENTRICLES, CSF, GM, WM)]
        assert means[0] < 0.8 * means[2] and means[1] < 0.85 * means[2] and means[2] < 0.9 * means[3]
        for axis in range(3):  # a margin all around
            assert not np.take(label, [0, -1], axis).any()


def test_phantoms_are_diverse(phantoms: list[tuple[np.ndarray, np.ndarray]]) -> None:
    images = [image[None].astype(np.float32) / np.percentile(image, 99.5) for _, image in phantoms]
    assert mean_pairwise_ssim([np.clip(i, 0, 1) * 2 - 1 for i in images], pairs=15) < 0.85


# --- files ---------------------------------------------------------------------------------------------------------


def test_the_dataset_is_bids_with_labels_beside(dataset: Path) -> None:
    table = pd.read_csv(dataset / "participants.tsv", sep="\t")
    assert list(table.columns) == ["participant_id", "age", "sex"]
    assert list(table.participant_id) == ["sub-001", "sub-002", "sub-003"]
    columns = json.loads((dataset / "participants.json").read_text())
    assert columns["age"]["Units"] == "year" and set(columns["sex"]["Levels"]) == {"F", "M"}
    assert json.loads((dataset / "dataset_description.json").read_text())["DatasetType"] == "raw"
    labels = dataset / "derivatives" / "labels"
    assert json.loads((labels / "dataset_description.json").read_text())["DatasetType"] == "derivative"
    names = pd.read_csv(labels / "dseg.tsv", sep="\t")
    assert dict(zip(names["index"], names["name"], strict=True)) == {1: "CSF", 2: "GM", 3: "WM", 4: "Ventricles"}
    for name in table.participant_id:
        image = read_volume(dataset / name / "anat" / f"{name}_T1w.nii.gz")
        label = read_volume(labels / name / "anat" / f"{name}_dseg.nii.gz", label=True)
        np.testing.assert_array_equal(image.affine, label.affine)
        assert image.orientation == "RAS" and image.spacing_mm == (6.0, 6.0, 6.0)
        assert set(np.unique(label.data)) == {0, 1, 2, 3, 4}
        assert (dataset / name / "anat" / f"{name}_T1w.json").exists()


def test_cases_do_not_depend_on_n_or_on_processes(dataset: Path, tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    write_phantom(
        tmp_path / "other", n=2, spacing_mm=6.0, seed=SEED, workers=2, on_progress=lambda a, b: calls.append((a, b))
    )
    assert calls == [(0, 2), (1, 2), (2, 2)]
    for name in ("sub-001", "sub-002"):
        for file in (f"{name}/anat/{name}_T1w.nii.gz", f"derivatives/labels/{name}/anat/{name}_dseg.nii.gz"):
            assert (tmp_path / "other" / file).read_bytes() == (dataset / file).read_bytes()


def test_a_second_run_completes_what_is_missing_and_rewrites_nothing(dataset: Path, tmp_path: Path) -> None:
    out = tmp_path / "cohort"
    shutil.copytree(dataset, out)
    (out / "sub-002/anat/sub-002_T1w.json").unlink()  # killed before the commit
    (out / "sub-002/anat/sub-002_T1w.nii.gz").write_bytes(b"half")
    (out / "sub-002/anat/.partial-1-sub-002_T1w.nii.gz").write_bytes(b"half")
    before = {p: p.stat().st_mtime_ns for p in out.rglob("sub-00[13]*.nii.gz")}
    write_phantom(out, n=3, spacing_mm=6.0, seed=SEED, workers=1)
    assert {p: p.stat().st_mtime_ns for p in before} == before
    files = {p.relative_to(out): p.read_bytes() for p in out.rglob("*") if p.is_file()}
    assert files == {p.relative_to(dataset): p.read_bytes() for p in dataset.rglob("*") if p.is_file()}


def test_missing_blanks_about_that_share_of_cells(dataset: Path, tmp_path: Path) -> None:
    out = tmp_path / "cohort"
    # Only the tables matter here: committed cases are not drawn again.
    for i in range(200):
        sidecar = out / participant(i) / "anat" / f"{participant(i)}_T1w.json"
        sidecar.parent.mkdir(parents=True)
        sidecar.write_text("{}")
    description = json.loads((dataset / "dataset_description.json").read_text())
    description["Phantom"] = {"spacing_mm": 6.0, "seed": SEED, "missing": 0.25}
    (out / "dataset_description.json").write_text(json.dumps(description))
    write_phantom(out, n=200, spacing_mm=6.0, seed=SEED, missing=0.25)
    table = pd.read_csv(out / "participants.tsv", sep="\t", keep_default_na=False)
    blank = (table[["age", "sex"]] == "n/a").to_numpy()
    assert 0.18 < blank.mean() < 0.32
    assert len(table) == 200 and not pd.read_csv(out / "derivatives/truth/truth.tsv", sep="\t").isna().any().any()


@pytest.mark.parametrize(
    "change,says",
    [
        ({"n": 0}, "at least one"),
        ({"spacing_mm": 0.1}, "1 to 8 mm"),
        ({"spacing_mm": float("nan")}, "1 to 8 mm"),
        ({"missing": 1.0}, "below 1"),
        ({"seed": -1}, "seed"),
        ({"seed": SEED + 1}, "other settings"),
        ({"spacing_mm": 5.0}, "other settings"),
        ({"n": 2}, "more than 2"),
    ],
)
def test_what_cannot_be_written_is_refused_in_one_sentence(change: dict[str, float], says: str, dataset: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in dataset.rglob("*")}
    with pytest.raises(InputError, match=says):
        write_phantom(dataset, **{"n": 3, "spacing_mm": 6.0, "seed": SEED, "workers": 1, **change})
    assert {p: p.stat().st_mtime_ns for p in dataset.rglob("*")} == before


def test_a_folder_with_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="not empty"):
        write_phantom(tmp_path, n=1)
    with pytest.raises(InputError, match="is a file"):
        write_phantom(tmp_path / "thesis.txt", n=1)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]
