from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import typer
from typer.testing import CliRunner

import medgen
from medgen.cohort.phantom import write_phantom
from tests.recipes import load


@pytest.fixture(scope="module")
def recipe() -> ModuleType:
    return load("train_with_synthetic")


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("phantoms")
    write_phantom(folder, n=3, spacing_mm=8, workers=1)
    return folder


def invoke(recipe: ModuleType, *words: str | Path):
    app = typer.Typer()
    app.command()(recipe.train_with_synthetic)
    return CliRunner().invoke(app, [str(w) for w in words])


def test_training_on_both_ends_with_a_dice_for_every_label(recipe, phantoms):
    small = ("--steps", "2", "--batch", "1", "--patch", "16", "--spacing", "8", "--device", "cpu")
    result = invoke(recipe, phantoms, "--synthetic", phantoms, *small)
    assert result.exit_code == 0, result.output
    assert "2 real and 3 synthetic cases to train, 1 real cases to test" in result.output
    scores = {line.split()[0]: float(line.split()[-1]) for line in result.output.splitlines() if " Dice " in line}
    assert set(scores) == {"CSF", "GM", "WM", "Ventricles"} and all(0 <= s <= 1 for s in scores.values())


def test_real_and_synthetic_rows_of_other_columns_join_in_a_batch(recipe, tiny_run):
    real, made = (medgen.datalist(tiny_run / folder) for folder in ("cohort", "synthetic"))
    assert real[0].keys() != made[0].keys()
    small = ("--steps", "3", "--batch", "2", "--patch", "16", "--spacing", "8", "--device", "cpu")
    result = invoke(recipe, tiny_run / "cohort", "--synthetic", tiny_run / "synthetic", *small)
    assert result.exit_code == 0, result.output


def test_synthetic_cases_are_mixed_in_by_ratio_and_stratum(recipe, phantoms):
    small = ("--steps", "2", "--batch", "1", "--patch", "16", "--spacing", "8", "--device", "cpu")
    result = invoke(recipe, phantoms, "--synthetic", phantoms, *small, "--ratio", "2", "--by", "age:100")
    assert result.exit_code == 0 and "Dice" in result.output, result.output
    wrong = invoke(recipe, phantoms, "--synthetic", phantoms, *small, "--ratio", "much")
    assert wrong.exit_code == 2 and "balance" in wrong.output


def test_a_subject_is_never_on_both_sides(recipe, phantoms):
    rows = medgen.datalist(phantoms)
    twice = rows + [{**row, "case_id": f"{row['case_id']}_again"} for row in rows]
    train, test = recipe.split(twice, None, 0)
    assert len(train) + len(test) == 6 and train and test
    assert not {r["subject_id"] for r in train} & {r["subject_id"] for r in test}


def test_a_run_says_which_cases_are_tested_on(recipe, phantoms, monkeypatch):
    rows = medgen.datalist(phantoms)
    sides = [SimpleNamespace(case_id=r["case_id"], split="val" if i == 2 else "train") for i, r in enumerate(rows)]
    monkeypatch.setattr(recipe.Prepared, "open", lambda folder: SimpleNamespace(cases=sides))
    train, test = recipe.split(rows, Path("run"), 0)
    assert test == [rows[2]] and train == rows[:2] + rows[3:]


def test_cases_without_label_names_are_refused(recipe, phantoms, tmp_path):
    image = next(phantoms.glob("sub-*/anat/*_T1w.nii.gz"))
    (tmp_path / "cases.csv").write_text("image\nx.nii.gz\n")
    (tmp_path / "x.nii.gz").write_bytes(image.read_bytes())
    result = invoke(recipe, tmp_path / "cases.csv")
    assert result.exit_code == 2 and "names no labels" in result.output
