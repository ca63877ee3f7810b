"""The utility of an experiment: a generator for each number of labels, and what its pairs are worth to a segmenter."""

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from medgen.cohort import splits
from medgen.cohort.case import Case, Cohort
from medgen.errors import BoundError, InputError
from medgen.evaluation.report import prepare_samples
from medgen.evaluation.utility import table
from medgen.evaluation.utility.arms import ARMS, Material, lacks
from medgen.evaluation.utility.plot import write_plot
from medgen.evaluation.utility.run import Bench, run_trial, teacher_of
from medgen.evaluation.utility.samples import copy_rates, pairs_of_samples
from medgen.evaluation.utility.strata import strata_of
from medgen.evaluation.utility.summary import About, per_case, summarise
from medgen.evaluation.utility.trial import Size, Trial, trials
from medgen.files import atomic, digest, read_json, write_json, write_text
from medgen.generation.model import read_spec
from medgen.segment.task import Pair
from medgen.segment.train import pairs_of
from medgen.stages import data
from medgen.stages.quality import shortfall
from medgen.stages.run import Fold, Run, StageProgress
from medgen.store.prepared import INDEX, Prepared
from medgen.training.distributed import world

FOLDER = "utility"
_BAR = 1000  # ticks a trial

Stages = Callable[[Run, str], object]
"""(run, last stage) -> its stages are run, those unchanged skipped."""


@dataclass(frozen=True)
class View:
    """A cohort at one size.

    Attributes:
        labelled: ids of the cases whose label may be seen.
        unlabelled: ids of the other cases that are not held out.
        fold: the view that the generator gets.
    """

    labelled: tuple[str, ...]
    unlabelled: tuple[str, ...]
    fold: Fold


def check(run: Run) -> None:
    """Everything about the section that can be refused before the cohort is read.

    Raises:
        InputError: an unknown arm, folds, or more processes than one.
    """
    u = run.config.utility
    said = [("utility.arms", arm) for arm in u.arms]
    said += [("utility.primary.arm", u.primary.arm), ("utility.primary.against", u.primary.against)]
    for key, arm in said:
        if arm not in ARMS:
            near = difflib.get_close_matches(arm, ARMS, n=1, cutoff=0.4)
            hint = f"did you mean '{near[0]}'?" if near else f"they are: {', '.join(ARMS)}"
            raise InputError(f"{key}: there is no arm '{arm}'; {hint}")
    if u.primary.arm == u.primary.against:
        raise InputError(f"utility.primary compares '{u.primary.arm}' with itself; name another arm as against")
    if run.config.data.folds is not None:
        raise InputError("the utility holds out cases of its own; remove data.folds")
    if world(run.device).size > 1:
        raise InputError("the utility runs in one process; start it without torchrun")


def primary_size(run: Run) -> Size:
    """Where the primary comparison is made."""
    u = run.config.utility
    return u.sizes[0] if u.primary.size is None else u.primary.size


def views(run: Run, cohort: Cohort) -> tuple[set[str], dict[Size, View]]:
    """Ids of the cases that no training sees, and what each size sees of the others.

    Raises:
        InputError: no labels, or a size beyond the cohort.
    """
    u, seed = run.config.utility, run.config.seed
    if not any(case.has_label for case in cohort.cases):
        raise InputError(f"{cohort.root} has no label, and the utility is about segmenting; give labelled cases")
    apart = splits.set_apart(cohort.cases, u.held_out, seed)
    pool = [replace(case, split=None) for case in cohort.cases if case.case_id not in apart]
    order = splits.nested([case for case in pool if case.has_label], seed)
    found = {}
    for size in u.sizes:
        count = len(order) if isinstance(size, str) else size
        if count > len(order) or not count:
            raise InputError(
                f"utility.sizes asks for {size} labelled cases, but the cohort has {len(order)} that are not held out; "
                "lower it or write all"
            )
        found[size] = _view(run, cohort, pool, tuple(order[:count]))
    return apart, found


def _view(run: Run, cohort: Cohort, pool: Sequence[Case], labelled: tuple[str, ...]) -> View:
    c, visible = run.config, set(labelled)
    hidden = {case.case_id for case in pool if case.has_label} - visible
    if hidden:  # no need to show held-out labels to anything but the measuring
        inside = {case.case_id for case in pool}
        hidden |= {case.case_id for case in cohort.cases if case.has_label and case.case_id not in inside}
    seen = [case if case.case_id in visible else replace(case, label=()) for case in pool]
    with_label = {case.subject_id for case in seen if case.has_label}
    free = [case for case in seen if case.subject_id not in with_label]
    subjects, unlabelled = ({case.subject_id for case in some} for some in (seen, free))
    wanted = max(1, round(c.data.validation * len(subjects)))
    if len(unlabelled) >= 2 * wanted:
        # Weights are chosen by images whose label is hidden: every label there is trains the generator.
        inner = splits.assign(free, validation=wanted / len(unlabelled), seed=c.seed)
    else:
        inner = splits.assign(seen, validation=c.data.validation, seed=c.seed)
    sides = {case.case_id: "test" for case in cohort.cases} | {case.case_id: "train" for case in pool} | inner
    others = tuple(case.case_id for case in pool if case.case_id not in visible)
    return View(labelled, others, Fold(run.folder, sides, frozenset(hidden)))


def evaluate(run: Run, stages: Stages) -> dict[str, Any]:
    """Run every trial and write ``utility.json``, ``utility.csv``, ``utility.md`` and the plot.

    Args:
        run: the experiment, its cohort prepared.
        stages: runs the stages of a generator.

    Returns:
        The summary, see :func:`medgen.evaluation.utility.summary.summarise`.

    Raises:
        InputError: see :func:`views`; or what a stage or a training says.
    """
    u, c = run.config.utility, run.config
    store = Prepared.open(run.folder / "prepared")  # with the cohort's own labels alone, whatever else a run adds
    if len(store.label_values) < 2:
        raise InputError("the cohort's label maps hold no label beside the background; nothing can be segmented")
    apart, seen = views(run, data.read_columns(run))
    held_out = [i for i, case in enumerate(store.cases) if case.case_id in apart and case.has_label]
    if not held_out:
        raise InputError("no held-out case has a label; the utility cannot be measured")
    strata = _strata(run, store, held_out)
    s, folder = u.segmenter, run.folder / FOLDER
    bench = Bench(folder / "arms", store, held_out, s.widths, s.patch, s.batch, s.learning_rate, u.steps, run.device)
    at = primary_size(run)
    swept = {"sweep_size": at, "sweep": u.sweep, "sweep_cases": u.sweep_cases}
    asked = trials(u.sizes, u.arms, u.seeds, share=u.share, synthetic=u.synthetic, **swept)
    skipped = {(t.size, t.arm): why for t in asked if (why := lacks(t.arm, len(seen[t.size].unlabelled)))}
    asked = [t for t in asked if (t.size, t.arm) not in skipped]
    # What needs no generator comes first: it is soon done, and says what there is to gain.
    ahead = [t for t in asked if not t.draws]
    results: dict[Trial, Mapping[str, Any]] = {}
    generators: dict[Size, Mapping[str, Any]] = {}
    failures: list[str] = []
    sizes = {size: _Size(run, bench, size, view, stages) for size, view in seen.items()}
    for number, t in enumerate(ahead):
        results[t] = sizes[t.size].result(t, _ticks(run.progress, number, len(asked), t))
    for size in u.sizes:
        drawing = [t for t in asked if t.size == size and t.draws]
        if not drawing:
            continue
        try:
            generators[size] = sizes[size].generator(max(t.synthetic or 0 for t in drawing), held_out)
        except BoundError as error:  # its gates reject most draws: a finding about this size, told beside the others
            failures.append(f"size {size}: {error}")
            skipped |= {(size, t.arm): "its generator failed" for t in drawing}
            continue
        for t in drawing:
            results[t] = sizes[size].result(t, _ticks(run.progress, len(results), len(asked), t))
    number_of = {subject: f"s{k}" for k, subject in enumerate(dict.fromkeys(store.cases[i].subject_id for i in held_out))}
    about = About(
        name=c.name,
        labels=store.label_names[1:],
        subjects=tuple(number_of[store.cases[i].subject_id] for i in held_out),
        strata=strata,
        steps=u.steps,
        counts={size: len(view.labelled) for size, view in seen.items()},
        primary=(at, u.primary.arm, u.primary.against),
        usual=(u.share, u.synthetic),
        generators=generators,
        skipped=[(size, arm, why) for (size, arm), why in skipped.items()],
        notes=_notes(run),
        failures=failures,
    )
    results = {t: results[t] for t in asked if t in results}
    summary = summarise(results, about)
    with atomic(folder / "utility.csv") as temporary:
        per_case(results, about).to_csv(temporary, index=False)
    write_plot(summary, folder / table.PLOT)
    write_text(folder / "utility.md", table.as_markdown(summary))
    write_json(folder / "utility.json", summary)
    return summary


class _Size:
    """One size of an evaluation: its view of the cohort, its generator, its trials."""

    def __init__(self, run: Run, bench: Bench, size: Size, view: View, stages: Stages) -> None:
        self.bench, self.size, self.view, self.stages = bench, size, view, stages
        n = max([run.config.utility.synthetic, *(run.config.utility.sweep_cases if size == primary_size(run) else ())])
        config = run.config.model_copy(update={"generate": run.config.generate.model_copy(update={"n": n})})
        self.run = Run(
            config,
            run.folder / FOLDER / f"size-{size}",
            _named(run.progress, f"size-{size}"),
            # What the codec keeps at few labels is part of the answer; the report says where it is below its bounds.
            force=True,
            fold=view.fold,
        )
        stages(self.run, "prepared")
        self.store = Prepared.open(self.run.folder / "prepared")
        self.inputs: list[Any] = [digest(read_json(self.run.folder / "prepared" / INDEX)), list(view.labelled)]
        self.samples: list[Pair] = []
        self.made = ""

    def result(self, trial: Trial, tell: Callable[[float, str], None]) -> dict[str, Any]:
        """The result of a trial."""
        inputs = [*self.inputs, self.made] if trial.draws else self.inputs
        place = {case.case_id: i for i, case in enumerate(self.store.cases)}
        material = Material(
            labelled=pairs_of(self.store, [place[i] for i in self.view.labelled]),
            unlabelled=[self.store.image(place[i]) for i in self.view.unlabelled],
            synthetic=lambda: self.samples,
            teacher=lambda seed: teacher_of(self.bench, replace(trial, seed=seed), material, self.inputs, tell),
            spacing_mm=self.store.spacing_mm,
        )
        return run_trial(self.bench, trial, material, inputs, tell)

    def generator(self, n: int, held_out: Sequence[int]) -> dict[str, Any]:
        """Train the generator, draw and prepare its pairs; what is known of them."""
        self.stages(self.run, "synthetic")
        self.made = str(read_json(self.run.folder / "stages.json")["synthetic"]["result"])
        prepared = prepare_samples(
            self.run.folder / "synthetic",
            self.run.folder / "samples",
            self.store,
            self.run.prepare_options(),
            format=self.run.config.generate.format,
            workers=self.run.config.workers or 1,
            on_progress=self.run.stage_progress("samples"),
        )
        self.samples = pairs_of_samples(prepared, self.store)
        train, chosen = self.run.train_cases(), self.samples[:n]
        trained = read_spec(self.run.folder / "model")[0].trained_on
        return {
            "train": int(trained["cases"]),
            "train_labelled": sum(self.store.cases[i].has_label for i in train),
            "samples": len(self.samples),
            "codec_below": shortfall(self.run),
            "copies": self._copies(train, held_out, [image for image, _ in chosen]),
        }

    def _copies(self, train: Sequence[int], held_out: Sequence[int], images: Sequence[Any]) -> dict[str, Any]:
        """The rates of copies, measured once for the same samples."""
        path: Path = self.run.folder / "copies.json"
        identity = digest([self.inputs, self.made, len(images), list(held_out)])
        if path.is_file() and (before := read_json(path)).get("identity") == identity:
            return dict(before["figures"])
        found = copy_rates(self.store, train, held_out, images)
        write_json(path, {"identity": identity, "figures": found})
        return found


def _strata(run: Run, store: Prepared, held_out: Sequence[int]) -> tuple[str, ...]:
    """The strata of the held-out cases; empty for none."""
    said, use = run.config.utility.strata, run.config.covariates.use
    if said == "none":
        return ()
    if said is None:
        known = [name for name in (use or store.schema.names) if name in store.schema]
        said = next((name for name in known if not store.schema[name].is_text), None)
    return strata_of(store, held_out, said) if said is not None else ()


def _notes(run: Run) -> list[str]:
    found = []
    if run.config.init is not None:
        found.append("generators start from another model (init); it must not have been trained on held-out cases")
    if run.config.generate.requests is not None:
        found.append("samples are asked for by a table (generate.requests); it must not tell of held-out cases")
    if getattr(run.config.generate, "masks", None) is not None:
        found.append("masks are given (generate.masks); they must not be those of held-out cases")
    return found


def _ticks(progress: StageProgress, number: int, total: int, trial: Trial) -> Callable[[float, str], None]:
    """Progress of one trial among all."""

    def tell(share: float, remark: str) -> None:
        said = f"{number + 1}/{total} {trial.name}: {remark}"
        progress("arms", round(_BAR * (number + min(share, 1.0))), _BAR * total, said)

    return tell


def _named(progress: StageProgress, name: str) -> StageProgress:
    return lambda stage, done, total, remark: progress(f"{name} {stage}", done, total, remark)
