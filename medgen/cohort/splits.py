"""Which cases train and which validate: by subject, whatever the order of the cases, lightly stratified.

Stratified: subjects are lined up by whether they have a label, then by their first covariate of words (in alphabetical
order of the names), then by their first numeric one, and cut into as many runs of neighbours as validation has places;
one subject of each run, drawn by (seed, subject), validates. So both sides see labelled and unlabelled, young and old.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

from medgen.cohort.case import Case, Cohort
from medgen.errors import InputError

SIDES = ("train", "val", "test")


def split(cohort: Cohort, *, validation: float = 0.2, seed: int = 0) -> Cohort:
    """The cohort with every case on its side; see :func:`assign`."""
    sides = assign(cohort.cases, validation=validation, seed=seed)
    return cohort.with_cases(tuple(replace(case, split=sides[case.case_id]) for case in cohort.cases))


def assign(cases: Iterable[Case], *, validation: float = 0.2, seed: int = 0) -> dict[str, str]:
    """The side of every case: ``train``, ``val`` or ``test``.

    A side that the cohort fixes is kept, and its subject's other cases follow. A synthetic case trains, or is unused
    (``test``) where the cohort says so: it must not judge, and it counts for no share. Among the subjects left, as many
    validate as bring the share of validation to ``validation``, at least one and never all. Only where the cohort
    fixes every subject to train does validation take from those, because it must not be empty; a single subject
    trains.

    Args:
        cases: in any order.
        validation: share of the subjects that are not for testing.
        seed: another seed, another draw.

    Raises:
        InputError: the share is not in (0, 1), or a subject is fixed to two sides.
    """
    if not 0 < validation < 1:
        raise InputError(f"the share of validation must lie between 0 and 1, not {validation:g}")
    subjects = _subjects(cases)
    side = {subject: fixed for subject, own in subjects.items() if (fixed := _fixed(subject, own)) is not None}
    pool = [s for s in subjects if side.get(s) != "test" and not any_made(subjects[s])]
    free = [s for s in pool if s not in side]
    had = sum(side.get(s) == "val" for s in pool)
    wanted = min(max(1, round(validation * len(pool))), len(pool) - 1) - had
    takes = free if free or had else pool
    for subject in takes:
        side[subject] = "train"
    wanted = min(wanted, len(takes))
    for run in _runs(_lined_up(takes, subjects, seed), wanted):
        side[min(run, key=lambda s: _lot(seed, s))] = "val"
    return {case.case_id: side[subject] for subject in subjects for case in subjects[subject]}


def folds(cases: Iterable[Case], k: int, seed: int = 0) -> list[dict[str, str]]:
    """K assignments for cross-validation: each subject validates once; ``test`` stays, other fixed sides are ignored.

    Synthetic cases train in every fold.

    Raises:
        InputError: k below 2 or above the number of subjects.
    """
    subjects = _subjects(cases)
    test = {s for s, own in subjects.items() if _fixed(s, own) == "test"}
    pool = [s for s in subjects if s not in test and not any_made(subjects[s])]
    if not 2 <= k <= len(pool):
        raise InputError(f"{k} folds need at least 2 folds and a subject each, but the cohort has {len(pool)} subjects")
    lined = _lined_up(pool, subjects, seed)
    fold: dict[str, int] = {}
    for start in range(0, len(lined), k):  # neighbours fall into different folds
        # The last run may be short; its subjects start at a fold of their own so that fold 0 is not always larger.
        run = sorted(lined[start : start + k], key=lambda s: _lot(seed, s))
        fold |= {s: (i + start // k) % k for i, s in enumerate(run)}
    return [
        {
            case.case_id: "test" if s in test else "val" if fold.get(s) == j else "train"
            for s, own in subjects.items()
            for case in own
        }
        for j in range(k)
    ]


def given(cases: Iterable[Case], said: Sequence[Mapping[str, Sequence[str]]], said_in: Path) -> list[dict[str, str]]:
    """Assignments that a file gives: in each fold a case it does not name is on the side ``test``, and so unused.

    Args:
        cases: of the cohort.
        said: folds, each ``{"train": case ids, "val": case ids}``.
        said_in: the file, for the message.

    Raises:
        InputError: fewer than 2 folds, an unknown case, a side that is empty, a subject on both sides of a fold, or a
            synthetic case that validates.
    """
    cases = list(cases)
    made = {case.case_id for case in cases if case.synthetic}
    subject = {case.case_id: case.subject_id for case in cases}
    if len(said) < 2:
        raise InputError(f"{said_in} has {len(said)} folds; at least 2 are needed")
    found = []
    for number, fold in enumerate(said):
        if unknown := next((i for side in ("train", "val") for i in fold[side] if i not in subject), None):
            example = next(iter(subject), "none")
            raise InputError(
                f"{said_in} names '{unknown}', which is no case of the cohort (they are such as {example})"
            )
        if not fold["train"] or not fold["val"]:
            raise InputError(f"{said_in}: fold {number} needs cases to train and cases to validate")
        if both := {subject[i] for i in fold["train"]} & {subject[i] for i in fold["val"]}:
            raise InputError(f"{said_in}: fold {number} has cases of '{min(both)}' on both sides; keep a subject whole")
        if judges := made & set(fold["val"]):
            raise InputError(
                f"{said_in}: fold {number} validates on the synthetic case '{min(judges)}'; remove it there"
            )
        side = {i: name for name in ("train", "val") for i in fold[name]}
        found.append({i: side.get(i, "test") for i in subject})
    return found


def within(cases: Iterable[Case], outer: Mapping[str, str], *, validation: float, seed: int) -> dict[str, str]:
    """The sides that a fold's model is trained with: the fold's own validation cases are kept away from it altogether.

    Which weights are kept is decided by held-out cases, and so these must be others: some of the fold's training
    cases. Whatever else is not trained on in the fold is on the side ``test``.

    Args:
        cases: of the cohort.
        outer: an assignment of :func:`folds` or :func:`given`.
        validation: share of the training subjects that validate inside the fold.
        seed: of the draw.
    """
    cases = list(cases)
    # What the cohort fixed was for one split, not for these.
    inside = [replace(case, split=None) for case in cases if outer[case.case_id] == "train"]
    return {case.case_id: "test" for case in cases} | assign(inside, validation=validation, seed=seed)


def set_apart(cases: Iterable[Case], share: float, seed: int = 0) -> set[str]:
    """Ids of the cases that no training may see: those on the cohort's side ``test``, else a share of the labelled.

    A side ``test`` without a label cannot test: it is set apart all the same, and a share is drawn beside it.

    Args:
        cases: of the cohort.
        share: of the labelled subjects, at least one and never all.
        seed: of the draw.

    Raises:
        InputError: fewer than two labelled subjects to draw from, or a subject fixed to two sides.
    """
    subjects = _subjects(case for case in cases if not case.synthetic)
    tests = {s for s, own in subjects.items() if _fixed(s, own) == "test"}
    apart = {case.case_id for s in tests for case in subjects[s]}
    if any(case.has_label for s in tests for case in subjects[s]):
        return apart
    # What the cohort fixed besides was for another split.
    labelled = [
        replace(case, split=None)
        for s, own in subjects.items()
        for case in own
        if s not in tests and any(c.has_label for c in own)
    ]
    if len({case.subject_id for case in labelled}) < 2:
        raise InputError("the cohort needs at least two labelled subjects, one of which can be set apart to test")
    return apart | {i for i, side in assign(labelled, validation=share, seed=seed).items() if side == "val"}


def nested(cases: Iterable[Case], seed: int = 0) -> list[str]:
    """Case ids in an order of which every beginning is about stratified, so that smaller subsets lie in larger ones.

    Subjects are lined up as for a split; the line is halved again and again, and at each halving the two halves take
    turns, by lot which is first. A subject's cases stay together.

    Args:
        cases: to choose from.
        seed: another seed, another order.
    """
    subjects = _subjects(cases)

    def spread(line: Sequence[str], path: str) -> list[str]:
        if len(line) < 2:
            return list(line)
        middle = len(line) // 2
        halves = [spread(line[:middle], path + "0"), spread(line[middle:], path + "1")]
        # An odd line's longer half begins: it has the one that is left over.
        if len(line) % 2 or _lot(seed, f"{path}/order") < _lot(seed, f"{path}/turn"):
            halves.reverse()
        first, second = halves
        turns = [name for pair in zip(first, second, strict=False) for name in pair]
        return turns + first[len(second) :]

    order = spread(_lined_up(list(subjects), subjects, seed), "")
    return [case.case_id for subject in order for case in subjects[subject]]


def _subjects(cases: Iterable[Case]) -> dict[str, list[Case]]:
    result: dict[str, list[Case]] = {}
    for case in sorted(cases, key=lambda c: c.case_id):
        result.setdefault(case.subject_id, []).append(case)
    return result


def any_made(cases: Sequence[Case]) -> bool:
    """Whether a model made any of the cases."""
    return any(case.synthetic for case in cases)


def _fixed(subject: str, cases: Sequence[Case]) -> str | None:
    sides = sorted({case.split for case in cases if case.split is not None})
    for side in sides:
        if side not in SIDES:
            raise InputError(f"subject '{subject}' has the split '{side}'; medgen knows {', '.join(SIDES)}")
    if any_made(cases):
        if "val" in sides:
            raise InputError(f"subject '{subject}' is synthetic and is in the split val; put it into train")
        # One that a fold leaves out belongs to a model that has seen the fold's validation cases.
        return "test" if sides == ["test"] else "train"
    if len(sides) > 1:
        raise InputError(f"subject '{subject}' is in the splits {' and '.join(sides)}; put all its cases into one")
    return sides[0] if sides else None


def _lined_up(names: Sequence[str], subjects: Mapping[str, Sequence[Case]], seed: int) -> list[str]:
    """Subjects in the order of the strata; ties by lot."""

    def key(subject: str) -> tuple[bool, str, float, bytes]:
        own = subjects[subject]
        values = [v for _, v in sorted(own[0].covariates.items())]
        word = next((v for v in values if isinstance(v, str)), "")
        number = next((float(v) for v in values if isinstance(v, (int, float))), 0.0)
        return any(c.has_label for c in own), word, number, _lot(seed, subject)

    return sorted(names, key=key)


def _runs(names: Sequence[str], n: int) -> list[Sequence[str]]:
    """N runs of neighbours, as equal as can be; none for n < 1."""
    cuts = [i * len(names) // n for i in range(n + 1)] if n > 0 else [0]
    return [names[a:b] for a, b in pairwise(cuts)]


def _lot(seed: int, subject: str) -> bytes:
    return hashlib.sha256(f"medgen/split/{seed}/{subject}".encode()).digest()
