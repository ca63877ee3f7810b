"""Views of a cohort that show few of its labels, one for each size of an evaluation."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from medgen.cohort import splits
from medgen.cohort.case import Case, Cohort
from medgen.errors import InputError
from medgen.evaluation.utility.trial import Size
from medgen.stages.run import Fold, Run


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
    if splits.any_made(cohort.cases):
        raise InputError(f"{cohort.root} holds synthetic cases; give the utility a cohort of real ones alone")
    apart = splits.set_apart(cohort.cases, u.held_out, seed)
    pool = [replace(case, split=None) for case in cohort.cases if case.case_id not in apart]
    order = splits.nested([case for case in pool if case.has_label], seed)
    found: dict[Size, View] = {}
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
