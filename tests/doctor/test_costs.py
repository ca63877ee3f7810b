"""What the doctor foresees is what the stages do."""

import copy
import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from medgen import config, pipeline
from medgen.cli import app
from medgen.doctor import costs, diagnose, network_costs, steps, timing
from medgen.doctor.counted import Machine
from medgen.doctor.environment import environment
from medgen.doctor.facts import collect
from medgen.errors import InputError
from medgen.formats.detect import read_cohort
from medgen.generation.generator import Generator
from medgen.stages.conditions import conditions
from medgen.stages.data import read
from medgen.stages.run import Run
from medgen.store.latents import Latents
from medgen.store.prepared import Prepared
from tests.tiny import TINY


def on_disk(tiny_run: Path) -> dict[str, Any]:
    """The tiny experiment on the cohort that its run wrote."""
    raw = copy.deepcopy(TINY)
    raw["data"] = {"root": str(tiny_run / "cohort"), "validation": 0.25}
    return raw


def written(raw: dict[str, Any], folder: Path) -> Path:
    path = folder / "tiny.yaml"
    path.write_text(json.dumps(raw))
    return path


def test_the_foreseen_store_is_the_prepared_one(tiny_run: Path) -> None:
    run = Run(config.build(on_disk(tiny_run), "tiny"), tiny_run, lambda *_: None)
    cohort, options = read(run), run.prepare_options()
    facts = collect(cohort, options, workers=1, on_done=lambda done: None)
    plan = costs.expected_plan(cohort, facts, options)
    foreseen, real = costs.store_like(cohort, facts, plan, options), Prepared.open(tiny_run / "prepared")
    for name in ("channels", "label_values", "label_names", "spacing_mm", "shape", "stride"):
        assert getattr(foreseen, name) == getattr(real, name), name
    assert foreseen.schema.names == real.schema.names
    for a, b in zip(foreseen.cases, real.cases, strict=True):
        assert (a.case_id, a.has_label, a.channels_present) == (b.case_id, b.has_label, b.channels_present)
        assert a.covariates == pytest.approx(b.covariates, abs=1e-5)
    known = Run(run.config, tiny_run, lambda *_: None, known_store=foreseen)
    assert conditions(known)[0].names == conditions(run)[0].names


def test_a_config_is_measured_by_real_steps(tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # However busy the machine is.
    monkeypatch.setattr(timing, "measured", partial(timing.measured, limit_seconds=600.0))
    found = diagnose(written(on_disk(tiny_run), tmp_path))
    assert found.kind == "experiment" and found.exit_code == 0, found
    stages = found.figures["stages"]
    assert set(stages) == {"autoencoder", "latents", "diffusion", "synthetic"}
    for figures in stages.values():
        assert figures["how"] == "measured" and 0 < figures["seconds"] < 30 and 50e6 < figures["bytes"] < 20e9
        assert 0 < figures["computed_bytes"] < 2**31
    cost = {f.where: f.what for f in found.of("cost")}
    assert "6 steps of" in cost["autoencoder"] and "3 samples of" in cost["synthetic"] and "whole run" in cost
    assert "(measured)" in cost["diffusion"] and "on a GPU, computed" in cost["diffusion"]


def foreseen(raw: dict[str, Any], tiny_run: Path, machine: Machine) -> dict[str, Any]:
    run = Run(config.build(raw, "tiny"), tiny_run, lambda *_: None)
    return network_costs.experiment_costs(run, training=6, cases=8, machine=machine)[1]


def test_another_machine_is_computed_and_not_run(tiny_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "measured", lambda *_: pytest.fail("nothing is to be measured"))
    raw = on_disk(tiny_run)
    slow, fast = (foreseen(raw, tiny_run, Machine(rate)) for rate in (1e-3, 2e-3))
    for name, figures in slow.items():
        assert figures["how"] == "computed" and figures["seconds"] == pytest.approx(2 * fast[name]["seconds"])
    unguided = copy.deepcopy(raw)
    unguided["generate"]["guidance"] = 1.0
    plain = foreseen(unguided, tiny_run, Machine(1e-3))["synthetic"]["seconds"]
    assert slow["synthetic"]["seconds"] > 1.2 * plain, "guidance asks the network twice"
    folded = copy.deepcopy(raw)
    folded["data"]["folds"] = 3
    thrice = foreseen(folded, tiny_run, Machine(1e-3))
    assert thrice["autoencoder"]["times"] == 3
    assert thrice["synthetic"]["total_seconds"] == pytest.approx(3 * slow["synthetic"]["total_seconds"])


def test_latents_that_a_device_does_not_hold_stay_on_disk(tiny_run: Path) -> None:
    raw = on_disk(tiny_run)
    raw["latents"] = {"copies": 3, "mirror": True}
    stored = Latents(tiny_run / "latents")
    row = stored.mean[0].nbytes + stored.logvar[0].nbytes + stored.reached[0].nbytes
    large = foreseen(raw, tiny_run, Machine(1e-3, memory_bytes=2**40))
    assert large["diffusion"]["resident_bytes"] == row * (6 * 4 * 2 + 2)
    held = foreseen(raw, tiny_run, Machine(1e-3, memory_bytes=row * 60))["diffusion"]["resident_bytes"]
    assert held == row * 2, "training rows exceed their share, the two held-out ones do not"
    run = Run(config.build(raw, "tiny"), tiny_run, lambda *_: None)
    told = network_costs.experiment_costs(run, training=6, cases=8, machine=Machine(1e-3))[0]
    (cost,) = (f.what for f in told if f.where == "latents")
    assert "52 encodings" in cost and "on disk" in cost


def test_a_student_is_costed_and_draws_in_its_steps(tiny_run: Path) -> None:
    raw = on_disk(tiny_run)
    raw["distil"] = {"steps": 1, "teacher_steps": 4, "training": {"steps": 10, "batch": 2}}
    found = foreseen(raw, tiny_run, Machine(1e-3))
    assert set(found) == {"autoencoder", "latents", "diffusion", "distilled", "synthetic"}
    assert (
        found["distilled"]["units"] == 10 and found["distilled"]["total_seconds"] > 10 * found["distilled"]["seconds"]
    )
    teacher = foreseen(on_disk(tiny_run), tiny_run, Machine(1e-3))
    assert found["synthetic"]["seconds"] < teacher["synthetic"]["seconds"]


def test_segmenters_of_stages_are_costed(tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pseudo-labels and the report's measuring train one each, which can take longer than the rest of a run."""
    monkeypatch.setattr(timing, "measured", partial(timing.measured, limit_seconds=600.0))
    shutil.copytree(tiny_run / "cohort", tmp_path / "cohort")
    next((tmp_path / "cohort").rglob("*_dseg.nii.gz")).unlink()
    raw = on_disk(tiny_run)
    raw["data"] |= {"root": str(tmp_path / "cohort"), "unlabelled": "segment", "segmenter_steps": 50}
    raw["report"] = {**raw.get("report", {}), "fidelity": {"segmenter_steps": 70}}
    stages = diagnose(written(raw, tmp_path)).figures["stages"]
    assert (stages["segmented"]["units"], stages["report"]["units"]) == (50, 70)
    for name in ("segmented", "report"):
        figures = stages[name]
        assert figures["how"] == "measured" and figures["total_seconds"] == figures["units"] * figures["seconds"] > 0
        assert 1e6 < figures["computed_bytes"] < 2**31
    raw["pairs"] = "mask"
    both = diagnose(written(raw, tmp_path), machine=Machine(1.0)).figures["stages"]
    assert {"segmented", "report"} <= set(both) and not {"labels segmented", "labels report"} & set(both)


def test_what_does_not_fit_is_said(tiny_run: Path) -> None:
    run = Run(config.build(on_disk(tiny_run), "tiny"), tiny_run, lambda *_: None)
    small = Machine(1e-3, memory_bytes=2**20)
    findings, _ = network_costs.experiment_costs(run, training=6, cases=8, machine=small)
    assert {f.level for f in findings if f.where == "diffusion"} == {"wrong"}
    assert any("the device has 1.0 MiB" in f.what and "checkpointing" in f.fix for f in findings)


def test_the_command_computes_for_another_machine(tiny_run: Path, tmp_path: Path) -> None:
    words = ["doctor", str(written(on_disk(tiny_run), tmp_path)), "--tflops", "0.001", "--memory", "24"]
    found = CliRunner().invoke(app, words)
    assert found.exit_code == 0, found.output
    assert "0.001 TFLOP/s sustained" in found.output and "measured" not in found.output.split("prepared")[0]
    alone = CliRunner().invoke(app, ["doctor", str(tmp_path), "--memory", "24"])
    assert "--tflops" in str(alone.exception)


def test_an_experiment_is_checked_against_its_cohort(tiny_run: Path, tmp_path: Path) -> None:
    raw = on_disk(tiny_run)
    raw["generate"]["where"] = "age=200..210"
    raw["report"] = {"volume": "lesion_ml"}
    wrong = {f.where: f.what for f in diagnose(written(raw, tmp_path), measure=False).of("wrong")}
    assert "add --force" in wrong["generate.where"] and "lesion_ml" in wrong["report.volume"]
    raw = on_disk(tiny_run)
    raw["prepare"] = {"shape": [16, 16, 16], "channels": ["T9w"]}
    found = diagnose(written(raw, tmp_path), measure=False)
    assert "T9w" in found.of("wrong")[0].what
    assert any("cuts something off" in f.what for f in found.of("odd"))


def test_a_run_folder_and_a_model_folder_are_known(tiny_run: Path) -> None:
    found = diagnose(tiny_run, measure=False)
    assert found.kind == "experiment" and found.exit_code == 0
    assert any("8 phantoms, judged by 4" in f.what for f in found.findings)
    model = diagnose(tiny_run / "model", measure=False)
    assert model.kind == "model" and model.exit_code == 0 and model.figures["subjects"] == 6


@pytest.mark.parametrize(("cudnn", "odd"), [(91002, 1), (91500, 0)])
def test_a_cudnn_with_bad_bfloat16_convolutions_is_named(cudnn: int, odd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = SimpleNamespace(name="GPU", total_memory=2**34)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: gpu)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: cudnn)
    found = list(environment(torch.device("cuda"), Path()))
    assert len([f for f in found if f.level == "odd" and "9.15" in f.what]) == odd
    assert "GPU with 16.0 GiB" in found[0].what


def test_a_measurement_that_takes_too_long_is_ended() -> None:
    done, problem = timing.measured({"model": "/nowhere"}, limit_seconds=0.2)
    assert done == [] and problem.startswith("not finished within")


def test_cohorts_of_any_format_are_read(tiny_run: Path) -> None:
    assert read_cohort(tiny_run / "synthetic").cases
    found = diagnose(tiny_run / "synthetic", measure=False)
    assert found.figures["format"] == "bids" and found.figures["cases"] == 3
    one = diagnose(tiny_run / "synthetic", measure=False, overrides=("data.format=bids", "data.options.channels=[T1w]"))
    assert one.figures["format"] == "bids"
    with pytest.raises(InputError, match="formt"):
        diagnose(tiny_run / "synthetic", measure=False, overrides=("data.formt=bids",))
    with pytest.raises(InputError, match="--set changes nothing"):
        diagnose(tiny_run / "model", measure=False, overrides=("device=cpu",))


def test_a_codec_with_a_codebook_is_costed(tiny_run: Path) -> None:
    raw = on_disk(tiny_run)
    raw["autoencoder"] |= {"kind": "vq", "options": {"channels": [8, 16], "latent_channels": 2, "codes": 32}}
    stages = foreseen(raw, tiny_run, Machine(1.0))
    assert stages["autoencoder"]["computed_bytes"] > 0 and stages["autoencoder"]["total_seconds"] > 0


def test_a_grid_that_is_too_thin_for_the_adversary_is_said_beforehand(tiny_run: Path, tmp_path: Path) -> None:
    raw = on_disk(tiny_run)
    raw["autoencoder"] = {k: v for k, v in raw["autoencoder"].items() if k != "patch"}
    raw["autoencoder"] |= {"adversary": {"weight": 0.1, "layers": 4}}
    found = diagnose(written(raw, tmp_path), measure=False)
    assert any("voxels are too few for the adversary" in f.what for f in found.of("wrong"))
    with pytest.raises(InputError, match="too few for the adversary"):
        pipeline.run_experiment(config.build(raw, "tiny"), folder=tmp_path / "run", until="autoencoder")


def test_decoding_a_sample_is_counted_once(tiny_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sample of many steps is foreseen from few; what comes once is not multiplied with them."""
    asked: list[int] = []

    class Clock:
        def __init__(self, device: torch.device) -> None: ...

        def start(self) -> None: ...

        def peak(self) -> int:
            return 1

        def once(self, work: Any) -> float:
            work()
            return 10.0 + asked[-1]  # ten for the decoding

    class Drawn:
        def __init__(self, model: Any, drawing: Any, *_: Any) -> None:
            self.drawing = drawing

        def draw(self, *_: Any) -> None:
            asked.append(self.drawing.steps)

        @staticmethod
        def load(folder: str) -> Any:
            loaded = Generator.load(folder, device="cpu")
            return SimpleNamespace(model=loaded.model, schema=loaded.schema, drawing=replace(loaded.drawing, steps=50))

    monkeypatch.setattr(steps, "Meter", Clock)
    monkeypatch.setattr(steps, "Generator", Drawn)
    assert next(steps._model({"model": str(tiny_run / "model")}))["seconds"] == pytest.approx(60)
