"""From a model folder to a student's, as a stage and by command."""

import copy
import shutil

import pytest
from typer.testing import CliRunner

from medgen import config, pipeline
from medgen.cli import app
from medgen.errors import InputError
from medgen.files import read_json
from medgen.generation.distil import Distillation, distil
from medgen.generation.generator import Generator
from medgen.generation.model import read_spec
from medgen.training.loop import Schedule
from tests.tiny import TINY, model_like

DISTIL = {
    "steps": 4,
    "teacher_steps": 8,
    "reuse": 2,
    "training": {"steps": 4, "batch": 2, "precision": "float32", "warmup": 1, "log_every": 2, "validate_every": 4},
}


@pytest.fixture(scope="module")
def distilled_run(tiny_run, tmp_path_factory):
    """The finished tiny experiment, run again with a student; and the stages that this took."""
    folder = tmp_path_factory.mktemp("distilled") / "tiny"
    shutil.copytree(tiny_run, folder)
    said = []
    raw = copy.deepcopy(TINY) | {"distil": DISTIL}
    pipeline.run_experiment(config.build(raw, "test"), folder=folder, on_progress=lambda *a: said.append(a))
    return folder, {stage for stage, _, _, remark in said if remark != "unchanged"}


def test_a_student_is_made_of_a_finished_model_without_training_that_again(distilled_run):
    _, did = distilled_run
    assert did == {"distilled", "synthetic"} or did == {"distilled", "synthetic", "report"}


def test_a_students_folder_says_what_it_is(distilled_run, tiny_run):
    folder, _ = distilled_run
    student, teacher = read_spec(folder / "distilled")[0], read_spec(folder / "model")
    own = {"sampler": "euler", "options": {}, "steps": 4, "guidance": 1.0, "steering": []}
    assert student.sampling == {**teacher[0].sampling, **own} and "gates" in student.sampling, "its gates go with it"
    told = student.trained_on["distilled"]
    assert told["teacher_sha256"] == teacher[1] and told["guidance"] == TINY["generate"]["guidance"]
    assert told["rmse"] > 0 and told["rmse_teacher_in_as_many_steps"] > 0
    card = (folder / "distilled" / "README.md").read_text()
    assert "Draws in 4 steps" in card and "guidance 1.5" in card
    assert not list((folder / "distilled").rglob("paths/*")), "paths are not kept"


def test_samples_of_the_run_are_the_students(distilled_run):
    folder, _ = distilled_run
    sidecars = [read_json(p) for p in (folder / "synthetic").rglob("*.json")]
    drawn = [s for s in sidecars if isinstance(s, dict) and "drawing" in s]
    sha256 = read_spec(folder / "distilled")[1]
    assert drawn and all(s["model_sha256"] == sha256 and s["drawing"]["steps"] == 4 for s in drawn)
    generator = Generator.load(folder / "distilled", device="cpu")
    assert generator.drawing.guidance == 1.0
    assert generator.sample(seed=5).label is not None


def test_a_finished_distillation_is_left_as_it_is_and_another_is_refused(tiny_run, tmp_path):
    how = Distillation(steps=2, teacher_steps=4, batch=2, reuse=4)
    schedule = Schedule(steps=2, validate_every=2, precision="float32")
    first = distil(tiny_run / "model", tmp_path / "out", how, schedule, device="cpu")
    before = (tmp_path / "out" / "model.json").read_bytes()
    assert distil(tiny_run / "model", tmp_path / "out", how, schedule, device="cpu") == first
    assert (tmp_path / "out" / "model.json").read_bytes() == before
    with pytest.raises(InputError, match="already holds something else"):
        distil(tiny_run / "model", tmp_path / "out", Distillation(steps=3, teacher_steps=4), schedule, device="cpu")


def test_faults_are_named_before_anything_runs(tmp_path, tiny_run):
    raw = copy.deepcopy(TINY) | {"distil": {**DISTIL, "kind": "trajectori"}}
    with pytest.raises(InputError, match="did you mean 'trajectory'"):
        pipeline.run_experiment(config.build(raw, "test"), folder=tmp_path / "run")
    raw["distil"] = {**DISTIL, "teacher_steps": 2}
    with pytest.raises(InputError, match="nothing to teach"):
        pipeline.run_experiment(config.build(raw, "test"), folder=tmp_path / "run")
    assert not (tmp_path / "run" / "prepared").exists()


def test_a_teacher_steered_to_values_of_its_own_is_refused(tiny_run, tmp_path):
    steering = [{"kind": "composition", "conditions": [{"where": {"ventricles_ml": 40.0}, "weight": 1.0}]}]
    model_like(tiny_run, tmp_path / "model", lambda raw: raw["sampling"].update(steering=steering))
    with pytest.raises(InputError, match="steered to a 'ventricles_ml' of its own"):
        distil(tmp_path / "model", tmp_path / "out", Distillation(steps=2, teacher_steps=4), Schedule(2))


def test_a_teacher_that_never_learnt_to_be_asked_nothing_is_refused(tiny_run, tmp_path):
    def change(raw):
        raw["trained_on"]["dropped"] = {"all": 0.0, "each": 0.0}
        raw["sampling"]["guidance"] = 1.0

    model_like(tiny_run, tmp_path / "model", change)
    with pytest.raises(InputError, match="set drop to 0"):
        distil(tmp_path / "model", tmp_path / "out", Distillation(steps=2, teacher_steps=4), Schedule(2))


def test_a_student_starts_from_noise_where_leading_steps_would_not(tiny_run, tmp_path):
    """Four leading steps of a published process begin at three quarters of the way: its student takes others."""
    leading = {"kind": "vp", "options": {"spacing": "leading", "offset": 1}}
    model_like(tiny_run, tmp_path / "model", lambda raw: raw.update(process=leading))
    how = Distillation(steps=4, teacher_steps=8, batch=2, reuse=4)
    distil(tmp_path / "model", tmp_path / "out", how, Schedule(steps=1, validate_every=1, precision="float32"))
    student = read_spec(tmp_path / "out")[0]
    assert dict(student.process.options) == {"spacing": "linspace"}
    process = Generator.load(tmp_path / "out", device="cpu").model.process
    assert float(process.sigmas(4)[0]) == process.sigma_range[1]


def test_the_command_writes_a_model_folder(tiny_run, tmp_path):
    words = ["model", "distil", str(tiny_run / "model"), str(tmp_path / "fast"), "--steps", "2", "--batch", "2"]
    result = CliRunner().invoke(app, [*words, "--training-steps", "2", "--teacher-steps", "4", "--device", "cpu"])
    assert result.exit_code == 0, result.output
    assert "2 evaluations come within" in result.output
    assert read_spec(tmp_path / "fast")[0].sampling["steps"] == 2
