"""Prepared volumes on disk: one folder, one memory-mapped array a case, an index written last.

- ``index.json``: what all cases share, and a row for each;
- ``cases/c0007_image.npy``: (C, X, Y, Z) float16 or float32 in [-1, 1];
- ``cases/c0007_label.npy``: (X, Y, Z) uint8 or uint16 ids, absent where the case has no label;
- ``cases/c0007.json`` and ``cases/c0007_scan.json``: what a later run needs to skip the case.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from medgen.cohort.schema import Schema, Value
from medgen.errors import InputError
from medgen.files import read_json

INDEX = "index.json"
FORMAT = 1


@dataclass(frozen=True)
class PreparedCase:
    """One row of the index.

    Attributes:
        key: short running name, the stem of the case's files; says nothing about the patient.
        case_id: of the cohort.
        subject_id: of the cohort.
        split: "train", "val", "test" or None.
        covariates: by name of the schema; None where missing. Volumes are in ml of the subject's own space.
        has_label: whether the case came with a label.
        channels_present: for each channel, whether the case has it; others are filled with -1.
        geometry: JSON of ``medgen.prepare.grid.GeometryRecord``.
        intensity: for each channel, JSON of ``medgen.prepare.intensity.IntensityRecord``.
        quality: figures and the flags of those that stand out in the cohort.
    """

    key: str
    case_id: str
    subject_id: str
    split: str | None
    covariates: Mapping[str, Value]
    has_label: bool
    channels_present: tuple[bool, ...]
    geometry: Mapping[str, Any]
    intensity: tuple[Mapping[str, Any], ...]
    quality: Mapping[str, Any]


@dataclass(frozen=True)
class Prepared:
    """A prepared cohort.

    Attributes:
        folder: where it lies.
        name: of the dataset.
        channels: in the order of the images' first axis.
        label_values: original integer of each label id; the first is 0, the background.
        label_names: name of each label id.
        schema: covariates of the cohort and ``<label name>_ml`` for each label.
        spacing_mm: of the prepared grid.
        shape: of the prepared grid.
        stride: of which each extent is a multiple.
        cases: in the cohort's order.
        arrays: folder of the arrays, where they are those of another prepared cohort (a fold's).
        other_labels: case key -> file of its label ids, where that is not the cohort's own.
    """

    folder: Path
    name: str
    channels: tuple[str, ...]
    label_values: tuple[int, ...]
    label_names: tuple[str, ...]
    schema: Schema
    spacing_mm: tuple[float, float, float]
    shape: tuple[int, int, int]
    stride: int
    cases: tuple[PreparedCase, ...]
    arrays: Path | None = None
    other_labels: Mapping[str, Path] = field(default_factory=dict)

    @staticmethod
    def open(folder: str | Path) -> "Prepared":
        """Open a prepared folder.

        Raises:
            InputError: not one, not finished, or of another version.
        """
        folder = Path(folder)
        if not (folder / INDEX).is_file():
            raise InputError(f"{folder} holds no {INDEX}, so it is not a finished prepared cohort; prepare it (again)")
        index = read_json(folder / INDEX)
        if not isinstance(index, dict) or index.get("format") != FORMAT:
            raise InputError(f"{folder / INDEX} is of another version of medgen; prepare the cohort again")
        try:
            return _from_json(folder, index)
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{folder / INDEX} is damaged ({error!r}); prepare the cohort again") from None

    @property
    def whole(self) -> bool:
        """Whether the arrays of every case are there."""
        images = [self._path(case.key, "image") for case in self.cases if self.channels]
        labels = [self._path(case.key, "label") for case in self.cases if case.has_label]
        return all(path.is_file() for path in images + labels)

    def __len__(self) -> int:
        return len(self.cases)

    def image(self, i: int) -> np.ndarray:
        """Memory map (C, X, Y, Z) of case ``i``, float16 or float32 in [-1, 1]."""
        return self._array(i, "image") if self.channels else np.zeros((0, *self.shape), dtype=np.float16)

    def label(self, i: int) -> np.ndarray:
        """Label ids (X, Y, Z) of case ``i``, uint8 or uint16; zeros where ``has_label`` is false."""
        if not self.cases[i].has_label:
            return np.zeros(self.shape, dtype=np.uint8 if len(self.label_values) <= 256 else np.uint16)
        return self._array(i, "label")

    def indices(self, split: str | None) -> tuple[int, ...]:
        """Positions of the cases of a split."""
        return tuple(i for i, case in enumerate(self.cases) if case.split == split)

    def labels_only(self) -> "Prepared":
        """The cohort as a model of label maps sees it: no image channels, and cases without a label on no side."""
        cases = tuple(
            replace(case, channels_present=(), intensity=(), split=case.split if case.has_label else None)
            for case in self.cases
        )
        return replace(self, channels=(), cases=cases)

    def labelled_by(self, folder: Path) -> "Prepared":
        """The cohort with labels for cases that have none.

        Args:
            folder: of ``index.json``, which has the volume columns of each case key, and of the label ids.
        """
        told = read_json(folder / INDEX)["volumes_ml"]
        # A case's own label comes before any that was made for it, or for another under its key.
        volumes = {case.key: told[case.key] for case in self.cases if case.key in told and not case.has_label}
        cases = tuple(
            replace(case, has_label=True, covariates={**case.covariates, **volumes[case.key]})
            if case.key in volumes
            else case
            for case in self.cases
        )
        return replace(self, cases=cases, other_labels={key: folder / f"{key}_label.npy" for key in volumes})

    def _path(self, key: str, kind: str) -> Path:
        path = (self.arrays or self.folder) / "cases" / f"{key}_{kind}.npy"
        return self.other_labels.get(key, path) if kind == "label" else path

    def _array(self, i: int, kind: str) -> np.ndarray:
        path = self._path(self.cases[i].key, kind)
        try:
            array: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise InputError(f"{path} cannot be read ({error}); prepare the cohort again") from None
        if array.shape[-3:] != self.shape:
            raise InputError(f"{path} has shape {array.shape}, not {self.shape}; prepare the cohort again")
        return array


def _from_json(folder: Path, index: Mapping[str, Any]) -> Prepared:
    x, y, z = (int(n) for n in index["shape"])
    sx, sy, sz = (float(s) for s in index["spacing_mm"])
    cases = tuple(
        PreparedCase(
            **{
                **row,
                "channels_present": tuple(bool(p) for p in row["channels_present"]),
                "intensity": tuple(row["intensity"]),
            }
        )
        for row in index["cases"]
    )
    return Prepared(
        folder=folder,
        name=str(index["name"]),
        channels=tuple(index["channels"]),
        label_values=tuple(int(v) for v in index["label_values"]),
        label_names=tuple(index["label_names"]),
        schema=Schema.from_json(index["schema"]),
        spacing_mm=(sx, sy, sz),
        shape=(x, y, z),
        stride=int(index["stride"]),
        cases=cases,
        arrays=folder / index["arrays"] if "arrays" in index else None,
    )
