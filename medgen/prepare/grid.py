"""All geometry of a case as one record: source grid, target grid and the world map between them.

    target voxel --target.affine--> target world --world--> source world --inv(source.affine)--> source voxel

Reorientation, resampling, registration, cropping and padding are the one composed affine; applying the record is one
resampling, inverting it is one resampling through the inverse.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from nibabel.orientations import inv_ornt_aff, io_orientation

from medgen.prepare.resample import Interpolation, resample_image, resample_label, resample_probabilities
from medgen.volume import spacing_of

Shape = tuple[int, int, int]


@dataclass(frozen=True, eq=False)
class Grid:
    """A box of voxels in the world.

    Attributes:
        shape: (X, Y, Z) voxels.
        affine: (4, 4) float64, voxel indices to RAS+ millimetres.
    """

    shape: Shape
    affine: np.ndarray

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Edge lengths of a voxel."""
        return spacing_of(self.affine)

    @property
    def voxel_ml(self) -> float:
        """Volume of a voxel in ml."""
        return abs(float(np.linalg.det(self.affine[:3, :3]))) / 1000.0

    def ras(self) -> "Grid":
        """The same voxels with axes flipped and permuted so that they run as nearly as they can towards RAS+."""
        change = io_orientation(self.affine)
        order = np.argsort(change[:, 0])
        x, y, z = (int(self.shape[i]) for i in order)
        return Grid((x, y, z), self.affine @ inv_ornt_aff(change, self.shape))

    def to_json(self) -> dict[str, Any]:
        """As plain JSON."""
        return {"shape": list(self.shape), "affine": self.affine.tolist()}

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> "Grid":
        """From what :meth:`to_json` gave."""
        x, y, z = (int(n) for n in value["shape"])
        return Grid((x, y, z), np.array(value["affine"], dtype=np.float64))


@dataclass(frozen=True, eq=False)
class GeometryRecord:
    """How a case was brought onto the common grid, and the way back.

    Attributes:
        source: the grid of the case's files, as they lie (``source.ras()`` is its RAS+ form).
        target: the prepared grid.
        world: (4, 4), world of the target to world of the source; the identity without registration.
    """

    source: Grid
    target: Grid
    world: np.ndarray

    @property
    def native_spacing_mm(self) -> tuple[float, float, float]:
        """Edge lengths of a voxel of the source, to the right, to the front and upwards; rounded to a micrometre."""
        x, y, z = (round(s, 3) for s in self.source.ras().spacing_mm)
        return x, y, z

    @property
    def index_map(self) -> np.ndarray:
        """(4, 4), target voxel to source voxel."""
        return self.index_map_to(self.source.affine)

    def index_map_to(self, affine: np.ndarray) -> np.ndarray:
        """(4, 4), target voxel to the voxel of a volume in the source's world (a channel may have its own grid)."""
        return np.linalg.solve(affine, self.world @ self.target.affine)

    @property
    def voxel_ml(self) -> float:
        """Volume of one prepared voxel in the subject's own space: a registration's scaling is undone."""
        return self.target.voxel_ml * abs(float(np.linalg.det(self.world[:3, :3])))

    def apply_image(
        self,
        data: np.ndarray,
        *,
        fill: float = -1.0,
        interpolation: Interpolation = "linear",
        affine: np.ndarray | None = None,
    ) -> np.ndarray:
        """Bring an image (X, Y, Z) or (C, X, Y, Z) of the source onto the target grid, float32.

        Args:
            data: on the source grid, or on the grid of ``affine``.
            fill: what outside the source gets.
            interpolation: linear or bspline, used only where the map is not exact.
            affine: of ``data`` where it differs from the source's.
        """
        matrix = self.index_map_to(self.source.affine if affine is None else affine)
        return _each(data, matrix, self.target.shape, fill, interpolation)

    def invert_image(
        self, data: np.ndarray, *, fill: float = -1.0, interpolation: Interpolation = "linear"
    ) -> np.ndarray:
        """Bring an image (X, Y, Z) or (C, X, Y, Z) of the target grid back onto the source grid, float32."""
        return _each(data, np.linalg.inv(self.index_map), self.source.shape, fill, interpolation)

    def apply_label(self, label: np.ndarray, *, affine: np.ndarray | None = None) -> np.ndarray:
        """Bring a label map (X, Y, Z) of the source onto the target grid; outside is 0."""
        matrix = self.index_map_to(self.source.affine if affine is None else affine)
        return resample_label(label, matrix, self.target.shape)

    def invert_label(self, label: np.ndarray) -> np.ndarray:
        """Bring a label map (X, Y, Z) of the target grid back onto the source grid; outside is 0."""
        return resample_label(label, np.linalg.inv(self.index_map), self.source.shape)

    def invert_probabilities(self, probabilities: np.ndarray, dtype: np.dtype | type | None = None) -> np.ndarray:
        """Label ids on the source grid from probabilities (K, X, Y, Z) on the target grid that sum to 1."""
        return resample_probabilities(probabilities, np.linalg.inv(self.index_map), self.source.shape, dtype)

    def to_prepared_points(self, points_mm: np.ndarray) -> np.ndarray:
        """World points (N, 3) of the source, in mm, as world points of the target."""
        return transform_points(np.linalg.inv(self.world), points_mm)

    def to_source_points(self, points_mm: np.ndarray) -> np.ndarray:
        """World points (N, 3) of the target, in mm, as world points of the source."""
        return transform_points(self.world, points_mm)

    def to_prepared_voxels(self, voxels: np.ndarray) -> np.ndarray:
        """Continuous voxel indices (N, 3) of the source as ones of the target."""
        return transform_points(np.linalg.inv(self.index_map), voxels)

    def to_source_voxels(self, voxels: np.ndarray) -> np.ndarray:
        """Continuous voxel indices (N, 3) of the target as ones of the source."""
        return transform_points(self.index_map, voxels)

    def to_json(self) -> dict[str, Any]:
        """As plain JSON; floats survive to the last bit."""
        return {"source": self.source.to_json(), "target": self.target.to_json(), "world": self.world.tolist()}

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> "GeometryRecord":
        """From what :meth:`to_json` gave."""
        world = np.array(value["world"], dtype=np.float64)
        return GeometryRecord(Grid.from_json(value["source"]), Grid.from_json(value["target"]), world)


def transform_points(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Apply a (4, 4) affine to points (N, 3)."""
    return np.asarray(points, dtype=np.float64) @ matrix[:3, :3].T + matrix[:3, 3]


def _each(
    data: np.ndarray, matrix: np.ndarray, shape: Sequence[int], fill: float, interpolation: Interpolation
) -> np.ndarray:
    if data.ndim == 3:
        return resample_image(data, matrix, shape, fill=fill, interpolation=interpolation)
    return np.stack([resample_image(c, matrix, shape, fill=fill, interpolation=interpolation) for c in data])
