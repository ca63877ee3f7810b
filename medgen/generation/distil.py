"""From a model folder to another one that draws in a few steps: distillation needs the model alone, no case of it.

What the model does by default (its guidance and all its steering) is what the student learns: it asks the network
once a step where guidance asks twice.
"""

import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch

from medgen.cohort.requests import resolve as resolve_row
from medgen.cohort.where import from_values
from medgen.errors import InputError
from medgen.files import digest, read_json, write_json
from medgen.generation.generator import Generator
from medgen.generation.model import Kind, ModelSpec, save_model
from medgen.models.condition import Condition
from medgen.registry import beside, check_options, resolve
from medgen.sampling import heun
from medgen.sampling.noise import Key, generator
from medgen.steering import chain
from medgen.training.distil.task import DistilTask, Teacher
from medgen.training.distributed import world
from medgen.training.loop import Progress, Schedule, train

ROOM = "training.distil"
WORK = "training"


@dataclass(frozen=True)
class Distillation:
    """How a student is made.

    Attributes:
        kind: the objective, a module of ``medgen.training.distil``.
        options: of its ``loss``.
        steps: evaluations of the student for a sample.
        teacher_steps: of Heun's method on the teacher's ODE.
        batch: rows a step of training.
        reuse: steps of training for each batch of new teacher's paths.
        learning_rate: of AdamW.
        drop: chance of asking nothing, and of leaving each covariate open, so that the student can too.
        seed: of the training.
    """

    kind: str = "trajectory"
    options: Mapping[str, Any] = field(default_factory=dict)
    steps: int = 4
    teacher_steps: int = 16
    batch: int = 8
    reuse: int = 8
    learning_rate: float = 3e-4
    drop: float = 0.1
    seed: int = 0


def check(how: Distillation) -> None:
    """Refuse what can be refused without a model.

    Raises:
        InputError: an unknown kind or option, or a teacher of fewer steps than the student.
    """
    check_options(ROOM, how.kind, "loss", how.options)
    if how.teacher_steps < how.steps:
        raise InputError(
            f"distil: a teacher of {how.teacher_steps} steps has nothing to teach a student of {how.steps}; "
            "raise teacher_steps"
        )


def distil(
    model: Path,
    out: Path,
    how: Distillation,
    schedule: Schedule,
    *,
    device: str = "auto",
    on_progress: Progress | None = None,
) -> dict[str, Any]:
    """Train a student and write its model folder; a killed training goes on, a finished one is left as it is.

    Args:
        model: folder of the teacher.
        out: folder of the student; while it trains, its checkpoints are in ``out/training``.
        how: see :class:`Distillation`.
        schedule: how long and how fast.
        device: auto, cpu, cuda, cuda:N or mps.
        on_progress: called with (done, total, remark).

    Returns:
        What ``trained_on["distilled"]`` of the student's ``model.json`` holds.

    Raises:
        InputError: a model that is asked by texts, or ``out`` holds something else.
    """
    check(how)
    generator_ = Generator.load(model, device=device)
    if generator_.model.labels is not None:
        raise InputError(f"{model} follows masks, and a student learns from covariates alone; distil a joint model")
    source = generator_.model
    if texts := [c.name for c in source.schema.covariates if c.is_text]:
        raise InputError(f"{model} is asked by a text ('{texts[0]}'), and a model folder has no texts to distil with")
    if decided := sorted(chain.decides(generator_.drawing.steering, source.schema)):
        raise InputError(
            f"{model} is steered to a '{decided[0]}' of its own, which a student could not be asked about; distil it "
            "without that steering"
        )
    untrained = {"all": 0, "each": 0}
    if how.drop > 0 and source.spec.trained_on.get("dropped") == untrained:
        raise InputError(f"{model} never learnt to be asked for nothing, which distil.drop does; set drop to 0")
    process = _process(source.spec.process)
    here = world(source.device)
    identity = digest([source.sha256, asdict(how), schedule.steps, schedule.minutes, schedule.accumulate, here.size])
    if here.first:
        _claim(out, identity)
    here.wait()
    if (out / "model.json").exists():
        found: dict[str, Any] = read_json(out / "model.json")["trained_on"]["distilled"]
        return found
    teacher = Teacher(
        network=source.network,
        model=generator_.denoiser,
        process=resolve("diffusion", process.kind, "build")(**process.options),
        sampler=heun.sample,
        steps=how.teacher_steps,
        shape=source.spec.latent_shape,
        ask=lru_cache(maxsize=64)(partial(_asked, generator_, how.seed)),
    )
    task = DistilTask(
        teacher,
        partial(resolve(ROOM, how.kind, "loss"), **how.options),
        out / WORK / "paths",
        steps=how.steps,
        batch=how.batch,
        reuse=how.reuse,
        learning_rate=how.learning_rate,
        drop=how.drop,
        seed=how.seed,
        rank=here.rank,
    )
    averages = train(task, out / WORK, schedule, source.device, on_progress)
    figures: dict[str, Any] = {
        "teacher": source.spec.name,
        "teacher_sha256": source.sha256,
        "kind": how.kind,
        "options": dict(how.options),
        "guidance": generator_.drawing.guidance,
        "steering": chain.recorded(generator_.drawing.steering),
        "steps": how.steps,
        "teacher_steps": how.teacher_steps,
    }
    if here.first:
        figures |= {
            "rmse": round(task.validate(averages)["rmse"], 4),
            "rmse_teacher_in_as_many_steps": round(task.distance(generator_.denoiser), 4),
        }
        student = averages["network"].state(source.network)
        shutil.rmtree(out / WORK / "paths")  # large, and drawn again if this is killed before the model is written
        save_model(out, _spec(source.spec, process, figures), source.codec.state_dict(), student)
    here.wait()
    return figures


def told(figures: Mapping[str, Any]) -> str:
    """What became of a distillation, as a sentence."""
    own = figures["rmse_teacher_in_as_many_steps"]
    return (
        f"{figures['steps']} evaluations come within {figures['rmse']:g} of the model's own samples "
        f"(the model itself in {figures['steps']} steps: {own:g}; standardised latents, root mean square)"
    )


def _claim(out: Path, identity: str) -> None:
    """Take a folder for this distillation: a new one, or one that an earlier call of the same kind took."""
    said = out / WORK / "distil.json"
    if said.exists() and read_json(said).get("identity") == identity:
        return
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} already holds something else; give a new folder for the model")
    write_json(said, {"identity": identity})


def _asked(generator_: Generator, seed: int, purpose: str, numbers: range) -> Condition:
    """What paths are asked: rows of the joint, as generation draws them where nothing is asked."""
    # Of their own stream: a dataset's seeds are small numbers.
    base = int(torch.randint(2**62, (1,), generator=generator("distil", "rows", purpose, seed)))
    nothing = from_values({}, generator_.schema)
    rows = [resolve_row(nothing, generator_.model.joint, base, i) for i in numbers]
    return generator_.condition(rows, [Key(base, i) for i in numbers])


def _process(teacher: Kind) -> Kind:
    """The teacher's process as a student draws from it."""
    few = beside("diffusion", teacher.kind, "build", "of_few_steps")
    return Kind(teacher.kind, few(teacher.options)) if few else teacher


def _spec(teacher: ModelSpec, process: Kind, figures: Mapping[str, Any]) -> ModelSpec:
    """The teacher's, with the student's way of sampling."""
    own = {"sampler": "euler", "options": {}, "steps": figures["steps"], "guidance": 1.0, "steering": []}
    return replace(
        teacher,
        process=process,
        sampling={**teacher.sampling, **own},
        trained_on={**teacher.trained_on, "distilled": dict(figures)},
    )
