"""What preparing a cohort will make and cost: the grid, the padded shape, and the time a case."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from medgen.cohort.case import Cohort
from medgen.cohort.load import LoadedCase, load_case
from medgen.cohort.schema import Value, volume_column
from medgen.doctor import timing
from medgen.doctor.environment import cores
from medgen.doctor.facts import CaseFacts, without_fault
from medgen.doctor.finding import Finding, duration, gib
from medgen.prepare.index import label_names, schema_with_volumes
from medgen.prepare.one import prepare_loaded
from medgen.prepare.options import PrepareOptions
from medgen.prepare.plan import Plan, make_plan
from medgen.prepare.register import load_template
from medgen.prepare.scan import Scan, scan_loaded
from medgen.store.prepared import Prepared, PreparedCase


def expected_plan(cohort: Cohort, facts: Sequence[CaseFacts], options: PrepareOptions) -> Plan:
    """The grid that prepare would choose; with registration nearly so, from the template alone."""
    channels = options.channels or cohort.channels
    scans = [Scan.from_json(f.scan) for f in without_fault(facts)]
    plan = make_plan(scans, replace(options, register="none"), channels)
    if options.register == "none":
        return plan
    template = load_template(options.template)
    alone = scan_loaded(
        LoadedCase({channels[0]: template}, None, None), replace(options, register="none"), channels, said_in="template"
    )
    registered = make_plan([alone], replace(options, register="none", spacing_mm=plan.spacing_mm), channels)
    return replace(registered, label_values=plan.label_values)


def shape_findings(facts: Sequence[CaseFacts], plan: Plan, options: PrepareOptions, cases: int) -> Iterator[Finding]:
    """The padded shape, what it takes on disk, and whether a given shape cuts anything off."""
    voxels = int(np.prod(plan.shape))
    size = voxels * (2 * len(plan.channels) + (len(plan.label_values) > 1))
    about = "about " if options.register != "none" else ""
    shape, mm = " x ".join(map(str, plan.shape)), " x ".join(f"{s:g}" for s in plan.spacing_mm)
    channels = f"{len(plan.channels)} channel{'s' if len(plan.channels) > 1 else ''}"
    what = f"prepare makes {about}{shape} voxels at {mm} mm, multiples of {options.stride}; {channels}"
    yield Finding("cost", "prepared", f"{what}; {gib(size)} a case, {gib(size * cases)} on disk")
    if options.shape is not None and options.register == "none":
        scans = [Scan.from_json(f.scan) for f in without_fault(facts)]
        whole = make_plan(scans, replace(options, shape=None, spacing_mm=plan.spacing_mm), plan.channels)
        if any(n > m for n, m in zip(whole.shape, plan.shape, strict=True)):
            needed = " x ".join(map(str, whole.shape))
            yield Finding(
                "odd", "prepared", f"the given shape cuts something off: all cases need {needed}", "enlarge it"
            )


def store_like(cohort: Cohort, facts: Sequence[CaseFacts], plan: Plan, options: PrepareOptions) -> Prepared:
    """What the prepared cohort would look like, without its arrays; cases that cannot be read are left out."""
    names = label_names(cohort, plan.label_values)
    volumes = [volume_column(name) for name in names[1:]]
    by_id = {case.case_id: case for case in cohort.cases}
    kept = without_fault(facts)
    rows: list[dict[str, Value]] = []
    for f in kept:
        row: dict[str, Value] = {n: by_id[f.case_id].covariates.get(n) for n in cohort.schema.names}
        for value, name in zip(plan.label_values[1:], volumes, strict=True):
            row[name] = None if f.label_ml is None else f.label_ml.get(value, 0.0)
        rows.append(row)
    cases = tuple(
        PreparedCase(
            key=f"c{i:04d}",
            case_id=f.case_id,
            subject_id=f.subject_id,
            split=by_id[f.case_id].split,
            covariates=row,
            has_label=f.label_ml is not None,
            channels_present=tuple(c in by_id[f.case_id].images for c in plan.channels),
            geometry={},
            intensity=(),
            quality={},
        )
        for i, (f, row) in enumerate(zip(kept, rows, strict=True))
    )
    return Prepared(
        folder=Path(),
        name=cohort.name,
        channels=plan.channels,
        label_values=plan.label_values,
        label_names=names,
        schema=schema_with_volumes(cohort.schema, volumes, rows),
        spacing_mm=plan.spacing_mm,
        shape=plan.shape,
        stride=options.stride,
        cases=cases,
    )


def prepare_cost(
    cohort: Cohort, facts: Sequence[CaseFacts], plan: Plan, options: PrepareOptions, cases: int, workers: int | None
) -> Finding:
    """Time of preparing one case, the middle one, both passes."""
    readable = without_fault(facts)
    chosen = readable[len(readable) // 2].case_id
    case = next(c for c in cohort.cases if c.case_id == chosen)
    template = None if options.register == "none" else load_template(options.template)
    timing.reset_peak()
    start = time.perf_counter()
    for _ in range(2):  # each pass reads the files anew
        loaded = load_case(case, plan.channels)
    scan = scan_loaded(loaded, options, plan.channels, template=template, said_in=chosen)
    shared = plan
    if options.register != "none" and plan.low is None:
        shared = replace(plan, low=scan.low, high=scan.high)
    prepare_loaded(loaded, scan, shared, options, said_in=chosen)
    seconds = time.perf_counter() - start
    processes = min(workers or cores(), cases)
    what = f"prepare: {duration(seconds)} a case, {duration(seconds * cases / processes)} for {cases} cases"
    return Finding(
        "cost", "prepared", f"{what} in {processes} processes; peak memory {gib(timing.peak_bytes())} a process"
    )
