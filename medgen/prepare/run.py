"""Prepare a cohort: scan every case, choose the shared grid, prepare every case, write the index last."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from medgen.cohort.case import Case, Cohort, Source
from medgen.cohort.load import load_case
from medgen.errors import InputError
from medgen.files import atomic, digest, read_json, remove_partials, sha256_file, write_json
from medgen.prepare.index import build_index
from medgen.prepare.one import prepare_loaded
from medgen.prepare.options import PrepareOptions
from medgen.prepare.plan import Plan, make_plan
from medgen.prepare.register import load_template
from medgen.prepare.scan import Scan, scan_loaded
from medgen.prepare.workers import each
from medgen.store.prepared import INDEX, Prepared

_SCAN = "_scan.json"
VERSION = 1
"""Of this room's results: raise it when the same input and options give other arrays."""

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class _ScanJob:
    key: str
    case: Case
    out: Path
    options: PrepareOptions
    channels: tuple[str, ...]


@dataclass(frozen=True)
class _CaseJob:
    key: str
    case: Case
    out: Path
    options: PrepareOptions
    scan: Mapping[str, Any]
    plan: Plan
    hash: str


def prepare_cohort(
    cohort: Cohort,
    out: Path,
    options: PrepareOptions | None = None,
    *,
    conditions: Sequence[str] | None = None,
    workers: int = 1,
    on_progress: Progress | None = None,
) -> Prepared:
    """Prepare every case of a cohort into a folder that :class:`medgen.store.prepared.Prepared` opens.

    A case is done anew only where its files, the options that touch it or the shared grid changed; a run that was
    killed goes on where it stopped. The arrays do not depend on ``workers``.

    Args:
        cohort: cases and schema.
        out: folder of the result.
        options: choices; the defaults suit most cohorts.
        conditions: covariates and ``<label name>_ml`` volumes to keep in the schema, in order; None keeps all.
        workers: processes. With more than one the calling script must be importable (``if __name__ == "__main__"``).
        on_progress: called with (done, total, what) as work is done.

    Raises:
        InputError: an empty cohort, an unknown channel or covariate, or a case that cannot be read or prepared.
    """
    options = options or PrepareOptions()
    channels = _channels(cohort, options)
    if not cohort.cases:
        raise InputError(f"{cohort.root} holds no case to prepare")
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file; give a folder for the prepared cohort")
    if out.is_dir() and any(out.iterdir()) and not (out / "cases").is_dir():
        raise InputError(f"{out} holds something else already; choose a new folder for the prepared cohort")
    (out / "cases").mkdir(parents=True, exist_ok=True)
    remove_partials(out)
    try:
        return _prepare_into(cohort, out, options, channels, conditions, workers, on_progress)
    except InputError:
        # What was found of the sound cases stays for the next run; an empty folder would only puzzle.
        for folder in (out / "cases", out):
            if not any(folder.iterdir()):
                folder.rmdir()
        raise


def _prepare_into(
    cohort: Cohort,
    out: Path,
    options: PrepareOptions,
    channels: tuple[str, ...],
    conditions: Sequence[str] | None,
    workers: int,
    on_progress: Progress | None,
) -> Prepared:
    total = 2 * len(cohort.cases)

    def tell(offset: int, what: str) -> Callable[[int], None]:
        return lambda done: on_progress(offset + done, total, what) if on_progress else None

    keys = _keys(out, [case.case_id for case in cohort.cases])
    pairs = list(zip(keys, cohort.cases, strict=True))
    scanned = each(_scan, [_ScanJob(k, c, out, options, channels) for k, c in pairs], workers, tell(0, "scanned"))
    plan = make_plan([Scan.from_json(s["scan"]) for s in scanned], options, channels)
    jobs = [
        _CaseJob(k, c, out, options, s["scan"], plan, _case_hash(s, plan, options))
        for (k, c), s in zip(pairs, scanned, strict=True)
    ]
    stale = [job for job in jobs if not _is_done(job)]
    if stale:
        # From here on the old index would describe arrays that are no more.
        (out / INDEX).unlink(missing_ok=True)
    fresh = len(jobs) - len(stale)
    each(_prepare, stale, workers, tell(len(jobs) + fresh, "prepared"))
    rows = [read_json(_case_file(out, key)) for key in keys]
    index = build_index(cohort, plan, options, keys, rows, conditions)
    if not (out / INDEX).is_file() or read_json(out / INDEX) != index:
        write_json(out / INDEX, index)
    _remove_others(out, rows, keys)
    return Prepared.open(out)


def _keys(out: Path, case_ids: Sequence[str]) -> list[str]:
    """A key for each case: the one it had here, else the next free number. Who joins the cohort moves nobody else."""
    scans = {path.name.removesuffix(_SCAN): read_json(path) for path in sorted((out / "cases").glob(f"c*{_SCAN}"))}
    before = {scan["case"]: key for key, scan in scans.items() if "case" in scan}
    had = {i: before[_who(i)] for i in case_ids if _who(i) in before}
    width, taken = max(4, len(str(len(case_ids) - 1))), set(had.values())
    free = (key for n in count() if (key := f"c{n:0{width}d}") not in taken)
    return [had.get(i) or next(free) for i in case_ids]


def _who(case_id: str) -> str:
    """A case in files that hold no ids."""
    return digest(["case", case_id])[:16]


def _channels(cohort: Cohort, options: PrepareOptions) -> tuple[str, ...]:
    if options.channels is None:
        return cohort.channels
    unknown = [name for name in options.channels if name not in cohort.channels]
    if unknown or not options.channels:
        raise InputError(
            f"prepare: {cohort.root} has no channel '{', '.join(unknown)}' (it has: {', '.join(cohort.channels)})"
        )
    return options.channels


def _scan(job: _ScanJob) -> dict[str, Any]:
    """Scan one case, or read what an earlier run found for the same bytes and options."""
    inputs = _inputs(job.case, job.channels)
    options = job.options
    known = digest([VERSION, inputs, job.channels, options.digest_of("crop", "register", "template")])
    path, who = job.out / "cases" / f"{job.key}{_SCAN}", _who(job.case.case_id)
    if path.is_file():
        found = read_json(path)
        if found["hash"] == known:
            if found.get("case") != who:
                write_json(path, found := {**found, "case": who})
            return dict(found)
    template = None if options.register == "none" else load_template(options.template)
    loaded = load_case(job.case, job.channels)
    scan = scan_loaded(loaded, options, job.channels, template=template, said_in=_said_in(job.case))
    result = {"case": who, "hash": known, "inputs": inputs, "scan": scan.to_json()}
    write_json(path, result)
    return result


def _prepare(job: _CaseJob) -> None:
    """Prepare one case; its JSON, written last, says that its arrays are whole."""
    loaded = load_case(job.case, job.plan.channels)
    done = prepare_loaded(loaded, Scan.from_json(job.scan), job.plan, job.options, said_in=_said_in(job.case))
    commit = _case_file(job.out, job.key)
    commit.unlink(missing_ok=True)
    sizes = {}
    for kind, array in (("image", done.image), ("label", done.label)):
        path = job.out / "cases" / f"{job.key}_{kind}.npy"
        if array is None:
            path.unlink(missing_ok=True)
            continue
        with atomic(path) as temporary:
            np.save(temporary, array, allow_pickle=False)
        sizes[path.name] = path.stat().st_size
    write_json(
        commit,
        {
            "hash": job.hash,
            "sizes": sizes,
            "geometry": done.geometry.to_json(),
            "intensity": [None if r is None else r.to_json() for r in done.intensity],
            "volumes_ml": None if done.volumes_ml is None else list(done.volumes_ml),
            "quality": dict(done.quality),
        },
    )


def _case_hash(scanned: Mapping[str, Any], plan: Plan, options: PrepareOptions) -> str:
    used = options.digest_of("n4", "interpolation", "percentiles", "crop", "margin_voxels", "register", "half")
    return digest([VERSION, scanned["hash"], scanned["scan"], plan.to_json(), used])


def _is_done(job: _CaseJob) -> bool:
    path = _case_file(job.out, job.key)
    if not path.is_file():
        return False
    row = read_json(path)
    files = ((job.out / "cases" / name, size) for name, size in row["sizes"].items())
    return row["hash"] == job.hash and all(p.is_file() and p.stat().st_size == size for p, size in files)


def _case_file(out: Path, key: str) -> Path:
    return out / "cases" / f"{key}.json"


def _inputs(case: Case, channels: Sequence[str]) -> str:
    """Digest of the bytes that a case is made of and of how they are put together."""
    images = {name: _bytes(case.images[name]) for name in channels if name in case.images}
    label = [[_bytes(part.source), part.value] for part in case.label]
    return digest([images, label, _bytes(case.mask) if case.mask else None])


def _bytes(source: Source) -> list[Any]:
    path = source.path
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.is_file())
        return [[[p.relative_to(path).as_posix(), sha256_file(p)] for p in files], source.component, source.series]
    if not path.is_file():
        raise InputError(f"{path} does not exist")
    return [sha256_file(path), source.component]


def _said_in(case: Case) -> str:
    first = next(iter(case.images.values()), None)
    return f"case {case.case_id}" if first is None else f"case {case.case_id} ({first.path})"


def _remove_others(out: Path, rows: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> None:
    """Remove the files of cases that an earlier, larger cohort had here."""
    kept = {name for row in rows for name in row["sizes"]}
    kept |= {f"{key}{end}" for key in keys for end in (".json", _SCAN)}
    for path in (out / "cases").iterdir():
        if path.is_file() and path.name not in kept and re.fullmatch(r"c\d{4,}(_\w+)?\.(json|npy)", path.name):
            path.unlink()
