"""Where the masks come from that a model's images follow: its label model, or label maps that are given."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from medgen.cohort.requests import Row
from medgen.cohort.schema import volume_column
from medgen.edit import chain as edits
from medgen.edit.scene import Scene
from medgen.errors import InputError
from medgen.files import digest, sha256_file
from medgen.generation.model import ModelSpec
from medgen.generation.place import record_of
from medgen.prepare.grid import GeometryRecord, Grid
from medgen.prepare.one import label_ids
from medgen.prepare.resample import resample_label
from medgen.sampling.noise import Key
from medgen.store.prepared import INDEX, Prepared
from medgen.volume import read_volume

_LOST = 0.01
_HELD = 16


@dataclass(frozen=True, eq=False)
class Mask:
    """A label map that an image is to follow.

    Attributes:
        probabilities: (L, X, Y, Z) float32 of the label ids; 0 and 1 where a label map is given or edited.
        origin: where it comes from, as a sidecar says it.
    """

    probabilities: np.ndarray
    origin: Mapping[str, Any]

    @property
    def ids(self) -> np.ndarray:
        """Label ids (X, Y, Z) int16."""
        return self.probabilities.argmax(axis=0).astype(np.int16)


FAULT = "fault"
"""Key of a mask's origin under which it says why it could not be edited as asked; no sample may follow such a one."""


class Masks(Protocol):
    """A source of masks."""

    def __call__(self, rows: Sequence[Row], keys: Sequence[Key]) -> Iterator[Mask]:
        """A mask for each row; a pure function of the row and its key."""
        ...

    def recorded(self) -> dict[str, Any]:
        """What decides the masks, as plain JSON; no path and no name of a file."""
        ...


@dataclass(frozen=True, eq=False)
class DrawnMasks:
    """Masks that the label model draws for what is asked.

    Attributes:
        draw: rows and keys to probabilities (L, X, Y, Z).
    """

    draw: Callable[[Sequence[Row], Sequence[Key]], Iterable[np.ndarray]]

    def __call__(self, rows: Sequence[Row], keys: Sequence[Key]) -> Iterator[Mask]:
        """Draw; a mask and its image never share their noise."""
        own = [replace(key, part="mask") for key in keys]
        return (Mask(p, {"source": "label model"}) for p in self.draw(rows, own))

    def recorded(self) -> dict[str, Any]:
        """The label model is part of the model."""
        return {"source": "label model"}


@dataclass(frozen=True, eq=False)
class GivenMasks:
    """Label maps that somebody gives, real ones or others: sample i follows number i, over and over.

    Attributes:
        load: number -> ids (X, Y, Z) on the model's grid.
        count: how many there are.
        labels: label ids with background.
        identity: digest of them all.
    """

    load: Callable[[int], np.ndarray]
    count: int
    labels: int
    identity: str

    @staticmethod
    def read(path: Path, spec: ModelSpec) -> "GivenMasks":
        """Read label maps for a model.

        Args:
            path: a ``prepared`` folder of a run (its labelled training cases), a label file, or a folder of them.
            spec: of the model.

        Raises:
            InputError: nothing there, values that the model does not know, or maps that do not fit its grid.
        """
        path = path.expanduser()
        if (path / INDEX).is_file():
            store = Prepared.open(path)
            numbers = _of_prepared(path, store, spec)
            parts = [store.cases[i].key for i in numbers]
            files = [(store.arrays or store.folder) / "cases" / f"{key}_label.npy" for key in parts]

            def prepared(number: int) -> np.ndarray:
                return _known(np.asarray(store.label(numbers[number])), store.label_values, spec, files[number])

            load = prepared
        else:
            check_given(path, spec.label_values)
            files = _label_files(path)

            def from_file(number: int) -> np.ndarray:
                return placed_mask(files[number], spec)

            load = from_file
        held = lru_cache(maxsize=_HELD)(load)
        held(0)  # refused now, and not after an hour
        identity = digest([[sha256_file(file) for file in files], list(spec.shape), list(spec.label_values)])
        return GivenMasks(held, len(files), len(spec.label_values), identity)

    @staticmethod
    def of(labels: Sequence[np.ndarray], spec: ModelSpec) -> "GivenMasks":
        """Label maps in memory.

        Args:
            labels: (X, Y, Z) label values on the model's grid.
            spec: of the model.

        Raises:
            InputError: none, another shape than the model's, or a value that it does not know.
        """
        if not labels or any(label.shape != tuple(spec.shape) for label in labels):
            found = ", ".join(sorted({str(label.shape) for label in labels})) or "none"
            raise InputError(f"masks are label maps of the model's shape {tuple(spec.shape)}; given: {found}")
        ids = [_known(np.asarray(label), None, spec, Path("a mask")) for label in labels]
        identity = digest([[hashlib.sha256(np.ascontiguousarray(i).data).hexdigest() for i in ids], list(spec.shape)])
        return GivenMasks(ids.__getitem__, len(ids), len(spec.label_values), identity)

    def __call__(self, rows: Sequence[Row], keys: Sequence[Key]) -> Iterator[Mask]:
        """One-hot maps."""
        for key in keys:
            number = key.index % self.count
            yield Mask(one_hot(self.load(number), self.labels), {"source": "given", "number": number})

    def recorded(self) -> dict[str, Any]:
        """Their digest."""
        return {"source": "given", "masks": self.identity}


@dataclass(frozen=True, eq=False)
class EditedMasks:
    """Masks of another source, edited before they are followed.

    What a request says of label volumes is the target of the edits that take one.

    Attributes:
        source: of the masks.
        steps: entries ``{"kind": ..., <options>}`` of :mod:`medgen.edit`, applied in order.
        spec: of the model.
    """

    source: Masks
    steps: Sequence[Mapping[str, Any]]
    spec: ModelSpec

    def __call__(self, rows: Sequence[Row], keys: Sequence[Key]) -> Iterator[Mask]:
        """Edit, each mask by the random numbers of its key."""
        spec = self.spec
        for row, key, mask in zip(rows, keys, self.source(rows, keys), strict=True):
            scene = Scene(mask.ids, tuple(spec.label_names), spec.spacing_mm)
            try:
                changed = edits.apply(self.steps, scene, self._target(row, key), (key.seed, key.index, key.attempt))
            except InputError as error:  # this mask does not allow it; others may
                number = mask.origin.get("number")
                which = "its mask" if number is None else f"mask {number}"
                yield Mask(mask.probabilities, {**mask.origin, FAULT: f"{which} cannot be edited: {error}"})
                continue
            if changed.names != scene.names:
                strange = ", ".join(sorted(set(changed.names) - set(scene.names)))
                raise InputError(f"an edit adds the label {strange}, which the model never saw; leave 'new' out")
            yield Mask(one_hot(changed.ids, len(spec.label_values)), {**mask.origin, "edited": True})

    def _target(self, row: Row, key: Key) -> dict[str, float]:
        """Volumes asked for, in ml of the model's grid."""
        record = self.spec.records[record_of(self.spec.records, row, key)]
        geometry = GeometryRecord.from_json(record["geometry"])
        to_grid = geometry.target.voxel_ml / geometry.voxel_ml
        target = {}
        for name in self.spec.label_names[1:]:
            value = row.values.get(volume_column(name))
            if volume_column(name) in row.asked and isinstance(value, int | float):
                target[name] = float(value) * to_grid
        return target

    def recorded(self) -> dict[str, Any]:
        """The source's, with the edits."""
        return {**self.source.recorded(), "edits": edits.recorded(self.steps)}


def check_given(path: Path, values: Sequence[int]) -> None:
    """Refuse label files of which one cannot be followed: each is read once, so that none stops a dataset half way.

    Args:
        path: a label file, or a folder of them; a ``prepared`` folder is not looked at.
        values: label values that the model knows.

    Raises:
        InputError: naming the file.
    """
    for file in () if (path / INDEX).is_file() else _label_files(path):
        found = np.unique(read_volume(file, label=True).data)
        _refuse_strange(found, values, file)
        if not (found != 0).any():
            raise InputError(f"{file} labels nothing, so no image can follow it; leave it out")


def given_identity(path: Path) -> str:
    """Digest of the label maps that a path names, without reading them.

    Raises:
        InputError: nothing is there.
    """
    if (path / INDEX).is_file():
        return sha256_file(path / INDEX)
    return digest([sha256_file(file) for file in _label_files(path)])


def one_hot(ids: np.ndarray, labels: int) -> np.ndarray:
    """Ids (X, Y, Z) as (L, X, Y, Z) float32; what is unknown is background."""
    return (np.arange(labels)[:, None, None, None] == np.maximum(ids, 0)[None]).astype(np.float32)


def placed_mask(path: Path, spec: ModelSpec) -> np.ndarray:
    """A label file on the model's grid: turned towards RAS+, resampled, its labelled part where the cohort's lies.

    Raises:
        InputError: a value that the model does not know, nothing labelled, or more of it than the grid holds.
    """
    volume = read_volume(path, label=True)
    grid = Grid(volume.shape, volume.affine).ras()
    data = volume.reoriented().data[0]
    ids = _known(data, None, spec, path)
    inside = np.argwhere(ids > 0)
    if not len(inside):
        raise InputError(f"{path} labels nothing, so no image can follow it; leave it out")
    scale = np.array(spec.spacing_mm) / np.array(grid.spacing_mm)
    offset = (inside.min(axis=0) + inside.max(axis=0)) / 2 - scale * np.array(spec.mask["centre"])
    if np.allclose(scale, 1.0, atol=1e-4):
        scale, offset = np.ones(3), np.rint(offset)  # voxels are copied
    matrix = np.diag([*scale, 1.0])
    matrix[:3, 3] = offset
    out = resample_label(ids, matrix, spec.shape)
    ends = (inside - offset) / scale
    cut = ((ends < -0.5) | (ends > np.array(spec.shape) - 0.5)).any(axis=1).mean()
    if cut > _LOST or not out.any():
        extent = " x ".join(f"{n * s:g}" for n, s in zip(spec.shape, spec.spacing_mm, strict=True))
        raise InputError(f"{path}: {cut:.0%} of what it labels lies outside the model's grid of {extent} mm; crop it")
    return out


def _known(data: np.ndarray, values: Sequence[int] | None, spec: ModelSpec, path: Path) -> np.ndarray:
    """Label values, or ids of the values given, as the model's ids."""
    original = data if values is None else np.asarray(values)[data]
    _refuse_strange(np.unique(original), spec.label_values, path)
    return label_ids(original, spec.label_values)


def _refuse_strange(found: np.ndarray, values: Sequence[int], path: Path) -> None:
    strange = sorted(set(found.tolist()) - set(values))
    if strange:
        known = ", ".join(map(str, values))
        raise InputError(f"{path} holds the label value {strange[0]}, which the model does not know (it knows {known})")


def _of_prepared(path: Path, store: Prepared, spec: ModelSpec) -> list[int]:
    if store.shape != spec.shape or not np.allclose(store.spacing_mm, spec.spacing_mm, atol=1e-3):
        raise InputError(f"{path} was prepared on another grid than the model's; give label files instead")
    labelled = [i for i in store.indices("train") if store.cases[i].has_label]
    if not labelled:
        raise InputError(f"{path} holds no labelled training case; give label files instead")
    return labelled


def _label_files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise InputError(f"{path} does not exist; give a label file, a folder of them, or a run's prepared folder")
    found = sorted(p for p in path.iterdir() if p.name.endswith((".nii", ".nii.gz")) and not p.name.startswith("."))
    if not found:
        raise InputError(f"{path} holds no .nii or .nii.gz file; give the folder in which the label maps lie")
    return found
