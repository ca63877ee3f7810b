"""Every kind of condition, end to end: from the cohort's table to samples that say what they were asked to be."""

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from medgen import Generator, config, pipeline
from medgen.cli import app
from medgen.cohort.phantom import write_phantom
from medgen.errors import ExtrapolationWarning, InputError
from medgen.files import read_json
from medgen.prepare.grid import GeometryRecord
from medgen.stages.check import check
from medgen.stages.conditions import check_requests, conditions
from medgen.stages.run import Run
from medgen.store.prepared import Prepared
from tests.text_encoder import write_tiny_encoder
from tests.tiny import TINY

pytest.importorskip("transformers")
SECRET = "young brain , small ventricles"  # a patient's report, word for word
STAGES = ["mild", "moderate", "severe"]


def write_cohort(root: Path) -> Path:
    """Eight phantoms with a report, a stage and an hour, three of them cut into thicker slices."""
    write_phantom(root, n=8, spacing_mm=8, seed=3, workers=1)
    table = root / "participants.tsv"
    lines = [line.split("\t") for line in table.read_text().splitlines()]
    head = [*lines[0], "report", "stage", "hour"]
    reports = [SECRET, "old brain , large ventricles", "normal brain", "n/a"]
    rows = [[*line, reports[i % 4], STAGES[i % 3], str((20 + i) % 24)] for i, line in enumerate(lines[1:])]
    table.write_text("\n".join("\t".join(row) for row in [head, *rows]) + "\n")
    for row in rows[:3]:
        for path in root.rglob(f"{row[0]}*.nii.gz"):
            image = nib.load(path)
            thick = nib.Nifti1Image(np.asanyarray(image.dataobj)[:, :, ::2], image.affine @ np.diag([1, 1, 2, 1]))
            thick.set_data_dtype(image.get_data_dtype())
            nib.save(thick, path)
    return root


def experiment(folder: Path, **covariates) -> config.Config:
    schema = {
        "age": {"kind": "continuous", "unit": "year"},
        "stage": {"kind": "ordinal", "levels": STAGES},
        "hour": {"kind": "periodic", "period": 24},
        "report": {"kind": "text"},
    }
    (folder / "columns.yaml").write_text(yaml.safe_dump({"covariates": schema}))
    raw = {
        **TINY,
        "data": {"root": str(folder / "cohort"), "validation": 0.25},
        "covariates": {
            "schema_file": str(folder / "columns.yaml"),
            "use": ["age", "stage", "hour", "report", "ventricles_ml"],
            "spacing": True,
            "text_encoder": str(folder / "encoder"),
            "text_tokens": 12,
            **covariates,
        },
        "generate": {**TINY["generate"], "n": 2, "where": 'report="large ventricles"'},
    }
    return config.build(raw, "the experiment")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("conditions")
    write_cohort(folder / "cohort")
    write_tiny_encoder(folder / "encoder")
    pipeline.run_experiment(experiment(folder), folder=folder / "run", until="synthetic")
    return folder


def sidecars(out: Path) -> list[dict]:
    return [read for p in sorted(out.rglob("*.json")) if "geometry_record" in (read := read_json(p))]


def test_samples_of_a_text_say_so_and_leave_the_rest_open(folder):
    made = sidecars(folder / "run" / "synthetic")
    assert len(made) == 2
    for sidecar in made:
        assert sidecar["request"] == {"report": "large ventricles"}
        assert sidecar["drawn"]["age"] is None and sidecar["drawn"]["ventricles_ml"] is None
        assert sidecar["drawn"]["spacing_z_mm"] in (8.0, 16.0) and sidecar["extrapolated"] == []
    with (folder / "run" / "synthetic" / "participants.tsv").open() as f:
        rows = list(csv.DictReader(f, delimiter="\t"))
    assert {row["report"] for row in rows} == {"large ventricles"} and {row["age"] for row in rows} == {"n/a"}


def test_no_patients_text_leaves_the_run(folder):
    kept = [p for part in ("model", "synthetic", "texts") for p in (folder / "run" / part).rglob("*") if p.is_file()]
    assert len(kept) > 8
    for path in kept:
        assert SECRET.encode() not in path.read_bytes(), path
    generator = Generator.load(folder / "run" / "model", device="cpu")
    assert generator.sample().sidecar["drawn"]["report"] is None
    spec = read_json(folder / "run" / "model" / "model.json")
    assert spec["encoder"]["text"]["folder"] == "encoder", "no path of this machine is in a model"
    assert str(folder) not in (folder / "run" / "model" / "model.json").read_text()
    assert spec["encoder"]["text"]["tokens"] == 12 and len(spec["encoder"]["text"]["files"]["config.json"]) == 64


def test_python_asks_for_every_kind(folder):
    generator = Generator.load(folder / "run" / "model", device="cpu")
    names = ("age", "stage", "hour", "report", "ventricles_ml", "spacing_z_mm")
    assert generator.schema.names == names
    one, other = (generator.sample(report=text, seed=4) for text in ("large ventricles", "small ventricles"))
    assert not np.array_equal(one.images["T1w"].data, other.images["T1w"].data)
    again = generator.sample(report="  large   ventricles ", seed=4)
    assert np.array_equal(one.images["T1w"].data, again.images["T1w"].data)
    night = generator.sample(hour=(22, 2), stage=["mild", "severe"], seed=1).sidecar["request"]
    assert (night["hour"] >= 22 or night["hour"] <= 2) and night["stage"] in ("mild", "severe")
    stages = [generator.sample(stage=s, age=50, hour=1, ventricles_ml=30, seed=4).images["T1w"].data for s in STAGES]
    assert not np.array_equal(stages[0], stages[1]) and not np.array_equal(stages[1], stages[2])
    with pytest.raises(InputError, match="'report' has no words"):
        generator.sample(report=" ")
    with pytest.raises(InputError, match="did you mean 'report'"):
        generator.sample(reprot="old")


def test_a_spacing_is_the_grids_own_or_the_one_asked_for(folder):
    generator = Generator.load(folder / "run" / "model", device="cpu")
    for seed in range(2):
        sample = generator.sample(seed=seed)
        spacing = sample.images["T1w"].spacing_mm[2]
        assert sample.sidecar["drawn"]["spacing_z_mm"] == pytest.approx(spacing, abs=1e-3)
        assert generator.sample(spacing_z_mm=15.9, seed=seed).images["T1w"].spacing_mm[2] == pytest.approx(16)
        assert generator.sample(spacing_z_mm=8, seed=seed).images["T1w"].spacing_mm[2] == pytest.approx(8)


def test_extrapolation_is_refused_then_flagged(folder):
    generator = Generator.load(folder / "run" / "model", device="cpu")
    with pytest.raises(InputError, match="add --force to extrapolate"):
        generator.sample(age=140)
    with pytest.warns(ExtrapolationWarning, match="age lies outside"):
        beyond = generator.sample(age=140, force=True).sidecar
    assert beyond["extrapolated"] == ["age"] and beyond["plausibility"] < 0.1


def test_command_line_takes_texts_and_the_encoders_new_place(folder, tmp_path):
    model, moved = folder / "run" / "model", tmp_path / "moved"
    shutil.copytree(folder / "encoder", moved)
    out = tmp_path / "out"
    words = ["generate", str(model), str(out), "--n", "1", "--where", 'age=40,report="old brain, large ventricles"']
    result = CliRunner().invoke(app, [*words, "--text-encoder", str(moved)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert sidecars(out)[0]["request"] == {"age": 40.0, "report": "old brain, large ventricles"}
    with pytest.raises(InputError, match="is not there"):
        lost = [*words[:2], str(tmp_path / "lost"), *words[3:], "--text-encoder", str(tmp_path / "nowhere")]
        CliRunner().invoke(app, lost, catch_exceptions=False)
    assert not list((tmp_path / "lost").rglob("*.nii.gz"))
    forced = [*words[:2], str(tmp_path / "forced"), "--n", "2", "--where", "age=105..110", "--force"]
    result = CliRunner().invoke(app, forced, catch_exceptions=False)
    assert "extrapolation: age lies outside the cohort's range (2)" in result.output


def test_a_run_is_known_again(folder):
    done = json.loads((folder / "run" / "stages.json").read_text())
    told: list[tuple] = []
    run = {"folder": folder / "run", "until": "synthetic"}
    pipeline.run_experiment(experiment(folder), **run, on_progress=lambda *word: told.append(word))
    assert all(word[3] == "unchanged" for word in told) and told
    assert json.loads((folder / "run" / "stages.json").read_text()) == done


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"text_encoder": None}, "names no folder of a text encoder"),
        ({"use": ["age"]}, "no condition is a text"),
        ({"text_encoder": "nowhere"}, "is no folder"),
        ({"text_tokens": 99}, "more than the 24"),
    ],
)
def test_what_cannot_be_is_refused_before_training(folder, change, sentence):
    run = Run(experiment(folder, **change), folder / "run", lambda *_: None)
    with pytest.raises(InputError, match=sentence):
        check(run)
        check_requests(run)


def test_one_spacing_conditions_nothing(folder):
    store = Prepared.open(folder / "run" / "prepared")
    thin = tuple(c for c in store.cases if GeometryRecord.from_json(c.geometry).native_spacing_mm[2] == 8)
    run = Run(experiment(folder), folder / "run", lambda *_: None, known_store=replace(store, cases=thin))
    with pytest.raises(InputError, match="every training case has voxels of 8 x 8 x 8 mm"):
        conditions(run)
