"""A run fold by fold: no synthetic case of a fold comes from a model that saw what validates it."""

import copy
import json
import shutil

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

import medgen
from medgen import config, pipeline
from medgen.cli import app
from medgen.errors import InputError
from medgen.files import read_json
from medgen.stages.folds import combine_run
from medgen.store.prepared import Prepared
from tests.tiny import TINY
from tests.validators import check_nnunet


def experiment(**data):
    raw = copy.deepcopy(TINY)
    raw["data"]["phantom"]["n"] = 6
    raw["data"] |= data
    for name in ("autoencoder", "diffusion"):
        raw[name]["training"] |= {"steps": 2, "warmup": 1, "validate_every": 2}
    raw["diffusion"]["memorisation"] = {"samples": 0}
    raw["generate"] |= {"n": 2, "steps": 2, "format": "nnunet"}
    return raw


def run(folder, raw, until=None):
    said = []
    cfg = config.build(copy.deepcopy(raw), "test")
    report = pipeline.run_experiment(cfg, folder=folder, until=until, on_progress=lambda *a: said.append(a))
    return report, {stage for stage, _, _, remark in said if remark not in ("unchanged", "shared")}


@pytest.fixture(scope="module")
def folded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("folds") / "run"
    report, _ = run(folder, experiment(folds=2))
    return folder, report


def test_each_fold_trains_on_its_own_cases_alone(folded):
    folder, report = folded
    assert set(report["folds"]) == {"fold-1", "fold-2"}
    splits = read_json(folder / "combined" / "splits_final.json")
    everyone = {case.case_id for case in Prepared.open(folder / "prepared").cases}
    for number, split in enumerate(splits):
        own = Prepared.open(folder / f"fold-{number + 1}" / "prepared")
        sides = {case.case_id: case.split for case in own.cases}
        val = set(split["val"])
        assert len(val) == 3 and all(sides[i] == "test" for i in val), "what validates is out of reach"
        assert {i for i, side in sides.items() if side in ("train", "val")} == everyone - val
        assert {"train", "val"} <= set(sides.values()), "weights are chosen by other held-out cases"
        model = read_json(folder / f"fold-{number + 1}" / "model" / "model.json")
        assert model["trained_on"]["cases"] + model["trained_on"]["validation"] == 3
        assert not (folder / f"fold-{number + 1}" / "prepared" / "cases").exists(), "arrays are shared"
        np.testing.assert_array_equal(own.image(0), Prepared.open(folder / "prepared").image(0))
    assert splits[0]["val"] != splits[1]["val"]


def test_the_combined_dataset_is_sound(folded, monkeypatch):
    folder, _ = folded
    check_nnunet(folder / "combined", monkeypatch)
    for fold in (0, 1):
        rows = medgen.datalist(folder / "combined", fold=fold)
        synthetic = {row["case_id"] for row in rows if row["origin"] == "synthetic"}
        assert synthetic == {f"fold{fold + 1}syn00000{i}" for i in range(2)}
        assert all(row["origin"] == "real" for row in medgen.datalist(folder / "combined", fold=fold, side="val"))


def test_a_second_run_does_nothing_and_other_formats_follow(folded, tmp_path):
    folder, report = folded
    again, did = run(folder, experiment(folds=2))
    assert again == report and not did
    result = CliRunner().invoke(app, ["combine", str(folder), str(tmp_path / "out"), "--format", "decathlon"])
    assert result.exit_code == 0, result.output
    assert "6 real and 4 synthetic cases" in result.output
    listed = json.loads((tmp_path / "out" / "datalist_fold1.json").read_text())["training"]
    assert len(listed) == 8 and sum(e["fold"] == 1 for e in listed) == 3


def test_a_model_that_saw_what_validates_its_fold_is_not_combined(folded, tmp_path):
    other = tmp_path / "run"
    shutil.copytree(folded[0], other)
    raw = yaml.safe_load((other / "config.yaml").read_text())
    raw["seed"] += 1  # as a run that was started anew and killed leaves it
    (other / "config.yaml").write_text(yaml.safe_dump(raw))
    with pytest.raises(InputError, match="was not held out for it"):
        combine_run(other, tmp_path / "out", format="bids", on_progress=lambda *_: None)
    assert not (tmp_path / "out").exists()


def test_a_plain_run_combines_by_its_own_split(tiny_run, tmp_path, monkeypatch):
    result = CliRunner().invoke(app, ["combine", str(tiny_run), str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    (split,) = read_json(tmp_path / "out" / "splits_final.json")
    held = {c.case_id for c in Prepared.open(tiny_run / "prepared").cases if c.split == "val"}
    assert set(split["val"]) == held and sum(i.startswith("syn") for i in split["train"]) == 3
    check_nnunet(tmp_path / "out", monkeypatch)


def test_folds_of_the_users_own(tmp_path):
    from medgen.cohort.phantom import write_phantom

    write_phantom(tmp_path / "data", n=3, spacing_mm=8, seed=1, workers=1)
    names = [row["case_id"] for row in medgen.datalist(tmp_path / "data")]
    path = tmp_path / "splits_final.json"
    path.write_text(json.dumps([{"train": names[1:], "val": names[:1]}, {"train": names[:2], "val": names[2:]}]))
    raw = experiment(phantom=None, root=str(tmp_path / "data"))
    (tmp_path / "e.yaml").write_text(yaml.safe_dump(raw))
    words = [
        "run",
        str(tmp_path / "e.yaml"),
        "--out",
        str(tmp_path / "run"),
        "--until",
        "latents",
        "--folds",
        str(path),
    ]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    for number, out in ((1, names[0]), (2, names[2])):
        sides = {c.case_id: c.split for c in Prepared.open(tmp_path / "run" / f"fold-{number}" / "prepared").cases}
        assert sides.pop(out) == "test" and sorted(sides.values()) == ["train", "val"]
    with pytest.raises(InputError, match="9 folds need"):
        run(tmp_path / "x", {**raw, "data": {**raw["data"], "folds": 9}})
    assert not (tmp_path / "x").exists()
