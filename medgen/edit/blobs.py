"""Shapes of lesions: a score around a seed, of which a lesion takes the highest connected voxels."""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import ndimage

from medgen.errors import InputError
from medgen.volume import read_volume

_ENDINGS = (".nii", ".nii.gz")
_SMALLEST = 8  # voxels below which a lesion of the bank has no shape to speak of
_ASPECT = 0.35  # spread of the logarithm of a blob's axes
_ROUGH = 0.5  # how far its surface goes in and out, as a share of its radius


@dataclass(frozen=True, eq=False)
class Shape:
    """One lesion of a bank.

    Attributes:
        mask: (X, Y, Z) bool, the box around it.
        spacing_mm: of its voxels.
    """

    mask: np.ndarray
    spacing_mm: tuple[float, float, float]

    @property
    def volume_ml(self) -> float:
        """Its volume."""
        return float(self.mask.sum() * np.prod(self.spacing_mm)) / 1000.0


def read_bank(path: Path) -> list[Shape]:
    """Every connected lesion (26 neighbours) of a label map, or of all label maps below a folder.

    Raises:
        InputError: nothing there, or no lesion in it.
    """
    found = [path]
    if path.is_dir():
        found = sorted(p for p in path.rglob("*") if p.name.endswith(_ENDINGS))
    if not found or not path.exists():
        raise InputError(
            f"{path} holds no label map (.nii or .nii.gz); give a file or a folder of lesion masks as bank"
        )
    shapes = []
    for file in found:
        volume = read_volume(file, label=True)
        mask = volume.data[0] > 0
        parts, _ = ndimage.label(mask, structure=np.ones((3, 3, 3), bool))
        for i, box in enumerate(ndimage.find_objects(parts), start=1):
            inside = parts[box] == i
            if inside.sum() >= _SMALLEST:
                shapes.append(Shape(inside, volume.spacing_mm))
    if not shapes:
        raise InputError(f"{path} holds no lesion of {_SMALLEST} voxels or more; give other masks as bank")
    return shapes


def noise_score(
    shape: Sequence[int], spacing_mm: Sequence[float], at: Sequence[int], radius_mm: float, rng: np.random.Generator
) -> np.ndarray:
    """A score that falls with the distance from a place, by a random ellipsoid under smooth noise.

    Args:
        shape: of the box.
        spacing_mm: of its voxels.
        at: the seed's voxel.
        radius_mm: of a ball of the lesion's volume.
        rng: draws axes, directions and noise.
    """
    points = _offsets_mm(shape, spacing_mm, at).reshape(3, -1)
    axes = np.exp(_ASPECT * rng.standard_normal(3))
    axes /= np.prod(axes) ** (1 / 3)
    distance = np.linalg.norm((_rotation(rng) @ points) / (axes[:, None] * radius_mm), axis=0).reshape(shape)
    rough = np.zeros(shape)
    for width, strength in ((0.6, 1.0), (0.3, 0.5)):
        sigma = [width * radius_mm / s for s in spacing_mm]
        noise = ndimage.gaussian_filter(rng.standard_normal(shape), sigma, mode="wrap")
        rough += strength * noise / max(float(noise.std()), 1e-9)
    score: np.ndarray = _ROUGH * rough - distance
    return score


def bank_score(
    shape: Sequence[int],
    spacing_mm: Sequence[float],
    at: Sequence[int],
    volume_ml: float,
    bank: Sequence[Shape],
    rng: np.random.Generator,
) -> np.ndarray:
    """A score with the shape of one of the bank's lesions, turned at random and scaled to a volume.

    One is drawn from the five that are nearest in volume: a large lesion has not the shape of a small one.

    Args:
        shape: of the box.
        spacing_mm: of its voxels.
        at: the seed's voxel.
        volume_ml: of the lesion wanted.
        bank: the lesions.
        rng: draws one, and its pose.
    """
    near = sorted(bank, key=lambda s: abs(np.log(s.volume_ml / volume_ml)))[:5]
    one = near[int(rng.integers(len(near)))]
    mask = np.pad(one.mask, 2)
    depth = ndimage.distance_transform_edt(mask, sampling=one.spacing_mm)
    signed = depth - ndimage.distance_transform_edt(~mask, sampling=one.spacing_mm)
    pole = np.unravel_index(int(depth.argmax()), depth.shape)
    scale = (volume_ml / one.volume_ml) ** (1 / 3)
    turned = _rotation(rng) @ _offsets_mm(shape, spacing_mm, at).reshape(3, -1) / scale
    source = turned / np.reshape(one.spacing_mm, (3, 1)) + np.reshape(pole, (3, 1))
    inside = ndimage.map_coordinates(signed, source, order=1, mode="nearest")
    over = np.maximum(np.maximum(-source, source - np.reshape(mask.shape, (3, 1)) + 1), 0)
    beyond = np.linalg.norm(over * np.reshape(one.spacing_mm, (3, 1)), axis=0)
    score: np.ndarray = (inside - beyond).reshape(shape)
    return score


def flood(score: np.ndarray, allowed: np.ndarray, at: Sequence[int], count: int) -> np.ndarray:
    """The connected set (6 neighbours) of ``count`` allowed voxels around a seed that takes the highest first.

    Args:
        score: (X, Y, Z).
        allowed: (X, Y, Z) bool, true at the seed.
        at: the seed's voxel.
        count: voxels; fewer come where no more are allowed and connected.
    """
    may, rank = np.pad(allowed, 1), np.pad(-score, 1).ravel()
    taken = np.zeros(may.shape, bool)
    free, flat = may.ravel(), taken.ravel()
    _, y, z = may.shape
    steps = (y * z, -y * z, z, -z, 1, -1)
    first = ((at[0] + 1) * y + at[1] + 1) * z + at[2] + 1
    free[first] = False
    queue: list[tuple[float, int]] = [(float(rank[first]), first)]
    n = 0
    while queue and n < count:
        _, here = heapq.heappop(queue)
        flat[here] = True
        n += 1
        for there in (here + s for s in steps):
            if free[there]:
                free[there] = False
                heapq.heappush(queue, (float(rank[there]), there))
    return taken[1:-1, 1:-1, 1:-1].copy()


def _offsets_mm(shape: Sequence[int], spacing_mm: Sequence[float], at: Sequence[int]) -> np.ndarray:
    lines = [(np.arange(n) - a) * s for n, s, a in zip(shape, spacing_mm, at, strict=True)]
    return np.stack(np.meshgrid(*lines, indexing="ij"))


def _rotation(rng: np.random.Generator) -> np.ndarray:
    """A random orthogonal matrix: a turn, or a turn and a mirror image."""
    q, r = np.linalg.qr(rng.standard_normal((3, 3)))
    turn: np.ndarray = q * np.sign(np.diag(r))
    return turn
