"""The doctor: read everything, stop at nothing, say what was found."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from medgen import config as configs
from medgen.cohort import splits
from medgen.cohort.case import Cohort
from medgen.cohort.joint import Joint
from medgen.cohort.phantom import write_phantom
from medgen.cohort.schema import Schema, Value
from medgen.doctor import costs, covariates, images, network_costs
from medgen.doctor.counted import Machine
from medgen.doctor.environment import cores, environment
from medgen.doctor.facts import CaseFacts, collect, without_fault
from medgen.doctor.finding import Diagnosis, Finding, Level, number
from medgen.errors import InputError
from medgen.generation.model import load_model
from medgen.prepare.options import PrepareOptions
from medgen.stages.ancestor import carried_over, check_ancestor, with_ancestor
from medgen.stages.check import check
from medgen.stages.conditions import conditions, fit_encoder, plan_of
from medgen.stages.data import read_columns
from medgen.stages.quality import check_adversary, check_sides, thresholds
from medgen.stages.run import Run, StageProgress
from medgen.training.precision import device_of

__all__ = ["diagnose"]

_PHANTOMS = 4
_FAR = 1.34


@dataclass
class _Notes:
    """What is written down on the way."""

    measure: bool
    machine: Machine | None = None
    networks: bool = False
    findings: list[Finding] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)

    def add(self, level: Level, where: str, what: str, fix: str = "") -> None:
        self.findings.append(Finding(level, where, what, fix))

    @contextmanager
    def noting(self, where: str, fix: str = "") -> Iterator[None]:
        """Turn what a stage would refuse into a finding."""
        try:
            yield
        except InputError as error:
            self.add("wrong", where, str(error), fix)


def diagnose(
    path: str | Path,
    *,
    measure: bool = True,
    overrides: tuple[str, ...] = (),
    machine: Machine | None = None,
    on_progress: StageProgress | None = None,
) -> Diagnosis:
    """Look at a cohort, an experiment file, a run folder or a model folder.

    Every case is read, whatever is wrong with another.

    Args:
        path: what to look at.
        measure: also prepare one case and, for an experiment or a model, take a few real steps of each stage, in at
            most about a minute.
        overrides: ``a.b=c`` for an experiment.
        machine: compute the costs of an experiment for this machine instead of measuring them on the one at hand.
        on_progress: called with (stage, done, total, remark).

    Raises:
        InputError: there is nothing at the path.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path} does not exist; give a cohort, an experiment file or a model folder")
    tell = on_progress or (lambda *_: None)
    notes = _Notes(measure, machine)
    if (path / "model.json").is_file():
        if overrides:
            raise InputError(f"{path} is a model folder, of which --set changes nothing; leave it out")
        kind = "model"
        _model(path, notes)
    elif path.suffix in (".yaml", ".yml") or (path / "stages.json").is_file():
        kind = "experiment"
        notes.networks = True
        with notes.noting("config"):
            experiment = configs.load(path / "config.yaml" if path.is_dir() else path, overrides)
            experiment = with_ancestor(experiment)
            _experiment(experiment, path if path.is_dir() else experiment.runs / experiment.name, notes, tell)
    else:
        kind = "cohort"
        raw = {"name": "cohort", "data": {"root": str(path)}}
        _cohort(Run(configs.build(raw, str(path), overrides), Path(), tell), notes)
        notes.findings += environment(device_of("auto"), Path())
    return Diagnosis(str(path), kind, tuple(notes.findings), notes.figures)


def _experiment(experiment: configs.Config, folder: Path, notes: _Notes, tell: StageProgress) -> None:
    run = Run(experiment, folder, tell)
    with notes.noting("config"):
        check(run)
        notes.add("ok", "config", "every key, kind and option is known")
    if run.phantom is not None:
        _phantom(run, notes)
    elif run.root.exists():  # else check has said so
        _cohort(run, notes)
    device = device_of("cpu")
    with notes.noting("machine"):
        device = run.device
    notes.findings += environment(device, folder)


def _phantom(run: Run, notes: _Notes) -> None:
    """Look at a few cases of the embedded cohort: they are all of a kind."""
    p = run.phantom
    assert p is not None
    with tempfile.TemporaryDirectory() as name:
        few = min(p.n, _PHANTOMS)
        write_phantom(Path(name), n=few, spacing_mm=p.spacing_mm, seed=p.seed, missing=p.missing, workers=1)
        data = run.config.data.model_copy(update={"root": Path(name), "phantom": None})
        notes.add("ok", "reading", f"the embedded cohort of {p.n} phantoms, judged by {few} of them")
        _cohort(Run(run.config.model_copy(update={"data": data}), run.folder, run.progress), notes, phantoms=p.n)


def _cohort(run: Run, notes: _Notes, *, phantoms: int | None = None) -> None:
    """Findings about a run's cohort; of the embedded one a few cases stand for ``phantoms``."""
    c = run.config
    cohort: Cohort | None = None
    options: PrepareOptions | None = None
    with notes.noting("reading"):
        cohort = read_columns(run)
    with notes.noting("config"):
        options = run.prepare_options()
    if cohort is None or options is None:
        return
    unknown = [n for n in options.channels or () if n not in cohort.channels]
    if unknown:
        what = f"no channel '{', '.join(unknown)}' (there are: {', '.join(cohort.channels)})"
        notes.add("wrong", "prepare.channels", what, "name channels that are there")
        options = replace(options, channels=None)
    total = len(cohort.cases)
    facts = collect(
        cohort, options, workers=c.workers or cores(), on_done=lambda done: run.progress("reading", done, total, "")
    )
    notes.findings += images.geometry(facts)
    if phantoms is None:
        notes.figures |= {"format": cohort.format, "cases": total, "readable": len(without_fault(facts))}
        notes.add("ok", "reading", _summary(cohort))
        notes.findings += images.unreadable(facts)
        notes.findings += images.splits(cohort)
        notes.findings += images.intensities(facts)
        notes.findings += images.twins(facts)
        notes.findings += images.labels(cohort, facts)
        notes.findings += images.faces(facts)
        notes.findings += covariates.columns(cohort)
    if without_fault(facts) and not images.split_subjects(cohort):
        with notes.noting("run"):
            _ahead(run, cohort, facts, options, notes, phantoms)


def _summary(cohort: Cohort) -> str:
    subjects = len({case.subject_id for case in cohort.cases})
    partial = [n for n in cohort.channels if any(n not in case.images for case in cohort.cases)]
    lacking = f" (not in every case: {', '.join(partial)})" if partial else ""
    channels = f"channels {', '.join(cohort.channels)}{lacking}"
    return f"{cohort.format}: {number(len(cohort.cases), 'case')} of {number(subjects, 'subject')}, {channels}"


def _ahead(
    run: Run, cohort: Cohort, facts: list[CaseFacts], options: PrepareOptions, notes: _Notes, phantoms: int | None
) -> None:
    """What a run would make of the cohort, and what it would cost."""
    c = run.config
    cohort = splits.split(cohort, validation=c.data.validation, seed=c.seed)
    plan = costs.expected_plan(cohort, facts, options)
    cases = phantoms or len(cohort.cases)
    notes.figures |= {"shape": list(plan.shape), "spacing_mm": list(plan.spacing_mm), "stride": options.stride}
    notes.findings += costs.shape_findings(facts, plan, options, cases)
    store = costs.store_like(cohort, facts, plan, options)
    ready = Run(c, run.folder, run.progress, known_store=store)
    train = ready.train_cases()
    if not train:
        if len(store.cases) == len(cohort.cases):  # else what is wrong has been said
            notes.add("wrong", "cases", "no case is left for training", "mend the split")
        return
    training = len(train) * cases // len(store.cases)
    schema, rows = conditions(ready)
    with notes.noting("autoencoder.accept"):
        thresholds(ready)
    with notes.noting("autoencoder.patch"):
        asked = c.autoencoder.patch or plan.shape
        check_adversary(c.autoencoder, [min(n, m) for n, m in zip(asked, plan.shape, strict=True)])
    with notes.noting("mirror"):
        check_sides(ready)
    if ready.ancestor is not None:
        with notes.noting("init"):
            check_ancestor(ready)
            notes.add("ok", "init", carried_over(ready, fit_encoder(ready)[0]))
            _coarser(ready.ancestor.spec.spacing_mm, plan.spacing_mm, notes)
    if phantoms is None:
        subjects = len({store.cases[i].subject_id for i in train})
        held_out = len(ready.held_out_cases())
        notes.findings += covariates.counts(len(cohort.cases), training, subjects, held_out, schema.names)
    if notes.networks:
        notes.findings += covariates.copies(training, c.latents.copies, c.latents.mirror)
        notes.findings += images.fields_of_view(facts, plan, c.diffusion.mask_padding)
    _asked(ready, schema, [rows[i] for i in train], notes, covered=phantoms is None)
    if notes.measure:
        run.progress("measuring", 0, 1, "one case, and a few steps of each stage")
        with notes.noting("prepared"):
            notes.findings.append(costs.prepare_cost(cohort, facts, plan, options, cases, c.workers))
        if notes.networks:
            with notes.noting("costs"):
                found, notes.figures["stages"] = network_costs.experiment_costs(ready, training, cases, notes.machine)
                notes.findings += found
        run.progress("measuring", 1, 1, "")


def _coarser(theirs: Sequence[float], ours: Sequence[float], notes: _Notes) -> None:
    """Say where voxels differ so much from those a model knows that its weights are no start."""
    if max(max(a / b, b / a) for a, b in zip(theirs, ours, strict=True)) > _FAR:
        said = [" x ".join(f"{s:g}" for s in spacing) for spacing in (theirs, ours)]
        what = f"the model knows voxels of {said[0]} mm, the experiment has {said[1]} mm"
        notes.add("odd", "init", what, "set prepare.spacing_mm to the model's, or train longer")


def _asked(run: Run, schema: Schema, rows: list[dict[str, Value]], notes: _Notes, *, covered: bool) -> None:
    """Whether the cohort can answer what the experiment asks of its samples and its report."""
    g = run.config.generate
    if g.where and covered:
        with notes.noting("generate.where"):
            plan_of(run, Joint.fit(schema, rows))
            notes.add("ok", "generate.where", f"the cohort covers {g.where}")
    volume = run.config.report.volume
    if volume and volume not in schema:
        known = ", ".join(schema.names) or "none"
        notes.add("wrong", "report.volume", f"no condition '{volume}' (there are: {known})", "name one, or drop it")


def _model(folder: Path, notes: _Notes) -> None:
    device = device_of("auto")
    with notes.noting("model"):
        model = load_model(folder, device)
        spec = model.spec
        shape, mm = " x ".join(map(str, spec.shape)), " x ".join(f"{s:g}" for s in spec.spacing_mm)
        what = f"{spec.name}: files match their SHA-256; {', '.join(spec.channels)} of {shape} voxels at {mm} mm"
        notes.add("ok", "model", f"{what}; {len(spec.label_names[1:])} labels")
        notes.add("ok", "model", f"can be asked for: {', '.join(model.schema.names) or 'nothing'}")
        imported = spec.trained_on.get("imported")
        if imported:
            notes.add("odd", "model", f"published weights ({imported}): their licence is the source's", "read its card")
        for missed in spec.trained_on.get("codec_below", []):
            notes.add("odd", "model", f"its codec is below the thresholds it was given: {missed}", "train it longer")
        subjects = None if imported else int(spec.trained_on["subjects"])
        if subjects is not None and subjects < covariates.FEW_SUBJECTS:
            what = f"trained on {subjects} subjects: samples can repeat them"
            notes.add("odd", "model", what, "compare samples with the training cases before sharing any")
        if not imported and not spec.trained_on["validation"]:
            notes.add("odd", "model", "nothing was held out in training", "trust no figure of it")
        notes.figures |= {"shape": list(spec.shape), "spacing_mm": list(spec.spacing_mm), "subjects": subjects}
        if notes.measure:
            found, notes.figures["stages"] = network_costs.measure_model(folder, device)
            notes.findings += found
    notes.findings += environment(device, folder)
