"""The seam for writing: what every exporter does, and the ledger of committed samples they share."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from medgen.cohort.sample import Sample
from medgen.cohort.schema import Schema
from medgen.errors import InputError
from medgen.files import read_json, write_json, write_text

_PLAIN_ID = re.compile(r"[A-Za-z0-9]+")
_CASE_ID = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_.-]*[A-Za-z0-9])?")


@dataclass(frozen=True)
class DatasetInfo:
    """What the samples of one dataset share.

    Attributes:
        name: of the dataset.
        channels: channel names in order; the first one carries the provenance in BIDS.
        label_names: integer value -> name, background (0) left out.
        schema: of the covariates; its order is the order of the columns.
        generated_by: the BIDS ``GeneratedBy`` entry ("Name", "Version", ...); "SkullStripped" (default False) is
            taken out of it and written where BIDS wants it.
        real: ids of the real cases, where the dataset holds any beside the synthetic ones.
        splits: folds of a cross-validation, each ``{"train": ids, "val": ids}``; synthetic cases only ever train.
    """

    name: str
    channels: tuple[str, ...]
    label_names: Mapping[int, str]
    schema: Schema
    generated_by: Mapping[str, Any]
    real: frozenset[str] = frozenset()
    splits: tuple[Mapping[str, tuple[str, ...]], ...] = field(default=())


class Writer(Protocol):
    """A dataset being written; several processes may hold one each on the same folder, for different samples."""

    def write(self, sample: Sample) -> None:
        """Write a sample, its sidecar last; a sample that is committed already is left as it is."""

    def committed(self) -> set[str]:
        """Ids of the samples that are complete on disk."""

    def sidecar(self, sample_id: str) -> dict[str, Any]:
        """The provenance of a committed sample."""

    def discard(self, sample_id: str) -> None:
        """Remove the files of a sample that was not committed."""

    def uncommitted(self) -> set[str]:
        """Ids of the samples of which files, but no commit, lie on disk."""

    def close(self) -> None:
        """Rebuild the manifests (tables, dataset.json, ...) from the sidecars on disk; may be called repeatedly."""


@dataclass(frozen=True)
class Ledger:
    """Which samples are on disk: the sidecar, written last, is the commit and lists the sample's files.

    Attributes:
        root: of the dataset.
        sidecar_path: sample id -> its sidecar.
        ids: every sample id of which any file lies on disk.
        files_of: sample id -> every file of it on disk, temporary ones too.
    """

    root: Path
    sidecar_path: Callable[[str], Path]
    ids: Callable[[], Iterable[str]]
    files_of: Callable[[str], list[Path]]

    def is_committed(self, sample_id: str) -> bool:
        """Whether the sidecar is there and every file it lists."""
        path = self.sidecar_path(sample_id)
        return path.is_file() and all((self.root / f).is_file() for f in read_json(path).get("files", []))

    def committed(self) -> set[str]:
        """See :meth:`Writer.committed`."""
        return {i for i in self.ids() if self.is_committed(i)}

    def uncommitted(self) -> set[str]:
        """See :meth:`Writer.uncommitted`."""
        return {i for i in self.ids() if not self.is_committed(i)}

    def sidecar(self, sample_id: str) -> dict[str, Any]:
        """See :meth:`Writer.sidecar`."""
        record: dict[str, Any] = read_json(self.sidecar_path(sample_id))
        return record

    def discard(self, sample_id: str) -> None:
        """See :meth:`Writer.discard`."""
        if self.is_committed(sample_id):
            raise InputError(f"sample {sample_id} in {self.root} is complete and is not discarded; delete it by hand")
        self.sidecar_path(sample_id).unlink(missing_ok=True)
        for path in self.files_of(sample_id):
            path.unlink(missing_ok=True)

    def commit(self, sample: Sample, files: Iterable[Path]) -> None:
        """Write the sidecar of a sample whose files are all in place."""
        record = {
            **sample.sidecar,
            "sample_id": sample.sample_id,
            "covariates": {k: float(v) if isinstance(v, (int, float)) else v for k, v in sample.covariates.items()},
            "files": [f.relative_to(self.root).as_posix() for f in files],
        }
        write_json(self.sidecar_path(sample.sample_id), record)

    def rebuild(self, manifests: Callable[[dict[str, dict[str, Any]]], None]) -> None:
        """Call ``manifests`` with every committed sidecar until no other process committed meanwhile.

        A shard that lists, is overtaken by another shard's commit and close, and only then writes, would leave the
        shorter list behind; looking once more after writing closes that gap.
        """
        seen: set[str] | None = None
        while seen != (now := self.committed()):
            seen = now
            manifests({i: self.sidecar(i) for i in sorted(now)})


def folder_ledger(root: Path, *, numbered: bool = False) -> Ledger:
    """The ledger of the ``imagesTr``/``labelsTr`` layouts: sidecars lie in ``medgen_sidecars/<id>.json``.

    Args:
        root: of the dataset.
        numbered: whether images end in the number of their channel.
    """
    nifti, number = r"\.nii\.gz", r"_\d{4}" if numbered else ""
    endings = {SIDECARS: r"\.json", "imagesTr": number + nifti, "labelsTr": nifti}
    of_id = {name: re.compile(rf"(?:\.partial-\d+-)?({_CASE_ID.pattern}){end}") for name, end in endings.items()}

    def found() -> Iterable[tuple[str, Path]]:
        for name, pattern in of_id.items():
            for path in sorted((root / name).iterdir()) if (root / name).is_dir() else ():
                match = pattern.fullmatch(path.name)
                if match and path.name != LABEL_MAP:
                    yield match[1], path

    return Ledger(
        root,
        lambda sample_id: root / SIDECARS / f"{sample_id}.json",
        lambda: sorted({sample_id for sample_id, _ in found()}),
        lambda sample_id: [path for other, path in found() if other == sample_id],
    )


SIDECARS = "medgen_sidecars"
LABEL_MAP = "label_map.json"
# What any format writes beside samples, and what makes a folder a dataset in somebody's eyes.
_OF_A_DATASET = (
    "README*",
    "dataset*.json",
    "participants.*",
    "covariates.*",
    "dseg.tsv",
    "sub-*",
    "images*",
    "labels*",
    ".bidsignore",
    "splits_final.json",
    SIDECARS,
)


def refuse_others(root: Path) -> None:
    """Refuse a folder that holds a dataset, or a file that one would be written over.

    Raises:
        InputError: naming what is there.
    """
    found = next((p for pattern in _OF_A_DATASET for p in sorted(root.glob(pattern))), None)
    if found is not None:
        raise InputError(
            f"{root} holds another dataset or a part of one, which medgen did not write ({found.name}); choose an "
            "empty folder"
        )


def check_sample(sample: Sample, info: DatasetInfo, *, all_channels: bool = False, own_ids: bool = False) -> None:
    """Refuse a sample that the dataset cannot hold.

    Args:
        sample: to be written.
        info: of the dataset.
        all_channels: whether the layout needs every channel of every case.
        own_ids: whether real cases keep ids with ``_``, ``-`` and ``.`` inside; else letters and digits only.

    Raises:
        InputError: an id the layout does not take, unknown or missing channels, or grids that differ.
    """
    name = f"sample '{sample.sample_id}'"
    pattern = _CASE_ID if own_ids and sample.sample_id in info.real else _PLAIN_ID
    if not pattern.fullmatch(sample.sample_id):
        raise InputError(f"{name}: a sample id must be letters and digits only")
    unknown = set(sample.images) - set(info.channels)
    missing = set(info.channels) - set(sample.images) if all_channels else set()
    if unknown or missing or not sample.images:
        raise InputError(
            f"{name} has channels {', '.join(sample.images) or 'none'}; the dataset has {', '.join(info.channels)}"
        )
    volumes = [*sample.images.values(), *([sample.label] if sample.label is not None else [])]
    if any(v.shape != volumes[0].shape or not np.array_equal(v.affine, volumes[0].affine) for v in volumes):
        raise InputError(f"{name}: its images and label must share shape and affine exactly")
    if any(v.data.shape[0] != 1 for v in volumes):
        raise InputError(f"{name}: every image and label must have one channel")


def refresh(path: Path, text: str) -> None:
    """Write a manifest unless it already reads so."""
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        write_text(path, text)
