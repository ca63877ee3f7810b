"""One trial: train, measure, write the result; or read it where the same one is there."""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from medgen.errors import InputError
from medgen.evaluation.utility import measure
from medgen.evaluation.utility.arms import ARMS, MIXES, Material
from medgen.evaluation.utility.trial import Trial
from medgen.files import alone, digest, read_json, write_json
from medgen.segment import train as training
from medgen.segment.randomise import Randomisation
from medgen.segment.segmenter import Segmenter
from medgen.store.prepared import Prepared

RESULT = "result.json"
SEGMENTER = "segmenter"


@dataclass(frozen=True, eq=False)
class Bench:
    """What all trials of an evaluation share.

    Attributes:
        folder: of the trials, one below it for each.
        store: the prepared cohort with all of its labels.
        held_out: positions of the held-out labelled cases in it.
        widths: of the segmenter.
        patch: of the segmenter.
        batch: patches a step.
        learning_rate: of the segmenter.
        steps: of every trial.
        device: where networks run.
    """

    folder: Path
    store: Prepared
    held_out: Sequence[int]
    widths: tuple[int, ...]
    patch: tuple[int, int, int]
    batch: int
    learning_rate: float
    steps: int
    device: torch.device

    def identity(self, trial: Trial, inputs: Any) -> str:
        """What a result depends on.

        Args:
            trial: which.
            inputs: identity of the cases; with synthetic ones theirs too.
        """
        said = [self.widths, self.patch, self.batch, self.learning_rate, self.steps]
        versions = [training.VERSION, measure.VERSION, asdict(training.CLASSICAL), asdict(Randomisation())]
        cases = [self.store.cases[i].key for i in self.held_out]
        return digest([versions, asdict(trial), said, cases, inputs])


Tell = Callable[[float, str], None]
"""(how much of a trial is done, remark) -> None."""


def run_trial(bench: Bench, trial: Trial, material: Material, inputs: Any, tell: Tell) -> dict[str, Any]:
    """The result of a trial; a finished one is read, a killed one goes on.

    Args:
        bench: what all trials share.
        trial: which.
        material: of the trial's size.
        inputs: identity of the material.
        tell: told of its progress.

    Returns:
        What ``result.json`` holds.

    Raises:
        InputError: what training says of its cases.
    """
    folder = bench.folder / trial.name
    with alone(folder / ".lock", f"{folder} is being made by another process; wait until it is done"):
        return _run_trial(bench, trial, material, inputs, tell)


def _run_trial(bench: Bench, trial: Trial, material: Material, inputs: Any, tell: Tell) -> dict[str, Any]:
    folder, identity = bench.folder / trial.name, bench.identity(trial, inputs)
    path = folder / RESULT
    if path.is_file() and (before := read_json(path)).get("identity") == identity:
        tell(1.0, "unchanged")
        return dict(before)
    start = time.monotonic()
    recipe = ARMS[trial.arm](material, trial.seed, trial.synthetic or 0)
    if trial.arm in MIXES and not recipe.extra:
        raise InputError(f"{trial.name} has no case to mix in; generate some, or leave the arm out of utility.arms")
    segmenter = training.train(
        recipe.cases,
        folder / SEGMENTER,
        labels=len(bench.store.label_values),
        extra=recipe.extra,
        share=trial.share or 0.5,
        randomisation=recipe.randomisation,
        widths=bench.widths,
        patch=bench.patch,
        steps=bench.steps,
        batch=bench.batch,
        learning_rate=bench.learning_rate,
        augmentation=recipe.augmentation,
        seed=trial.seed,
        device=bench.device,
        on_progress=lambda done, total, remark: tell(0.9 * done / total, remark),
    )
    n = len(bench.held_out)
    rows = measure.measure_cases(
        bench.store, bench.held_out, segmenter, lambda done: tell(0.9 + 0.1 * done / n, "held-out cases")
    )
    result = {
        "identity": identity,
        "trial": asdict(trial),
        "steps": bench.steps,
        "cases_trained_on": {"own": len(recipe.cases), "extra": len(recipe.extra)},
        "seconds": round(time.monotonic() - start, 1),
        "cases": rows,
    }
    write_json(path, result)
    return result


def teacher_of(bench: Bench, trial: Trial, material: Material, inputs: Any, tell: Tell) -> Segmenter:
    """The segmenter of the arm ``classical`` at a trial's size and seed, trained where it is not there."""
    classical = replace(trial, arm="classical", share=None, synthetic=None)
    run_trial(bench, classical, material, inputs, tell)
    return Segmenter.load(bench.folder / classical.name / SEGMENTER, device=bench.device)
