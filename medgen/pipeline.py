"""The stages of one experiment, in order: each resumable, each skipped while nothing it depends on has changed."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from medgen.config import Config
from medgen.errors import InputError
from medgen.evaluation import codec_quality
from medgen.files import alone, read_json, write_text
from medgen.generation.model import LABELS, WEIGHTS
from medgen.stages import (
    codec,
    data,
    diffusion,
    distil,
    encoding,
    folds,
    inputs,
    product,
    quality,
    segmented,
    utility,
    views,
)
from medgen.stages.ancestor import with_ancestor
from medgen.stages.check import check
from medgen.stages.masks import follows_masks, label_run
from medgen.stages.run import SEGMENTED, Run, StageProgress
from medgen.stages.stage import Stage, holds, run_stage
from medgen.store.latents import Latents
from medgen.store.prepared import INDEX, Prepared
from medgen.store.run_state import STATE, read_state
from medgen.training import checkpoint, keep
from medgen.training.distributed import world

_LOCK = ".lock"
_MODEL = holds("model.json", *WEIGHTS)


def _prepare(run: Run) -> None:
    (data.prepared if run.fold is None else folds.write_view)(run)


STAGES = (
    Stage(
        "cohort",
        data.cohort,
        inputs.phantom,
        extent=lambda run: run.phantom.n if run.phantom else 0,
        by_content=True,
        skip=lambda run: run.phantom is None or run.fold is not None,
    ),
    Stage(
        "prepared",
        _prepare,
        inputs.prepared,
        ("cohort",),
        by_content=True,
        keeps=True,
        whole=lambda folder: holds(INDEX)(folder) and Prepared.open(folder).whole,
    ),
    Stage(
        SEGMENTED,
        segmented.segmented,
        lambda run: [run.config.data.segmenter_steps, run.config.seed],
        ("prepared",),
        skip=lambda run: not run.lacks_labels,
        whole=segmented.whole,
    ),
    Stage(
        LABELS,
        lambda run: _train_label_model(run),  # defined below, from the stages
        inputs.label_model,
        ("prepared", SEGMENTED),
        keeps=True,
        skip=lambda run: not follows_masks(run),
        gate=lambda run: quality.gate(label_run(run)),
        together=True,
        whole=lambda folder: _MODEL(folder / "model"),
    ),
    Stage(
        "autoencoder",
        codec.autoencoder,
        inputs.codec,
        ("prepared", SEGMENTED),
        together=True,
        whole=holds(checkpoint.NAME),
    ),
    Stage(
        "quality",
        codec.quality,
        lambda run: list(run.config.autoencoder.accept.sizes_ml),
        ("prepared", SEGMENTED, "autoencoder"),
        keeps=True,
        place=f"autoencoder/{codec_quality.JSON}",
        gate=quality.gate,
        version=2,
    ),
    Stage(
        "latents",
        encoding.latents,
        inputs.latents,
        ("prepared", SEGMENTED, "autoencoder"),
        version=2,
        whole=Latents.whole,
    ),
    Stage(
        "diffusion",
        diffusion.diffusion,
        inputs.diffusion,
        ("prepared", SEGMENTED, "latents"),
        version=2,
        together=True,
        whole=holds(keep.NAME),
    ),
    Stage(
        "model",
        product.model,
        inputs.model,
        ("prepared", SEGMENTED, LABELS, "latents", "diffusion"),
        version=2,
        whole=_MODEL,
    ),
    Stage(
        "distilled",
        distil.distilled,
        inputs.distilled,
        ("model",),
        skip=lambda run: run.config.distil is None,
        together=True,
        whole=_MODEL,
    ),
    Stage(
        "synthetic",
        product.synthetic,
        inputs.synthetic,
        ("model", "distilled"),
        extent=lambda run: run.config.generate.n,
    ),
    Stage(
        "report",
        product.report,
        inputs.report,
        ("synthetic", "prepared", "quality"),
        whole=holds("report.json"),
    ),
)
NAMES = tuple(stage.name for stage in STAGES)
_OF_A_MODEL = tuple(s for s in STAGES if s.name in ("autoencoder", "quality", "latents", "diffusion", "model"))
COMBINED = Stage(folds.COMBINED, folds.combined, inputs.combined)
"""After the last fold of a run that goes fold by fold."""


def run_experiment(
    config: Config,
    *,
    folder: Path | None = None,
    until: str | None = None,
    force: bool = False,
    on_progress: StageProgress | None = None,
) -> Mapping[str, Any]:
    """Run an experiment's stages in order.

    Args:
        config: the experiment.
        folder: the run folder, ``runs/NAME`` by default.
        until: the last stage to run.
        force: go on with a codec below its thresholds.
        on_progress: called with (stage, done, total, remark).

    Returns:
        The report, empty where it was not reached; with folds ``{"folds": name -> report, "failures": [...]}``.

    Raises:
        BoundError: the codec is below its thresholds and ``force`` is not given.
        InputError: something a user can mend; stages finished before it stay.
    """
    if until is not None and until not in NAMES:
        raise InputError(f"--until names no stage '{until}' (stages: {', '.join(NAMES)})")
    config = with_ancestor(config)
    run = Run(config, folder or config.runs / config.name, on_progress or (lambda *_: None), force=force)
    check(run)
    return _run_stages(run, STAGES, until) if config.data.folds is None else _run_folds(run, until)


def _train_label_model(run: Run) -> None:
    """The stages of the label model, in a folder of their own, on the cohort as the run has prepared it."""
    known = {}
    if world(run.device).first:
        known = {"prepared": read_json(run.folder / STATE)["prepared"]["result"]}
    _run_stages(label_run(run), _OF_A_MODEL, "model", known)


def run_utility(
    config: Config, *, folder: Path | None = None, on_progress: StageProgress | None = None
) -> Mapping[str, Any]:
    """Measure what an experiment's synthetic pairs are worth to a segmenter, by the section ``utility``.

    The run folder is the experiment's own; everything made for it lies in ``utility/`` there. A killed evaluation goes
    on where it stopped, and what is unchanged is not done again.

    Args:
        config: the experiment.
        folder: the run folder, ``runs/NAME`` by default.
        on_progress: called with (stage, done, total, remark).

    Returns:
        The summary, as in ``utility/utility.json``; see :func:`medgen.evaluation.utility.summary.summarise`.

    Raises:
        InputError: something a user can mend; what was finished before it stays.
    """
    config = with_ancestor(config)
    run = Run(config, folder or config.runs / config.name, on_progress or (lambda *_: None))
    check(run)
    utility.check(run)
    if run.phantom is None:
        views.views(run, data.read_columns(run))  # refused now, and not after the cohort is prepared
    _run_stages(run, STAGES, "prepared")
    return utility.evaluate(run, lambda one, last: _run_stages(one, STAGES, last))


def _run_folds(run: Run, until: str | None) -> Mapping[str, Any]:
    """What all folds share, each fold, and the dataset of them all."""
    if run.phantom is None:
        folds.outer(run)  # refused now, and not after the cohort is prepared
    shared = ("cohort", "prepared")
    _run_stages(run, STAGES, until if until in shared else "prepared")
    if until in shared:
        return {}
    each = folds.fold_runs(run)
    reports = {fold.folder.name: _run_stages(fold, STAGES, until) for fold in each}
    if until not in (None, STAGES[-1].name):
        return {}
    _run_stages(run, (COMBINED,), COMBINED.name)
    # Under torchrun only the first process has reports.
    failures = [f"{name}: {failure}" for name, report in reports.items() for failure in report.get("failures", ())]
    return {"folds": reports, "failures": failures}


def _run_stages(
    run: Run, stages: tuple[Stage, ...], until: str | None, known: Mapping[str, str] | None = None
) -> Mapping[str, Any]:
    """Run stages in order; the report, where the last of them is reached. ``known`` are results of others' stages."""
    if not world(run.device).first:
        return _follow(run, stages, until)
    busy = f"{run.folder} is in use by another process; wait until it is done, or choose another folder"
    with alone(run.folder / _LOCK, busy):
        return _lead(run, stages, until, known)


def _lead(run: Run, stages: tuple[Stage, ...], until: str | None, known: Mapping[str, str] | None) -> Mapping[str, Any]:
    write_text(run.folder / "config.yaml", run.config_text())
    state = read_state(run.folder)
    hashes = dict(known or {})
    for stage in stages:
        if not stage.skip(run):
            hashes[stage.name] = run_stage(run, stage, state, hashes, STAGES)
            stage.gate(run)
        if stage.name == until and stage is not STAGES[-1]:
            return {}
    report: Mapping[str, Any] = read_json(run.folder / "report" / "report.json")
    return report


def _follow(run: Run, stages: tuple[Stage, ...], until: str | None) -> Mapping[str, Any]:
    """What the other processes of a distributed run do: wait for the first, and take part where it says so."""
    quiet = replace(run, progress=lambda *_: None)
    for stage in stages:
        if not stage.skip(run) and world().agree(0.0):
            stage.work(quiet)
        if stage.name == until:
            break
    return {}
