"""The benchmarks of diffusion: that they start, and (slow) that each goes through on the smallest cohort."""

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from medgen.cohort.phantom import write_phantom
from medgen.files import read_json

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"
NAMES = ("diffusion", "steps", "conditions")
SMALL = "{channels: [16, 16], attention: [false, true], head_channels: 8, token_width: 16}"
KEYS = {"mmd", "frechet", "precision", "recall", "coverage", "ms_ssim", "ccc", "r", "slope", "mae_ml"}


@pytest.fixture
def load(monkeypatch) -> Iterator[Callable[[str], ModuleType]]:
    monkeypatch.syspath_prepend(FOLDER)
    before = set(sys.modules)
    yield importlib.import_module
    for name in set(sys.modules) - before:
        if Path(getattr(sys.modules[name], "__file__", None) or "").parent == FOLDER:
            del sys.modules[name]


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("phantoms") / "cohort"
    write_phantom(folder, n=40, spacing_mm=8, workers=1)
    return folder


def call(module: ModuleType, monkeypatch, *words: str | Path) -> None:
    monkeypatch.setattr(sys, "argv", [f"{module.__name__}.py", *map(str, words)])
    module.main()


@pytest.mark.parametrize("name", NAMES)
def test_help_says_how_it_is_called(name, load, monkeypatch, capsys):
    module = load(name)
    with pytest.raises(SystemExit) as ended:
        call(module, monkeypatch, "--help")
    assert ended.value.code == 0
    assert f"python benchmarks/{name}.py --data" in capsys.readouterr().out


def test_whole_steps_fit_into_the_evaluations(load):
    steps = load("steps")
    process = steps.resolve("diffusion", "flow", "build")()
    for sampler, most, expected in (("euler", 8, 8), ("heun", 8, 4), ("heun", 2, 1), ("dpmpp", 16, 16)):
        assert steps.steps_within(process, sampler, most) == expected
    assert steps.evaluations_of(process, "heun", 4) == 7


def test_entries_go_missing_in_training_cases_only(load, tiny_run):
    conditions = load("conditions")
    store = conditions.Prepared.open(tiny_run / "prepared")
    less = conditions.lacking(store, ["age", "sex"], 0.5)
    for before, after in zip(store.cases, less.cases, strict=True):
        gone = {c for c in before.covariates if after.covariates[c] is None and before.covariates[c] is not None}
        assert gone <= ({"age", "sex"} if before.split == "train" else set())
    assert any(case.covariates["age"] is None for case in less.cases)


def test_the_tutorial_sees_covariates_between_0_and_1(load, tiny_run):
    peer, bench = load("diffusion_peer"), load("diffusion_bench")
    store = bench.Prepared.open(tiny_run / "prepared")
    here = bench.Bench(None, None, store, tiny_run, ("age", "sex", "ventricles_ml"))
    rows = peer.contexts(here, [store.cases[i].covariates for i in store.indices("train")]).numpy()
    assert rows.shape == (len(store.indices("train")), 3)
    assert np.allclose(rows[:, [0, 2]].min(axis=0), 0) and np.allclose(rows[:, [0, 2]].max(axis=0), 1)
    assert (peer.contexts(here, [{}]).numpy() == 0.5).all()


@pytest.mark.slow
def test_each_goes_through_and_uses_the_work_of_before(load, phantoms, tmp_path, monkeypatch, capsys):
    small = ("--minutes", "0.05", "--codec-minutes", "0.05", "--segmenter-steps", "4", "--n", "8", "--batch", "8")
    shared = ("--data", phantoms, "--work", tmp_path / "work", "--device", "cpu", *small)
    shared = (
        *shared,
        "--network",
        "unet",
        "--set",
        f"diffusion.network_options={SMALL}",
        "--set",
        "diffusion.memorisation.samples=0",
    )
    monkeypatch.setattr(load("diffusion_peer"), "TIMESTEPS", 60)
    call(load("diffusion"), monkeypatch, *shared, "--json", tmp_path / "a.json")
    found = read_json(tmp_path / "a.json")
    assert set(found) == {"floor", "ours", "monai", "details"} and set(found["floor"]) == {"mmd", "frechet"}
    assert set(found["ours"]) == set(found["monai"]) == KEYS | {"seconds_per_sample"}
    assert set(found["details"]["samplings"]) == {"ddim_50_clipped", "ddim_50_unclipped", "ddpm_1000"}
    capsys.readouterr()
    call(load("diffusion"), monkeypatch, *shared, "--json", tmp_path / "b.json")
    assert "drawn" not in capsys.readouterr().out
    assert read_json(tmp_path / "b.json")["ours"]["frechet"] == found["ours"]["frechet"]
    call(load("steps"), monkeypatch, *shared, "--evaluations", "2", "4", "--json", tmp_path / "c.json")
    table = read_json(tmp_path / "c.json")["table"]
    assert set(table) == {"flow", "vp", "edm", "distilled"} and set(table["flow"]["heun"]) == {"2", "4"}
    call(load("conditions"), monkeypatch, *shared, "--json", tmp_path / "d.json")
    parts = read_json(tmp_path / "d.json")
    assert parts["sweep"]["column"] == "age" and parts["readback"]["age"]["samples"]["n"] == 8
    assert abs(parts["missing"]["share_missing"] - 0.3) < 0.01 and parts["not"]["column"] == "ventricles_ml"


@pytest.mark.slow
def test_counted_memory_is_what_a_process_takes(load, monkeypatch, tmp_path):
    call(load("memory"), monkeypatch, "--extents", "48", "--json", tmp_path / "m.json")
    rows = read_json(tmp_path / "m.json")["rows"]
    assert len(rows) == 5 and all(0.85 < row["ratio"] < 1.2 for row in rows)
