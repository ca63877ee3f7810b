"""The template of the phantoms: nilearn's MNI152 maps, the lateral ventricles in them, and a flow out of those."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy import fft
from scipy import ndimage as ndi

COARSE_MM = 6.0  # of the grid that carries velocities
COARSE_MARGIN_MM = 24.0  # keeps its edge out of the brain; the same at every spacing, so that anatomies are too
MARGIN_MM = 8.0  # around the template's brain; phantoms are smaller than it


@dataclass(frozen=True)
class Grid:
    """A regular grid along the RAS+ axes: ``shape`` voxels of ``spacing_mm``, the first centred at ``origin_mm``."""

    shape: tuple[int, int, int]
    origin_mm: tuple[float, float, float]
    spacing_mm: float

    @property
    def affine(self) -> np.ndarray:
        """(4, 4), voxel indices to RAS+ mm."""
        affine = np.diag([self.spacing_mm] * 3 + [1.0])
        affine[:3, 3] = self.origin_mm
        return affine

    @property
    def voxel_ml(self) -> float:
        """Volume of a voxel."""
        return self.spacing_mm**3 / 1000.0

    def points(self) -> np.ndarray:
        """World coordinates of every voxel, (3, X, Y, Z) in mm."""
        axes = [o + self.spacing_mm * np.arange(n) for o, n in zip(self.origin_mm, self.shape, strict=True)]
        return np.stack(np.meshgrid(*axes, indexing="ij"))

    def sample(self, values: np.ndarray, points_mm: np.ndarray, outside: float | None = None) -> np.ndarray:
        """Linear interpolation at world points (3, ...); beyond the grid the nearest value, or ``outside``."""
        index = (points_mm - np.reshape(self.origin_mm, (3,) + (1,) * (points_mm.ndim - 1))) / self.spacing_mm
        mode, cval = ("nearest", 0.0) if outside is None else ("constant", outside)
        return ndi.map_coordinates(values, index, output=np.float32, order=1, mode=mode, cval=cval)


def grid_around(low_mm: np.ndarray, high_mm: np.ndarray, spacing_mm: float) -> Grid:
    """The smallest grid of a spacing that covers a box, centred on it."""
    count = np.ceil((high_mm - low_mm) / spacing_mm).astype(int) + 1
    x, y, z = (float(o) for o in (low_mm + high_mm) / 2 - spacing_mm * (count - 1) / 2)
    return Grid((int(count[0]), int(count[1]), int(count[2])), (x, y, z), spacing_mm)


@dataclass(frozen=True)
class Template:
    """The template's maps, smoothed for one target spacing, as uint8 with 255 for 1.

    Attributes:
        grid: of the maps, 1 mm.
        target: the grid of the phantoms.
        brain: inside the brain.
        t1: intensity, the ventricles filled from their surroundings.
        gm: grey matter probability, ventricles filled likewise.
        wm: white matter probability, ventricles filled likewise.
        ventricles: inside the lateral ventricles.
        sulci: ``t1`` against its wider surroundings; low where CSF lies between gyri.
        coarse: the grid of velocities, around the brain.
        ventricle_flow: u on the grid ``coarse``, mm, (3, x, y, z).
        ventricle_box_mm: (2, 3), what the flow's sources lie in, with some way to grow.
        sulci_sorted: quantiles of ``sulci`` in the brain outside the ventricles at the target's voxels, 0 to 255.
    """

    grid: Grid
    target: Grid
    brain: np.ndarray
    t1: np.ndarray
    gm: np.ndarray
    wm: np.ndarray
    ventricles: np.ndarray
    sulci: np.ndarray
    coarse: Grid
    ventricle_flow: np.ndarray
    ventricle_box_mm: np.ndarray
    sulci_sorted: np.ndarray

    def csf_below(self, share: float) -> float:
        """The value of ``sulci`` (0 to 1) below which ``share`` of the brain outside the ventricles lies."""
        return float(np.quantile(self.sulci_sorted, share)) / 255.0


@lru_cache(maxsize=2)
def load_template(spacing_mm: float) -> Template:
    """Load nilearn's MNI152 templates and derive what phantoms at ``spacing_mm`` need."""
    # nilearn takes seconds to import and only the parent process needs it.
    from nilearn.datasets import load_mni152_gm_template, load_mni152_template, load_mni152_wm_template

    image = load_mni152_template(resolution=1)
    t1, gm, wm = (
        np.asarray(i.dataobj, dtype=np.float32)
        for i in (image, load_mni152_gm_template(resolution=1), load_mni152_wm_template(resolution=1))
    )
    brain = ndi.binary_fill_holes(t1 > 0)
    box = ndi.find_objects(brain.astype(np.uint8))[0]
    t1, gm, wm, brain = (np.pad(m[box], 3) for m in (t1, gm, wm, brain))
    origin = np.array([s.start - 3 for s in box]) + np.asarray(image.affine)[:3, 3]
    grid = Grid((t1.shape[0], t1.shape[1], t1.shape[2]), (float(origin[0]), float(origin[1]), float(origin[2])), 1.0)
    ventricles = find_ventricles(t1, brain, grid)
    t1, gm, wm = _without_ventricles((t1, gm, wm), ventricles, brain)

    low, high = origin + 3, origin + np.array(t1.shape) - 4
    target = grid_around(low - MARGIN_MM, high + MARGIN_MM, spacing_mm)
    coarse = grid_around(low - COARSE_MARGIN_MM, high + COARSE_MARGIN_MM, COARSE_MM)
    # Cerebellar grey matter is as dark as cerebral sulci are: in dark surroundings a sulcus must be darker still.
    surroundings = ndi.gaussian_filter(t1, 12.0, truncate=3.0)
    sulci = t1 - 0.8 * np.minimum(surroundings - surroundings[brain].mean(), 0.0)
    sigma = 0.35 * spacing_mm  # against aliasing where a voxel spans several millimetres
    maps = {"brain": brain, "t1": t1, "gm": gm, "wm": wm, "ventricles": ventricles, "sulci": sulci}
    smooth = {name: _as_bytes(ndi.gaussian_filter(m.astype(np.float32), sigma)) for name, m in maps.items()}
    found = np.argwhere(ventricles)
    flow_box = origin + np.stack([found.min(axis=0) - 15, found.max(axis=0) + 15])
    names = ("brain", "ventricles", "sulci")
    inside, chamber, contrast = (grid.sample(smooth[name], target.points(), outside=0.0) for name in names)
    quantiles = np.quantile(contrast[(inside > 127) & (chamber < 127)], np.linspace(0, 1, 1001))
    flow = _flow_from(grid.sample(ventricles.astype(np.float32), coarse.points(), outside=0.0))
    return Template(
        grid=grid,
        target=target,
        **smooth,
        coarse=coarse,
        ventricle_flow=flow,
        ventricle_box_mm=flow_box,
        sulci_sorted=quantiles,
    )


def find_ventricles(t1: np.ndarray, brain: np.ndarray, grid: Grid) -> np.ndarray:
    """The lateral ventricles of the template: the two dark components beside the midline.

    Below an intensity of 0.45 the left and the right ventricle are components of their own, apart from the cisterns;
    two steps outwards to 0.55 bring back the rim that partial volume brightens.
    """
    x, y, z = grid.points()
    near = (np.abs(x) < 42) & (y > -58) & (y < 38) & (z > -24) & (z < 34) & brain
    components, _ = ndi.label((t1 < 0.45) & near)
    sides = []
    for side in (x < 0, x > 0):
        # Deep in the body of the ventricle of this side; the cisterns lie elsewhere.
        core = side & (np.abs(x) < 25) & (y > -25) & (y < 10) & (z > 16) & (z < 26)
        numbers = np.bincount(components[core], minlength=2)
        numbers[0] = 0
        sides.append(components == numbers.argmax())
    return ndi.binary_dilation(sides[0] | sides[1], iterations=2, mask=(t1 < 0.55) & near)


def _without_ventricles(
    maps: tuple[np.ndarray, ...], ventricles: np.ndarray, brain: np.ndarray
) -> tuple[np.ndarray, ...]:
    # The rim holds partial volume that would read as grey matter around the widened ventricle: fill it as well.
    rim = ndi.binary_dilation(ventricles, iterations=2)
    nearest = ndi.distance_transform_edt(rim | ~brain, return_distances=False, return_indices=True)
    # Outside the brain, the nearest brain value: smoothing and warping then never darken its edge.
    t1, gm, wm = (np.where(brain & ~rim, m, m[tuple(nearest)]) for m in maps)
    total = np.maximum(gm + wm, 1e-3)
    return t1, gm / total, wm / total


def _as_bytes(values: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(values * 255), 0, 255).astype(np.uint8)


def _flow_from(inside: np.ndarray) -> np.ndarray:
    """The potential flow u (mm per unit amplitude) with sources where ``inside`` is and sinks spread around it."""
    source = ndi.gaussian_filter(inside, 4.0 / COARSE_MM, mode="constant")
    sink = ndi.gaussian_filter(inside, 22.0 / COARSE_MM, mode="constant")
    sink *= source.sum() / sink.sum()
    divergence = source - sink
    # Poisson's equation by the Fourier transform; sources and sinks cancel, so the box's repeats hardly matter.
    shape = [fft.next_fast_len(2 * n, real=True) for n in divergence.shape]
    k = np.meshgrid(*[2 * np.pi * fft.fftfreq(n, COARSE_MM) for n in shape], indexing="ij")
    k2 = sum(c**2 for c in k)
    k2[0, 0, 0] = 1.0
    potential = fft.fftn(divergence, shape) / -k2
    crop = tuple(slice(n) for n in divergence.shape)
    flow = np.stack([fft.ifftn(1j * c * potential).real[crop] for c in k])
    return flow.astype(np.float32)
