"""Samples to datasets, and datasets to MONAI training lists."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from medgen.cohort.sample import Sample
from medgen.errors import InputError
from medgen.formats.detect import open_writer, read_cohort
from medgen.formats.folds import SPLITS, read_splits
from medgen.generation.dataset import dataset_info
from medgen.generation.generator import Generator

_SAME = ("model_sha256", "seed", "request", "drawing")


def export(samples: Iterable[Sample], out: str | Path, generator: Generator, *, format: str = "bids") -> int:
    """Write samples drawn one by one as a dataset; those already there are left alone.

    Args:
        samples: from :meth:`medgen.Generator.sample`, with different indices.
        out: folder of the dataset.
        generator: that drew them.
        format: bids, nnunet or decathlon.

    Returns:
        How many were written.

    Raises:
        InputError: two different samples of one index.
    """
    writer = open_writer(format, Path(out), dataset_info(generator))
    there, written = writer.committed(), 0
    try:
        for sample in samples:
            if sample.sample_id in there:
                known = writer.sidecar(sample.sample_id)
                if any(known.get(key) != sample.sidecar.get(key) for key in _SAME):
                    raise InputError(f"{out} holds another sample {sample.sample_id}; give each sample its own index")
                continue
            writer.write(sample)
            there.add(sample.sample_id)
            written += 1
    finally:
        writer.close()
    return written


def datalist(
    folder: str | Path, *, format: str | None = None, fold: int | None = None, side: Literal["train", "val"] = "train"
) -> list[dict[str, Any]]:
    """A dataset as a list for ``monai.data.Dataset``: one dictionary a case.

    Keys: ``image`` (a path, or a list of paths where there are several channels), ``label`` (a path, where there is
    one), ``case_id``, ``subject_id`` and every covariate. Any format that :func:`medgen.read_cohort` reads works, a
    real cohort included, so that lists can be added.

    Args:
        folder: of the dataset.
        format: of it, recognised where None.
        fold: of the ``splits_final.json`` in the folder, from 0; only the cases on ``side`` of it are listed.
        side: training or validation.

    Raises:
        InputError: there is no such fold.
        InputError: a case whose image or label is not a plain file: a component of a 4D file, or merged labels.
    """
    cohort = read_cohort(folder, format=format)
    if fold is not None:
        splits = read_splits(Path(folder) / SPLITS)
        if not 0 <= fold < len(splits):
            raise InputError(f"{Path(folder) / SPLITS} has {len(splits)} folds; there is no fold {fold}")
        listed = set(splits[fold][side])
        cohort = cohort.with_cases(tuple(case for case in cohort.cases if case.case_id in listed))
    rows = []
    for case in cohort.cases:
        sources = [case.images[c] for c in cohort.channels if c in case.images]
        whole = len(sources) == 1 or all(s.component is None for s in sources)
        if not whole and len({s.path for s in sources}) == 1:  # all components of one 4D file: MONAI reads it whole
            sources, whole = sources[:1], True
        plain = len(case.label) <= 1 and all(f.value is None for f in case.label)
        if not whole or not plain:
            raise InputError(f"{case.case_id} in {folder} has images or labels spread over parts of files; prepare it")
        paths = [str(s.path) for s in sources]
        row: dict[str, Any] = {"image": paths[0] if len(paths) == 1 else paths}
        if case.label:
            row["label"] = str(case.label[0].source.path)
        rows.append({**row, "case_id": case.case_id, "subject_id": case.subject_id, **case.covariates})
    return rows
