"""The recipes beside `medgen utility`."""

import json
import shutil
from types import ModuleType, SimpleNamespace

import pytest
import typer
from typer.testing import CliRunner

from tests.recipes import load


@pytest.fixture(scope="module")
def recipe() -> ModuleType:
    return load("nnunet_utility")


def invoke(recipe, *words):
    app = typer.Typer()
    app.command()(recipe.nnunet_utility)
    return CliRunner().invoke(app, [str(word) for word in words])


def test_a_dry_run_prints_the_commands(recipe, tmp_path, monkeypatch):
    for name in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / name))
    words = (tmp_path, "--size", "5", "--dataset", "702", "--trainer", "nnUNetTrainer_100epochs", "--dry-run")
    said = invoke(recipe, *words)
    assert said.exit_code == 0, said.output
    lines = [line for line in said.output.splitlines() if not line.startswith("#")]
    assert lines == [
        "nnUNetv2_plan_and_preprocess -d 702 -c 3d_fullres --verify_dataset_integrity",
        "nnUNetv2_train 702 3d_fullres 0 -tr nnUNetTrainer_100epochs",
        "nnUNetv2_train 702 3d_fullres 1 -tr nnUNetTrainer_100epochs",
    ]
    # nnU-Net copies the splits before it preprocesses: that they are there says nothing.
    ready = tmp_path / "preprocessed" / "Dataset702_utility5"
    ready.mkdir(parents=True)
    (ready / "splits_final.json").write_text("[]")
    assert "nnUNetv2_plan_and_preprocess" in invoke(recipe, *words).output
    (ready / f"{recipe.DONE}_3d_fullres").touch()
    assert "nnUNetv2_plan_and_preprocess" not in invoke(recipe, *words).output
    # What is finished is left out, and what was stopped goes on.
    folds = [
        recipe.fold_of(tmp_path / "results", "Dataset702_utility5", "3d_fullres", "nnUNetTrainer_100epochs", k)
        for k in (0, 1)
    ]
    (folds[0] / "validation").mkdir(parents=True)
    (folds[0] / "validation" / "summary.json").write_text("{}")
    folds[1].mkdir()
    (folds[1] / "checkpoint_latest.pth").write_bytes(b"")
    again = [line for line in invoke(recipe, *words).output.splitlines() if line.startswith("nnUNetv2_train")]
    assert again == ["nnUNetv2_train 702 3d_fullres 1 -tr nnUNetTrainer_100epochs --c"]
    slow = [line for line in invoke(recipe, *words, "--device", "cpu").output.splitlines() if "_train" in line]
    assert slow == ["nnUNetv2_train 702 3d_fullres 1 -tr nnUNetTrainer_100epochs -device cpu --c"]
    assert not (tmp_path / "raw").exists()


def test_without_nnunet_it_is_one_sentence(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    for name in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / name))
    said = invoke(recipe, tmp_path)
    assert said.exit_code == 2 and "not installed" in said.output
    monkeypatch.delenv("nnUNet_raw")
    assert "set nnUNet_raw" in invoke(recipe, tmp_path).output


def test_the_folds_are_there_before_a_training_reads_them(recipe, tmp_path, monkeypatch):
    for name in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / name))
    monkeypatch.setattr(shutil, "which", lambda name: name)
    monkeypatch.setattr(recipe, "combine_size", lambda *_: SimpleNamespace(real=1, synthetic=3))
    raw, ready = (tmp_path / part / "Dataset701_utility5" for part in ("raw", "preprocessed"))
    raw.mkdir(parents=True)
    ready.mkdir(parents=True)
    splits = [{"train": ["a"], "val": []}, {"train": ["a", "x", "y", "z"], "val": []}]
    (raw / "splits_final.json").write_text(json.dumps(splits))
    (ready / f"{recipe.DONE}_3d_fullres").touch()
    seen = []

    def run(words, check):
        seen.append(json.loads((ready / "splits_final.json").read_text()))
        return SimpleNamespace(returncode=1)

    monkeypatch.setattr(recipe.subprocess, "run", run)
    assert invoke(recipe, tmp_path).exit_code == 1
    assert seen == [recipe.balanced(splits, 0.5)]


def test_few_real_cases_are_seen_as_often_as_many_synthetic_ones(recipe):
    real, synthetic = [f"r{i}" for i in range(5)], [f"syn{i:06d}" for i in range(199)]
    splits = [{"train": real, "val": ["v"]}, {"train": [*real, *synthetic], "val": ["v"]}]
    first, second = recipe.balanced(splits, 0.5)
    assert first == splits[0] and second["val"] == ["v"] and set(second["train"]) == {*real, *synthetic}
    seen = {name: second["train"].count(name) for name in second["train"]}
    assert {seen[name] for name in real} == {40} and {seen[name] for name in synthetic} == {1}
    quarter = recipe.balanced(splits, 0.25)[1]["train"]
    assert sum(name in real for name in quarter) / len(quarter) == pytest.approx(0.75, abs=0.01)
    few = recipe.balanced([{"train": real, "val": []}, {"train": [*real, "syn000000"], "val": []}], 0.5)[1]["train"]
    assert sorted(few) == [*real, "syn000000"]


def test_a_command_that_fails_is_one_sentence(recipe, tmp_path, monkeypatch):
    for name in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / name))
    monkeypatch.setattr(shutil, "which", lambda name: name)
    monkeypatch.setattr(recipe, "combine_size", lambda *_: SimpleNamespace(real=3, synthetic=2))
    monkeypatch.setattr(recipe.subprocess, "run", lambda words, check: SimpleNamespace(returncode=1))
    raw = tmp_path / "raw" / "Dataset701_utility5"
    raw.mkdir(parents=True)
    (raw / "splits_final.json").write_text(json.dumps([{"train": ["a"], "val": []}, {"train": ["a", "b"], "val": []}]))
    said = invoke(recipe, tmp_path)
    assert said.exit_code == 1 and "nnUNetv2_plan_and_preprocess -d 701" in said.output and "failed" in said.output
    assert "Traceback" not in said.output and not (tmp_path / "preprocessed").exists()
    # What was trained on one share is not compared as another.
    recipe.fold_of(tmp_path / "results", raw.name, "3d_fullres", "nnUNetTrainer", 1).mkdir(parents=True)
    (tmp_path / "preprocessed" / raw.name).mkdir(parents=True)
    (tmp_path / "preprocessed" / raw.name / "splits_final.json").write_text("[]")
    again = invoke(recipe, tmp_path)
    assert again.exit_code == 2 and "remove" in again.output


def test_arms_are_compared_case_by_case(recipe, tmp_path):
    folders = [tmp_path / "fold_0", tmp_path / "fold_1"]
    for folder, gain in zip(folders, (0.0, 0.03), strict=True):
        (folder / "validation").mkdir(parents=True)
        cases = [
            {"reference_file": f"/gt/c{i}.nii.gz", "metrics": {str(k): {"Dice": 0.5 + i / 50 + gain} for k in (1, 2)}}
            for i in range(6)
        ]
        (folder / "validation" / "summary.json").write_text(json.dumps({"metric_per_case": cases}))
    people = {f"c{i}": f"s{i // 2}" for i in range(6)}
    said = recipe.compare(folders, people)
    assert said.startswith("6 held-out cases of 3 subjects") and "difference +0.0300 [+0.0300, +0.0300]" in said


def test_the_recipe_over_the_python_api_names_what_is_there():
    from medgen import pipeline

    assert load("utility").pipeline.run_utility is pipeline.run_utility
