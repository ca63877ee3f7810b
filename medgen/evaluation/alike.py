"""Samples brought to a cohort's grid by the code that prepared the cohort: only then are the two compared."""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from medgen.cohort.schema import volume_column
from medgen.errors import InputError
from medgen.formats.detect import read_cohort
from medgen.prepare.options import PrepareOptions
from medgen.prepare.run import Progress, prepare_cohort
from medgen.segment.pairs import Pair
from medgen.store.prepared import Prepared


def prepared_alike(
    store: Prepared,
    dataset: Path,
    out: Path,
    options: PrepareOptions | None = None,
    *,
    format: str | None = None,
    workers: int = 1,
    on_progress: Progress | None = None,
) -> Prepared:
    """Prepare a dataset as a cohort was prepared.

    Args:
        store: the prepared cohort.
        dataset: folder of the dataset.
        out: folder of the result.
        options: of the cohort's preparation; grid and channels are the cohort's whatever they say.
        format: of the dataset, recognised where None.
        workers: processes.
        on_progress: called with (done, total, what).

    Raises:
        InputError: the dataset cannot be read, or lacks a channel of the cohort.
    """
    made = read_cohort(dataset, format=format)
    same_grid = replace(
        options or PrepareOptions(stride=store.stride),
        shape=store.shape,
        spacing_mm=store.spacing_mm,
        channels=_in_order(made.channels, store.channels),
    )
    return prepare_cohort(made, out, same_grid, workers=workers, on_progress=on_progress)


def pairs_alike(store: Prepared, samples: Prepared) -> list[Pair]:
    """Images in [-1, 1] and labels of prepared samples in the order of their ids, with the label ids of a cohort.

    Formats renumber labels, and samples may lack one, so that ids go by name.

    Raises:
        InputError: the samples have a label that the cohort does not have, or none at all, or other channels.
    """
    if len(samples.channels) != len(store.channels):
        raise InputError(
            f"{samples.folder} has the channels {', '.join(samples.channels)}, the cohort {', '.join(store.channels)}"
        )
    ids = {volume_column(name): i for i, name in enumerate(store.label_names)}
    unknown = [name for name in samples.label_names[1:] if volume_column(name) not in ids]
    if unknown:
        known = ", ".join(store.label_names[1:])
        raise InputError(f"{samples.folder} has a label '{unknown[0]}', the cohort has {known}; give its own samples")
    smallest = np.uint8 if len(store.label_values) <= 256 else np.uint16
    to_id = np.array([0, *(ids[volume_column(name)] for name in samples.label_names[1:])], dtype=smallest)
    labelled = _labelled(samples)
    if not labelled:
        raise InputError(f"{samples.folder} has no labels; give samples of a model that makes them")
    return [(samples.image(i), to_id[np.asarray(samples.label(i))]) for i in labelled]


def numbers_of(samples: Prepared) -> list[int]:
    """The numbers of medgen's own samples in their dataset, for each pair of :func:`pairs_alike`."""
    return [int(samples.cases[i].case_id.removeprefix("sub-").removeprefix("syn")) for i in _labelled(samples)]


def _labelled(samples: Prepared) -> list[int]:
    order = sorted(range(len(samples.cases)), key=lambda i: samples.cases[i].case_id)
    return [i for i in order if samples.cases[i].has_label]


def _in_order(found: Sequence[str], wanted: Sequence[str]) -> tuple[str, ...]:
    """The channels of a dataset in the cohort's order: a format may have had to shorten ``T1 post`` to ``T1post``."""

    def plain(name: str) -> str:
        return re.sub(r"[^0-9a-z]", "", name.lower())

    by_name = {plain(name): name for name in found}
    return tuple(by_name.get(plain(name), name) for name in wanted)
