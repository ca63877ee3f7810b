"""Findings about covariates and about how many cases there are for what is asked."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from medgen.cohort.case import Cohort
from medgen.cohort.schema import Covariate, Value
from medgen.doctor.finding import Finding, some

_OLDEST = 120.0
_FAR_OUT = 2.0  # a gap of so many ranges of all other values: where 999 and slipped units lie, and people do not
_ENOUGH = 5
_MANY_MISSING = 0.2
FEW_SUBJECTS = 20
_CASES_PER_COLUMN = 5
_FEW_ENCODINGS = 500


def columns(cohort: Cohort) -> Iterator[Finding]:
    """Each column: what is missing, implausible, alone or constant; and what was left out while reading."""
    for note in cohort.notes:
        yield Finding("odd", "reading", note, "nothing, if that is meant")
    fine = []
    for c in cohort.schema.covariates:
        values = {case.case_id: case.covariates.get(c.name) for case in cohort.cases}
        found = list(_column(c, values))
        yield from found
        if not any(f.level in ("wrong", "odd") for f in found):
            fine.append(_said(c))
    if fine:
        yield Finding("ok", "covariates", "; ".join(fine))
    elif not cohort.schema.covariates:
        yield Finding(
            "odd", "covariates", "no column of covariates: nothing but volumes can be asked for", "add a table"
        )


def _said(c: Covariate) -> str:
    if c.is_numeric and c.minimum is not None and c.maximum is not None:
        return f"{c.name} {c.minimum:g} to {c.maximum:g} {c.unit}".rstrip()
    return f"{c.name} (text)" if c.is_text else f"{c.name} {', '.join(c.levels)}"


def _column(c: Covariate, values: Mapping[str, Value]) -> Iterator[Finding]:
    where = f"covariate {c.name}"
    known = {case_id: v for case_id, v in values.items() if v is not None}
    if not known:
        yield Finding("odd", where, "missing in every case", "it will be left out")
        return
    missing = 1 - len(known) / len(values)
    if missing:
        what = f"missing in {len(values) - len(known)} of {len(values)} cases ({missing:.0%})"
        fix = "fill it in if you can; missing cells are trained as such"
        yield Finding("odd" if missing > _MANY_MISSING else "ok", where, what, fix)
    if len(set(known.values())) == 1 and len(known) > 1:
        said = "" if c.is_text else f" ({next(iter(known.values()))})"
        yield Finding("odd", where, f"the same in every case{said}", "it conditions nothing")
    elif not c.is_numeric and not c.is_text:
        alone = sorted(str(level) for level, n in Counter(known.values()).items() if n == 1)
        if alone and len(known) > 2:
            what = f"levels with a single case: {some(alone)}"
            yield Finding("odd", where, what, "samples of such a level would copy that case; merge levels")
    if c.is_numeric:
        yield from _implausible(c, where, {k: float(v) for k, v in known.items() if v is not None})


def _implausible(c: Covariate, where: str, known: Mapping[str, float]) -> Iterator[Finding]:
    low, high = (0.0, _OLDEST) if c.name == "age" else (0.0 if c.unit in ("ml", "mm3") else None, None)
    outside = [
        f"{case_id}: {v:g}"
        for case_id, v in known.items()
        if (low is not None and v < low) or (high is not None and v > high)
    ]
    if outside:
        what = f"cannot be right: {some(outside)}"
        yield Finding("wrong", where, what, "mend them or write n/a")
        return
    far = [f"{case_id}: {v:g}" for case_id, v in known.items() if v in far_values(list(known.values()))]
    if far and c.kind == "continuous":
        yield Finding("odd", where, f"far from all others: {some(far)}", "a slipped unit, or a code for missing?")


def far_values(values: Sequence[float]) -> set[float]:
    """Values at either end that a gap of ``_FAR_OUT`` times the range of the others separates from them."""
    distinct = sorted(set(values))
    if len(distinct) < _ENOUGH:
        return set()
    found: set[float] = set()
    for end, next_to_it, other_end in ((0, 1, -1), (-1, -2, 0)):
        gap = abs(distinct[end] - distinct[next_to_it])
        if gap > _FAR_OUT * abs(distinct[next_to_it] - distinct[other_end]):
            found.add(distinct[end])
    return found


def counts(cases: int, training: int, subjects: int, held_out: int, used: Sequence[str]) -> Iterator[Finding]:
    """Whether there are enough cases.

    Args:
        cases: all of the cohort's.
        training: cases that train.
        subjects: that train.
        held_out: cases that validate.
        used: covariates that condition the model.
    """
    what = f"{cases} cases: {training} of {subjects} subjects train, {held_out} validate"
    yield Finding("ok", "cases", what)
    if not held_out:
        yield Finding("odd", "cases", "nothing is held out, so no figure can be trusted", "add subjects")
    if subjects < FEW_SUBJECTS:
        what = f"{subjects} subjects train: a model of so few can repeat them"
        yield Finding("odd", "cases", what, "use the result to try medgen out, and share no samples")
    if used and training < _CASES_PER_COLUMN * len(used):
        what = f"{training} training cases for {len(used)} conditions ({some(list(used))})"
        yield Finding("odd", "cases", what, f"fewer than {_CASES_PER_COLUMN} a condition; choose with covariates.use")


def copies(training: int, asked: int, mirror: bool) -> Iterator[Finding]:
    """Whether a diffusion model would have to learn from so few latents that it comes to repeat them.

    Args:
        training: cases that train.
        asked: augmented encodings of each.
        mirror: whether each is encoded mirrored too.
    """
    sides = 2 if mirror else 1
    latents = training * (1 + asked) * sides
    if latents < _FEW_ENCODINGS:
        what = f"the diffusion model would learn from {latents} latents and come to repeat them"
        need = -(-_FEW_ENCODINGS // (training * sides)) - 1
        yield Finding("odd", "latents.copies", what, f"add augmented encodings, such as latents.copies: {need}")
