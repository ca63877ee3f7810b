"""Stages cohort and prepared: from a folder to arrays."""

import os
import re
from pathlib import Path
from typing import Any

from medgen.cohort import schema_file, splits
from medgen.cohort.case import Cohort
from medgen.cohort.phantom import write_phantom
from medgen.cohort.schema import Covariate, Schema, volume_column
from medgen.files import digest, read_json, sha256_file
from medgen.formats.detect import read_cohort
from medgen.prepare.run import prepare_cohort
from medgen.stages.conditions import check_derived
from medgen.stages.run import Run
from medgen.store.prepared import Prepared


def fingerprint(run: Run) -> Any:
    """Names, sizes and times of the input files: enough to see that something changed; contents decide after that."""
    if run.phantom:
        return None
    root, is_table = run.root, run.root.is_file()
    base = root.parent if is_table else root
    # What describes a table lies beside it, and what it names may lie elsewhere.
    files = [root, root.with_suffix(".json"), base / "dseg.tsv"] if is_table else _files_of(root)
    if is_table or "root" in run.config.data.options:
        files += _sources(read_columns(run))
    there = sorted({p for p in files if p.is_file()})
    return [[os.path.relpath(p, base), p.stat().st_size, p.stat().st_mtime_ns] for p in there]


def _files_of(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.is_file())


def _sources(cohort: Cohort) -> list[Path]:
    """Every file of the cohort's images, labels and masks; a DICOM series is a folder."""
    places: set[Path] = set()
    for case in cohort.cases:
        masks = [case.mask] if case.mask else []
        sources = [*case.images.values(), *(f.source for f in case.label), *masks]
        places.update(source.path for source in sources)
    return [p for place in places for p in (_files_of(place) if place.is_dir() else [place])]


def result_digest(run: Run, stage: str) -> str:
    """Identity of what a content-cached stage made."""
    index = run.folder / stage / "index.json"
    return digest(read_json(index)) if index.exists() else digest(_file_list(run.folder / stage))


def _file_list(folder: Path) -> list[Any]:
    return [[str(p.relative_to(folder)), sha256_file(p)] for p in sorted(folder.rglob("*")) if p.is_file()]


def cohort(run: Run) -> None:
    """Write the phantom cohort."""
    assert run.phantom is not None
    p = run.phantom
    progress = run.stage_progress("cohort")
    write_phantom(
        run.folder / "cohort",
        n=p.n,
        spacing_mm=p.spacing_mm,
        seed=p.seed,
        workers=run.config.workers,
        missing=p.missing,
        on_progress=lambda done, total: progress(done, total, "phantoms"),
    )


def read(run: Run) -> Cohort:
    """The cohort with every case's side of the split."""
    data = run.config.data
    found = read_columns(run)
    _check_derived(run, found)
    return splits.split(found, validation=data.validation, seed=run.config.seed)


def read_columns(run: Run) -> Cohort:
    """The cohort with the columns that its schema file leaves; columns the file calls text are read as such."""
    data, path = run.config.data, run.config.covariates.schema_file
    if path is None:
        return read_cohort(run.root, format=data.format, **data.options)
    texts = [c.name for c in schema_file.read(path).covariates if c.is_text]
    given = data.options.get("texts", ())
    both = dict.fromkeys([*([given] if isinstance(given, str) else given), *texts])
    options = {**data.options, "texts": list(both)} if both else data.options
    return schema_file.apply(read_cohort(run.root, format=data.format, **options), path)


def _check_derived(run: Run, cohort: Cohort) -> None:
    """Refuse derived covariates that name no column before any image is read; labels are checked after that."""
    expressions = run.config.covariates.derived
    # Labels without a name are known only from the voxels.
    unnamed = re.findall(r"\blabel_\d+_ml\b", " ".join(expressions.values()))
    volumes = [*(volume_column(name) for name in cohort.label_names.values()), *unnamed]
    columns = cohort.schema.joined(Schema(tuple(Covariate(name) for name in dict.fromkeys(volumes))))
    check_derived(expressions, columns, None)


def prepared(run: Run) -> None:
    """Scans to arrays."""
    prepare_into(run, run.folder / "prepared", run.config.workers)


def prepare_into(run: Run, out: Path, workers: int | None) -> Prepared:
    """Prepare a run's cohort into a folder."""
    cohort = read(run)
    store = prepare_cohort(
        cohort,
        out,
        run.prepare_options(),
        workers=workers or os.cpu_count() or 1,
        on_progress=run.stage_progress("prepared"),
    )
    # The columns as they were understood, to be edited and named in covariates.schema_file.
    schema_file.write(out / "covariates.yaml", cohort.schema)
    return store
