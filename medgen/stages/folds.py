"""Fold by fold: a model for each fold that saw none of its validation cases, and one dataset of all of them."""

import os
from collections.abc import Iterable
from pathlib import Path

from medgen import config as configs
from medgen.cohort import splits
from medgen.cohort.case import Cohort
from medgen.errors import InputError
from medgen.files import read_json, write_json
from medgen.formats.folds import read_splits
from medgen.generation.combine import Combined, Part, combine
from medgen.generation.dataset import info_of
from medgen.generation.model import read_spec
from medgen.prepare.index import fold_index
from medgen.progress import Rate
from medgen.stages import data
from medgen.stages.run import Fold, Run, StageProgress, named
from medgen.store.prepared import INDEX, Prepared
from medgen.store.run_state import require

COMBINED = "combined"


def outer(run: Run, cohort: Cohort | None = None) -> list[dict[str, str]]:
    """For each fold, case id -> ``train``, ``val`` or ``test``, as ``data.folds`` says.

    Raises:
        InputError: more folds than subjects, or a file that does not fit the cohort.
    """
    said = run.config.data.folds
    cases = (cohort or data.read_columns(run)).cases
    if isinstance(said, int):
        return splits.folds(cases, said, run.config.seed)
    assert said is not None
    return splits.given(cases, read_splits(said.expanduser()), said)


def fold_runs(run: Run) -> list[Run]:
    """A run for each fold, in ``fold-1``, ``fold-2``, ... below the run folder; they share its prepared cohort."""
    cohort, c = data.read_columns(run), run.config
    found = []
    assigned = outer(run, cohort)
    for number, sides in enumerate(assigned, start=1):
        inner = splits.within(cohort.cases, sides, validation=c.data.validation, seed=c.seed)
        found.append(
            Run(
                c,
                run.folder / f"fold-{number}",
                named(run.progress, f"{number}/{len(assigned)}"),
                force=run.force,
                fold=Fold(run.folder, inner),
            )
        )
    return found


def write_view(run: Run) -> None:
    """The prepared cohort as a fold or another view sees it: an index of its own over the arrays of the whole."""
    assert run.fold is not None
    shared, own = run.fold.shared / "prepared", run.folder / "prepared"
    arrays = Path(os.path.relpath(shared, own)).as_posix()
    write_json(own / INDEX, fold_index(read_json(shared / INDEX), run.fold.sides, arrays, run.fold.hidden))
    run.progress("prepared", 1, 1, "shared")


def combined(run: Run) -> None:
    """One dataset of the real cases and of every fold's synthetic ones, in the run folder."""
    found = _combine(run, run.folder / COMBINED, run.config.generate.format)
    run.progress(COMBINED, 1, 1, told(found))


def combine_run(folder: Path, out: Path, *, format: str, on_progress: StageProgress) -> Combined:
    """Write the real and synthetic cases of a finished run, with or without folds, as one dataset.

    Args:
        folder: of the run.
        out: folder of the dataset.
        format: kind of exporter.
        on_progress: called with (stage, done, total, remark).

    Raises:
        InputError: not a finished run, or its cohort is not where it was.
    """
    if not (folder / "config.yaml").is_file():
        raise InputError(f"{folder} is no run folder: it holds no config.yaml; give one such as runs/oasis")
    run = Run(configs.load(folder / "config.yaml"), folder, on_progress)
    if run.phantom is None and not run.root.exists():
        raise InputError(f"{folder / 'config.yaml'}: data.root {run.root} does not exist; run it from where it was run")
    return _combine(run, out, format)


def told(found: Combined) -> str:
    """A combined dataset in words."""
    more = f"; real cases left out: {', '.join(found.left_out)}" if found.left_out else ""
    if found.folds == 1:
        more += "; there is fold 0 only, and any other fold would validate on synthetic cases"
    return f"{found.real} real and {found.synthetic} synthetic cases{more}"


def check_unseen(folder: Path, case_ids: Iterable[str]) -> None:
    """Refuse a model, by the folder of its run, that has seen one of the cases.

    Raises:
        InputError: it has, or its run is not there.
    """
    if not (folder / "prepared" / INDEX).is_file():
        raise InputError(f"{folder / 'prepared'} does not exist; finish the run first")
    apart = {case.case_id for case in Prepared.open(folder / "prepared").cases if case.split == "test"}
    seen = next((case_id for case_id in case_ids if case_id not in apart), None)
    if seen is not None:
        raise InputError(
            f"the model in {folder} was trained when {seen} was not held out for it: the cohort, the seed or the folds "
            "have changed since; run the experiment again first"
        )


def _combine(run: Run, out: Path, format: str) -> Combined:
    cohort = data.read_columns(run)
    if run.config.data.folds is None:
        # A run's own split is one fold; its test cases are in none.
        store = Prepared.open(run.folder / "prepared")
        sides = [{case.case_id: case.split or "test" for case in store.cases}]
        folders, prefixes = [run.folder], [""]
    else:
        sides = outer(run, cohort)
        folders = [run.folder / f"fold-{n}" for n in range(1, len(sides) + 1)]
        prefixes = [f"fold{n}" for n in range(1, len(sides) + 1)]
        for folder, fold in zip(folders, sides, strict=True):
            check_unseen(folder, [case_id for case_id, side in fold.items() if side == "val"])
    kind = run.config.generate.format
    parts = []
    for number, (folder, prefix) in enumerate(zip(folders, prefixes, strict=True)):
        if not (folder / "synthetic").is_dir():
            raise InputError(f"{folder / 'synthetic'} does not exist; finish the run first")
        require(folder, "model", "synthetic")
        parts.append(Part(folder / "synthetic", kind, info_of(*read_spec(folder / "model")), number, prefix))
    rate = Rate("cases")
    return combine(
        cohort,
        sides,
        parts,
        out,
        format=format,
        writers=run.config.generate.writers,
        on_progress=lambda done, total: run.progress(COMBINED, done, total, rate(done, total)),
    )
