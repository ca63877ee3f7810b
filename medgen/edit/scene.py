"""What an edit works on: a label map with its names and spacing."""

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
from scipy import ndimage

from medgen.cohort.schema import volume_column
from medgen.errors import InputError
from medgen.measure.volumes import label_volumes_ml

UNKNOWN = -1


@dataclass(frozen=True, eq=False)
class Scene:
    """A label map.

    Attributes:
        ids: (X, Y, Z) int16 label ids, -1 where the label is unknown; the x axis runs from left to right (RAS+).
        names: of the ids, the background first.
        spacing_mm: edge lengths of a voxel.
    """

    ids: np.ndarray
    names: tuple[str, ...]
    spacing_mm: tuple[float, float, float]

    def __post_init__(self) -> None:
        assert self.ids.ndim == 3 and self.ids.dtype == np.int16, f"ids of {self.ids.dtype}, {self.ids.shape}"
        assert len(self.names) >= 1 and min(self.spacing_mm) > 0

    @property
    def voxel_ml(self) -> float:
        """Volume of a voxel."""
        return float(np.prod(self.spacing_mm)) / 1000.0

    @property
    def known(self) -> np.ndarray:
        """(X, Y, Z) bool: where the label is known."""
        known: np.ndarray = self.ids >= 0
        return known

    def volumes_ml(self) -> dict[str, float]:
        """Volume of each label but the background."""
        found = label_volumes_ml(self.ids, range(len(self.names)), np.diag([*self.spacing_mm, 1.0]))
        return {name: found[i] for i, name in enumerate(self.names) if i}

    def with_ids(self, ids: np.ndarray) -> "Scene":
        """The same scene with other ids; voxels unknown now stay unknown."""
        return replace(self, ids=np.where(self.known, ids, UNKNOWN).astype(np.int16))


def id_of(names: Sequence[str], label: object) -> int:
    """Id of a label given by its name or id.

    Names are compared as the names of volume covariates are: ``ventricles`` finds ``Ventricles``.

    Raises:
        InputError: no such label; names the nearest.
    """
    if isinstance(label, int) and not isinstance(label, bool) and 0 <= label < len(names):
        return label
    known = {volume_column(n): i for i, n in reversed(list(enumerate(names)))} | {n: i for i, n in enumerate(names)}
    for key in (label, volume_column(label)) if isinstance(label, str) else ():
        if key in known:
            return known[key]
    near = difflib.get_close_matches(str(label), names, n=1, cutoff=0.4)
    hint = f"; did you mean '{near[0]}'?" if near else ""
    raise InputError(f"an edit names the label {label!r}, and the labels are: {', '.join(names)}{hint}")


def has(names: Sequence[str], label: object) -> bool:
    """Whether :func:`id_of` finds a label."""
    try:
        id_of(names, label)
    except InputError:
        return False
    return True


def ids_of(names: Sequence[str], labels: Iterable[object]) -> list[int]:
    """Ids of several labels, see :func:`id_of`."""
    return [id_of(names, label) for label in labels]


def asked_ml(target: Mapping[str, float], name: str) -> float | None:
    """The volume that a request asks of a label, None where it asks nothing.

    A request names a label, or the covariate of its volume: ``Ventricles``, ``ventricles`` or ``ventricles_ml``.
    """
    column = volume_column(name)
    for key, value in target.items():
        if key in (name, column) or volume_column(key) == column:
            return float(value)
    return None


def nearest_other(ids: np.ndarray, wanted: np.ndarray, spacing_mm: Sequence[float]) -> np.ndarray:
    """Each voxel's nearest label among voxels where ``wanted``; ``ids`` itself where none is wanted.

    Args:
        ids: (X, Y, Z).
        wanted: (X, Y, Z) bool.
        spacing_mm: of the voxels.
    """
    if not wanted.any():
        return ids
    index = ndimage.distance_transform_edt(~wanted, sampling=spacing_mm, return_distances=False, return_indices=True)
    found: np.ndarray = ids[tuple(index)]
    return found


def filled(scene: Scene) -> np.ndarray:
    """(X, Y, Z) int16 ids in which unknown voxels have their nearest known label, so that maps can be moved."""
    return scene.ids if scene.known.all() else nearest_other(scene.ids, scene.known, scene.spacing_mm)


@contextmanager
def said_by(kind: str) -> Iterator[None]:
    """Name the edit in the message of an InputError."""
    try:
        yield
    except InputError as error:
        raise InputError(f"edit '{kind}': {error}") from error
