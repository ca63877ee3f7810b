"""Real and synthetic cases in one dataset, with folds that keep every synthetic case in the training it may join."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from medgen.cohort.case import ORIGIN, REAL, SUBJECT, SYNTHETIC, Case, Cohort, numbered
from medgen.cohort.load import load_case
from medgen.cohort.sample import Sample
from medgen.cohort.schema import Covariate, Schema, Value, volume_column
from medgen.errors import InputError
from medgen.files import digest
from medgen.formats.detect import open_writer, read_cohort
from medgen.formats.writer import DatasetInfo
from medgen.generation.background import BackgroundWriter
from medgen.measure.volumes import label_volumes_ml
from medgen.volume import Volume

_INTEGERS = (np.uint8, np.int16, np.int32)


@dataclass(frozen=True)
class Part:
    """A synthetic dataset and where it belongs.

    Attributes:
        folder: of the dataset.
        format: its kind.
        info: what its exporter knew of it.
        fold: index of the fold whose training may see it.
        prefix: put before its ids, so that several parts have different ones.
    """

    folder: Path
    format: str
    info: DatasetInfo
    fold: int
    prefix: str = ""


@dataclass(frozen=True)
class Combined:
    """What a dataset holds: real and synthetic cases, why real cases were left out, in words, and how many folds."""

    real: int
    synthetic: int
    left_out: tuple[str, ...]
    folds: int


@dataclass(frozen=True)
class _Piece:
    """A case that is to be written: the identity of its source, and how to read it."""

    source: str
    read: Callable[[], Sample]


def combine(
    cohort: Cohort,
    sides: Sequence[Mapping[str, str]],
    parts: Sequence[Part],
    out: Path,
    *,
    format: str,
    writers: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Combined:
    """Write real cases and synthetic ones beside each other; a second run completes what is missing.

    Intensities that are whole numbers are written as integers, labels keep their values (nnU-Net's are consecutive),
    headers carry no text. Every case says in the column ``origin`` what it is.

    Args:
        cohort: the real cases.
        sides: for each fold, case id -> ``train``, ``val`` or ``test`` (not in this fold).
        parts: the synthetic datasets.
        out: folder of the dataset.
        format: kind of exporter.
        writers: threads that write.
        on_progress: called with (done, total).

    Raises:
        InputError: no real case is usable, two cases get one id, or ``out`` holds something else.
    """
    base = parts[0].info
    chosen, left_out = _usable(cohort, sides, base)
    if not chosen:
        raise InputError(f"{cohort.root}: no real case has every channel and a label ({'; '.join(left_out)})")
    ids = {_own_id(case.case_id, format): case for case in chosen}
    if len(ids) < len(chosen):
        raise InputError(f"{cohort.root}: two cases would get one id as {format}; rename them")
    subjects = _subjects(ids)
    pieces = {
        i: _Piece(_identity(case), _reader(_real, i, case, cohort, base, subjects.get(i))) for i, case in ids.items()
    }
    bound: list[list[str]] = [[] for _ in sides]
    for part in parts:
        for sample_id, piece in _synthetic(part, base):
            if sample_id in pieces:
                raise InputError(f"the real case {sample_id} is called as a synthetic one is; rename it")
            pieces[sample_id] = piece
            bound[part.fold].append(sample_id)
    splits = tuple(
        {
            "train": (*(i for i, case in ids.items() if fold.get(case.case_id) == "train"), *bound[n]),
            "val": tuple(i for i, case in ids.items() if fold.get(case.case_id) == "val"),
        }
        for n, fold in enumerate(sides)
    )
    info = replace(base, schema=_schema(base, cohort), real=frozenset(ids), splits=splits, name=f"{base.name} and real")
    writer = open_writer(format, out, info)
    there = writer.committed()
    strange = next((i for i in there if i not in pieces or writer.sidecar(i).get("source") != pieces[i].source), None)
    if strange is not None:
        raise InputError(f"{out} holds other cases already, such as {strange}; choose another folder")
    for sample_id in writer.uncommitted() & set(pieces):
        writer.discard(sample_id)
    with BackgroundWriter(writer, writers) as background:
        for done, (sample_id, piece) in enumerate(pieces.items()):
            if on_progress:
                on_progress(done, len(pieces))
            if sample_id not in there:
                sample = piece.read()
                background.write(replace(sample, sidecar={**sample.sidecar, "source": piece.source}))
    if on_progress:
        on_progress(len(pieces), len(pieces))
    return Combined(len(ids), len(pieces) - len(ids), tuple(left_out), len(sides))


def _usable(cohort: Cohort, sides: Sequence[Mapping[str, str]], info: DatasetInfo) -> tuple[list[Case], list[str]]:
    """The cases that some fold uses and that have what a segmenter needs; and why the others are left out."""
    chosen: list[Case] = []
    lacking = {"without a label": 0, "without every channel": 0, "in no fold": 0}
    for case in cohort.cases:
        if all(fold.get(case.case_id, "test") == "test" for fold in sides):
            lacking["in no fold"] += 1
        elif info.label_names and not case.has_label:
            lacking["without a label"] += 1
        elif any(c not in case.images for c in info.channels):
            lacking["without every channel"] += 1
        else:
            chosen.append(case)
    return chosen, [f"{count} {why}" for why, count in lacking.items() if count]


def _own_id(case_id: str, format: str) -> str:
    """A real case's id as the format allows it; nnU-Net and Decathlon keep it."""
    if format == "bids":
        return re.sub(r"[^A-Za-z0-9]+", "", case_id.removeprefix("sub-"))
    return re.sub(r"[^A-Za-z0-9_.-]+", "", case_id).strip("_.-")


def _identity(case: Case) -> str:
    """Changes when a case's files do; tells nothing of them."""
    paths = [s.path for s in case.images.values()] + [f.source.path for f in case.label]
    files = [p for p in paths if p.is_file()]
    return digest([[str(p), p.stat().st_size, p.stat().st_mtime_ns] for p in files] + [dict(case.covariates)])


def _reader(read: Callable[..., Sample], *arguments: Any) -> Callable[[], Sample]:
    return lambda: read(*arguments)


def _subjects(ids: Mapping[str, Case]) -> dict[str, str]:
    """Who a case is of, as running numbers; empty where each is of another, which ids say alone."""
    number = numbered(case.subject_id for case in ids.values())
    return {} if len(number) == len(ids) else {i: f"subject{number[c.subject_id] + 1:04d}" for i, c in ids.items()}


def _real(sample_id: str, case: Case, cohort: Cohort, info: DatasetInfo, subject: str | None) -> Sample:
    loaded = load_case(case, info.channels)
    known: dict[str, Value] = {c.name: case.covariates.get(c.name) for c in cohort.schema.covariates if not c.is_text}
    label = None if loaded.label is None else whole(loaded.label)
    if label is not None:
        volumes = label_volumes_ml(label.data[0], tuple(info.label_names), label.affine)
        known |= {volume_column(name): round(volumes[v], 4) for v, name in info.label_names.items()}
    images = {name: whole(volume) for name, volume in loaded.images.items()}
    told = {ORIGIN: REAL} | ({SUBJECT: subject} if subject else {})
    return Sample(sample_id, images, label, {**known, ORIGIN: REAL}, told)


def _synthetic(part: Part, info: DatasetInfo) -> Iterator[tuple[str, _Piece]]:
    """The cases of a part: new id, and what is needed to read each."""
    cohort = read_cohort(part.folder, format=part.format)
    ledger = open_writer(part.format, part.folder, part.info)
    values = {name: value for value, name in info.label_names.items()}
    renumbered = {v: values[name] for v, name in cohort.label_names.items() if name in values}
    cases = {case.case_id.removeprefix("sub-"): case for case in cohort.cases}
    for sample_id in sorted(ledger.committed()):
        if sample_id not in cases:
            raise InputError(f"{part.folder} does not list its sample {sample_id}; finish generating it first")
        sidecar = ledger.sidecar(sample_id)
        covariates = sidecar["covariates"]
        kept = {k: v for k, v in sidecar.items() if k not in ("files", "sample_id", "covariates")}
        told = {**kept, ORIGIN: SYNTHETIC, "fold": part.fold}
        new = f"{part.prefix}{sample_id}"
        read = _reader(_read_synthetic, new, cases[sample_id], covariates, told, info, renumbered)
        yield new, _Piece(digest([part.fold, sidecar]), read)


def _read_synthetic(
    sample_id: str,
    case: Case,
    covariates: Mapping[str, Value],
    sidecar: Mapping[str, Any],
    info: DatasetInfo,
    renumbered: Mapping[int, int],
) -> Sample:
    loaded = load_case(case, info.channels)
    label = loaded.label
    if label is not None:
        found, where = np.unique(label.data, return_inverse=True)
        original = np.array([renumbered.get(int(v), int(v)) for v in found])
        label = whole(Volume(original[where].reshape(label.data.shape), label.affine))
    images = {name: whole(volume) for name, volume in loaded.images.items()}
    return Sample(sample_id, images, label, {**covariates, ORIGIN: SYNTHETIC}, sidecar)


def whole(volume: Volume) -> Volume:
    """The volume with the smallest common integer type where every value is whole, else as it is."""
    data = volume.data
    if data.dtype.kind == "f" and not np.array_equal(data, np.rint(data)):
        return volume
    low, high = float(data.min(initial=0)), float(data.max(initial=0))
    kind = next((k for k in _INTEGERS if np.iinfo(k).min <= low and high <= np.iinfo(k).max), None)
    return volume if kind is None else Volume(data.astype(kind), volume.affine)


def _schema(info: DatasetInfo, cohort: Cohort) -> Schema:
    """The synthetic cases' columns, the real ones' that are no free words, and which is which."""
    real = Schema(tuple(c for c in cohort.schema.covariates if not c.is_text))
    origin = Covariate(ORIGIN, "categorical", levels=(REAL, SYNTHETIC))
    return info.schema.joined(real).joined(Schema((origin,)))
