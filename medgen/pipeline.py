"""The stages of one experiment: run in order, each resumable, each skipped while nothing it depends on has changed.

A stage's hash covers its part of the config, its version and the hashes of the stages it reads. A finished stage of
another hash is never overwritten: it is set aside in ``stale/`` and comes back when its config does.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from medgen.config import Config
from medgen.edit import chain as edits
from medgen.errors import InputError
from medgen.evaluation import codec_quality
from medgen.files import alone, digest, read_json, sha256_file, write_json, write_text
from medgen.generation.masks import given_identity
from medgen.generation.model import LABELS
from medgen.stages import (
    codec,
    copies,
    data,
    diffusion,
    distil,
    encoding,
    folds,
    product,
    quality,
    segmented,
    utility,
    views,
)
from medgen.stages.ancestor import hashed, is_frozen, with_ancestor
from medgen.stages.check import check
from medgen.stages.masks import follows_masks, label_run
from medgen.stages.run import SEGMENTED, Run, StageProgress
from medgen.steering import chain
from medgen.store.run_state import OUTDATED, STATE, read_state
from medgen.training.distributed import world

_LOCK = ".lock"
_SAMPLING = {"sampler", "sampler_options", "steps", "guidance", "steering", "gates"}
# They change no weight of a training that reaches its end.
_UNHASHED = {"log_every", "validate_every", "checkpoint_seconds", "rollbacks"}


@dataclass(frozen=True)
class Stage:
    """One stage.

    Attributes:
        name: also of its folder.
        work: does it, resuming what is there.
        part: the part of the config (and of the input) it depends on.
        reads: stages whose results it reads.
        version: raised when its results change for the same config.
        extent: how much of it is asked for; more is added to what is there, and changes nothing of it.
        by_content: later stages know its result by what it made, not by what it was told.
        keeps: its folder keeps what is still valid by itself, and so is never set aside.
        skip: whether the experiment has no need of it.
        place: what it leaves in the run folder, where that is not a folder of its name; goes with ``keeps``.
        gate: refuses to go on from its result; asked every time, also where the stage is unchanged.
        together: all processes of a distributed run take part; the other stages are the first process's own.
    """

    name: str
    work: Callable[[Run], None]
    part: Callable[[Run], Any]
    reads: tuple[str, ...] = ()
    version: int = 1
    extent: Callable[[Run], int] = lambda run: 0
    by_content: bool = False
    keeps: bool = False
    skip: Callable[[Run], bool] = lambda run: False
    place: str = ""
    gate: Callable[[Run], None] = lambda run: None
    together: bool = False


def _phantom(run: Run) -> Any:
    return run.phantom.model_dump(exclude={"n"}) if run.phantom else None


def _training(section: Any) -> Any:
    raw = section.model_dump(mode="json", exclude={"accept"})
    raw["training"] = {k: v for k, v in raw["training"].items() if k not in _UNHASHED}
    if raw["training"]["accumulate"] == 1:
        del raw["training"]["accumulate"]  # what is off adds nothing, so that older runs are not trained again
    # Ranks take batches of their own: more processes are another training.
    return raw if world().size == 1 else {**raw, "processes": world().size}


def _prepared(run: Run) -> Any:
    if run.fold is not None:
        hidden = [sorted(run.fold.hidden)] if run.fold.hidden else []
        return [read_json(run.fold.shared / "prepared" / "index.json"), sorted(run.fold.sides.items()), *hidden]
    later = {"phantom", "root", "folds", "unlabelled", "segmenter_steps"}  # of other stages
    source = run.config.data.model_dump(mode="json", exclude=later)
    columns = run.config.covariates.schema_file
    schema = sha256_file(columns) if columns and columns.is_file() else None
    return {
        "data": source,
        "schema": schema,
        "files": data.fingerprint(run),
        "prepare": run.prepare_options().to_json(),
        "seed": run.config.seed,
    }


def _codec(run: Run) -> Any:
    # A codec that is kept as it is depends on nothing that the config says of its training.
    how = "frozen" if is_frozen(run) else _training(run.config.autoencoder)
    weights = run.config.autoencoder.losses.perceptual_weights
    by_content = [sha256_file(weights)] if weights and weights.is_file() else []
    return [how, run.config.seed, *by_content, *hashed(run, "autoencoder"), *_route(run)]


def _route(run: Run) -> list[str]:
    """What adds nothing to a hash where image and label share the latent, as they always did."""
    return [run.config.pairs] if follows_masks(run) else []


def _label_model(run: Run) -> Any:
    """All that the label model's own stages depend on, beside the prepared cohort."""
    inner = label_run(run)
    sampling = inner.config.generate.model_dump(mode="json", include=_SAMPLING)
    return [_codec(inner), _latents(inner), _diffusion(inner), sampling, run.config.licence]


def _latents(run: Run) -> Any:
    copied = bool(run.config.latents.copies)
    mine = run.config.latents.model_dump(mode="json", exclude=set() if copied else {"copies", "augment"})
    more = [*([copies.VERSION] if copied else []), *hashed(run, "latents")]
    return [mine, *more] if more else mine


def _diffusion(run: Run) -> Any:
    d = run.config.diffusion
    # Which weights are kept depends on when they are validated.
    how = [_training(d), d.training.validate_every]
    return [how, run.covariate_options(), run.config.seed, *hashed(run, "diffusion")]


def _model(run: Run) -> Any:
    # What its card says beside that. Thresholds that a codec passes change no model.
    return [
        run.config.generate.model_dump(mode="json", include=_SAMPLING),
        chain.recorded(run.config.generate.steering),  # another model in the same folder is another steering
        run.config.licence,
        quality.shortfall(run),
    ]


def _distilled(run: Run) -> Any:
    return [_training(run.config.distil), run.config.seed] if run.config.distil else []


def _synthetic(run: Run) -> Any:
    g = run.config.generate
    table = sha256_file(g.requests) if g.requests and g.requests.is_file() else None
    how = g.model_dump(mode="json", exclude={"batch", "n", "writers", "masks", "edits"})
    masks: list[Any] = [given_identity(g.masks.expanduser())] if g.masks else []
    masks += [edits.recorded(g.edits)] if g.edits else []
    return [how, chain.recorded(g.steering), table, run.gate_setting().recorded(), *masks]


def _report(run: Run) -> Any:
    off = set() if run.config.report.fidelity else {"fidelity"}
    return [run.config.report.model_dump(mode="json", exclude=off), quality.shortfall(run)]


def _prepare(run: Run) -> None:
    (data.prepared if run.fold is None else folds.write_view)(run)


def _combined(run: Run) -> Any:
    samples = [read_json(fold.folder / STATE)["synthetic"]["result"] for fold in folds.fold_runs(run)]
    store = read_json(run.folder / "prepared" / "index.json")
    return [run.config.generate.format, samples, folds.outer(run), data.fingerprint(run), store]


STAGES = (
    Stage(
        "cohort",
        data.cohort,
        _phantom,
        extent=lambda run: run.phantom.n if run.phantom else 0,
        by_content=True,
        skip=lambda run: run.phantom is None or run.fold is not None,
    ),
    Stage("prepared", _prepare, _prepared, ("cohort",), by_content=True, keeps=True),
    Stage(
        SEGMENTED,
        segmented.segmented,
        lambda run: [run.config.data.segmenter_steps, run.config.seed],
        ("prepared",),
        skip=lambda run: not segmented.needed(run),
    ),
    Stage(
        LABELS,
        lambda run: _train_label_model(run),  # defined below, from the stages
        _label_model,
        ("prepared", SEGMENTED),
        keeps=True,
        skip=lambda run: not follows_masks(run),
        gate=lambda run: quality.gate(label_run(run)),
        together=True,
    ),
    Stage("autoencoder", codec.autoencoder, _codec, ("prepared", SEGMENTED), together=True),
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
    Stage("latents", encoding.latents, _latents, ("prepared", SEGMENTED, "autoencoder"), version=2),
    Stage("diffusion", diffusion.diffusion, _diffusion, ("prepared", SEGMENTED, "latents"), version=2, together=True),
    Stage("model", product.model, _model, ("prepared", SEGMENTED, LABELS, "latents", "diffusion"), version=2),
    Stage(
        "distilled",
        distil.distilled,
        _distilled,
        ("model",),
        skip=lambda run: run.config.distil is None,
        together=True,
    ),
    Stage("synthetic", product.synthetic, _synthetic, ("model", "distilled"), extent=lambda run: run.config.generate.n),
    Stage(
        "report",
        product.report,
        _report,
        ("synthetic", "prepared", "quality"),
    ),
)
NAMES = tuple(stage.name for stage in STAGES)
_OF_A_MODEL = tuple(s for s in STAGES if s.name in ("autoencoder", "quality", "latents", "diffusion", "model"))
COMBINED = Stage(folds.COMBINED, folds.combined, _combined)
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
            hashes[stage.name] = _run_stage(run, stage, state, hashes)
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


def _run_stage(run: Run, stage: Stage, state: dict[str, Any], hashes: Mapping[str, str]) -> str:
    """Run one stage if it must; returns what later stages hash: the identity of its result."""
    read = {name: hashes[name] for name in stage.reads if name in hashes}
    mine = digest([stage.name, stage.version, stage.part(run), read])
    extent = stage.extent(run)
    before = state.get(stage.name, {})
    folder = run.folder / (stage.place or stage.name)
    same = before.get("hash") == mine and before.get("extent", 0) <= extent
    done = same and bool(before.get("finished")) and before.get("extent", 0) == extent
    if done and folder.exists():
        if before.pop(OUTDATED, False):
            write_json(run.folder / STATE, state)
        run.progress(stage.name, 1, 1, "unchanged")
        world().agree(0.0)
        return str(before["result"])
    if before and not same and folder.exists() and not stage.keeps:
        _set_aside(run.folder, stage.name, f"{before['hash']}-{before.get('extent', 0)}")
    # What is made again after it was lost is not what it was: a training that ends by the clock never repeats.
    made = (before.get("made", 0) if same else 0) + done
    told = {"hash": mine, "extent": extent, **({"made": made} if made else {})}
    # In this order a kill at any point leaves a state that does not call another config's result finished.
    state[stage.name] = {**told, "finished": False}
    readers = [] if same and not done else _mark_readers(state, stage.name)
    write_json(run.folder / STATE, state)
    _bring_back(run.folder, stage.name, f"{mine}-{extent}")
    start = time.monotonic()
    if stage.together:
        world().agree(1.0)
    stage.work(run)
    as_told = [mine, extent, *([made] if made else [])]
    result = data.result_digest(run, stage.name) if stage.by_content else digest(as_told)
    seconds = round(time.monotonic() - start, 1)
    state[stage.name] = {**told, "finished": True, "result": result, "seconds": seconds}
    if result == before.get("result"):
        for name in readers:
            state[name].pop(OUTDATED)
    write_json(run.folder / STATE, state)
    if not stage.together:
        world().agree(0.0)
    return result


def _mark_readers(state: dict[str, Any], changed: str) -> list[str]:
    """Mark what was made from a stage, at first or second hand, and is finished; which were marked now."""
    reached, marked = {changed}, []
    for stage in STAGES:  # in order, so that whoever reads comes after what it reads
        if reached.intersection(stage.reads):
            reached.add(stage.name)
            known = state.get(stage.name, {})
            if known.get("finished") and not known.get(OUTDATED):
                known[OUTDATED] = True
                marked.append(stage.name)
    return marked


def _set_aside(run_folder: Path, name: str, key: str) -> None:
    stale = run_folder / "stale"
    stale.mkdir(exist_ok=True)
    target = stale / f"{name}-{key}"
    for number in range(1, 1000):  # one unfinished before it may have the name
        if not target.exists():
            break
        target = stale / f"{name}-{key}-{number}"
    (run_folder / name).rename(target)


def _bring_back(run_folder: Path, name: str, key: str) -> None:
    source = run_folder / "stale" / f"{name}-{key}"
    if source.exists() and not (run_folder / name).exists():
        source.rename(run_folder / name)
