"""The utility of an experiment: a generator for each number of labels, and what its pairs are worth to a segmenter."""

import difflib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from medgen.cohort.case import numbered
from medgen.errors import BoundError, InputError
from medgen.evaluation.utility import table
from medgen.evaluation.utility.arms import ARMS, lacks
from medgen.evaluation.utility.plot import write_plot
from medgen.evaluation.utility.run import Bench
from medgen.evaluation.utility.strata import strata_of
from medgen.evaluation.utility.summary import About, per_case, summarise
from medgen.evaluation.utility.trial import Size, Trial, trials
from medgen.files import atomic, write_json, write_text
from medgen.stages import data
from medgen.stages.run import Run, StageProgress
from medgen.stages.utility_size import FOLDER, SizeRun, Stages
from medgen.stages.views import primary_size, views
from medgen.store.prepared import Prepared
from medgen.training.distributed import world

_BAR = 1000  # ticks a trial


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


def evaluate(run: Run, stages: Stages) -> dict[str, Any]:
    """Run every trial and write ``utility.json``, ``utility.csv``, ``utility.md`` and the plot.

    Args:
        run: the experiment, its cohort prepared.
        stages: runs the stages of a generator.

    Returns:
        The summary, see :func:`medgen.evaluation.utility.summary.summarise`.

    Raises:
        InputError: see :func:`medgen.stages.views.views`; or what a stage or a training says.
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
    asked = trials(
        u.sizes,
        u.arms,
        u.seeds,
        share=u.share,
        synthetic=u.synthetic,
        sweep_size=at,
        sweep=u.sweep,
        sweep_cases=u.sweep_cases,
    )
    skipped = {(t.size, t.arm): why for t in asked if (why := lacks(t.arm, len(seen[t.size].unlabelled)))}
    asked = [t for t in asked if (t.size, t.arm) not in skipped]
    # What needs no generator comes first: it is soon done, and says what there is to gain.
    ahead = [t for t in asked if not t.draws]
    results: dict[Trial, Mapping[str, Any]] = {}
    generators: dict[Size, Mapping[str, Any]] = {}
    failures: list[str] = []
    sizes = {size: SizeRun(run, bench, size, view, stages) for size, view in seen.items()}
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
    numbers = numbered(store.cases[i].subject_id for i in held_out)
    about = About(
        name=c.name,
        labels=store.label_names[1:],
        subjects=tuple(f"s{numbers[store.cases[i].subject_id]}" for i in held_out),
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
    if run.config.generate.masks is not None:
        found.append("masks are given (generate.masks); they must not be those of held-out cases")
    return found


def _ticks(progress: StageProgress, number: int, total: int, trial: Trial) -> Callable[[float, str], None]:
    """Progress of one trial among all."""

    def tell(share: float, remark: str) -> None:
        said = f"{number + 1}/{total} {trial.name}: {remark}"
        progress("arms", round(_BAR * (number + min(share, 1.0))), _BAR * total, said)

    return tell
