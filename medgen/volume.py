"""A 3D volume and its place in the world; NIfTI in and out.

World space is RAS+ in millimetres. ``affine`` maps voxel indices (i, j, k) to world coordinates. Headers that medgen
writes carry geometry and nothing else: ``descrip``, ``aux_file``, ``db_name``, ``intent_name`` and extensions are
empty, because scanners and pipelines put names and dates there.
"""

import gzip
import math
import zlib
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import FileBasedImage, ImageFileError
from nibabel.openers import ImageOpener
from nibabel.orientations import (
    aff2axcodes,
    apply_orientation,
    axcodes2ornt,
    inv_ornt_aff,
    io_orientation,
    ornt_transform,
)
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError

from medgen.errors import InputError
from medgen.files import atomic

CORNER_TOLERANCE_VOXELS = 0.01
_SHEAR_TOLERANCE = 1e-3
_SHEAR_OF_ROUNDING = 1e-5  # what float32 headers leave of a right angle
_MM_PER_UNIT_CODE = (1.0, 1000.0, 1.0, 0.001)  # NIfTI's codes: unknown, metre, millimetre, micrometre


@dataclass(frozen=True)
class Volume:
    """Image or label data with its affine.

    Attributes:
        data: array of shape (C, X, Y, Z); float32 for images, an integer type for labels (C = 1).
        affine: (4, 4) float64, voxel indices to RAS+ millimetres.
    """

    data: np.ndarray
    affine: np.ndarray

    def __post_init__(self) -> None:
        assert self.data.ndim == 4, f"volume data must be CXYZ, got shape {self.data.shape}"
        assert self.affine.shape == (4, 4), f"affine must be 4x4, got {self.affine.shape}"

    @property
    def shape(self) -> tuple[int, int, int]:
        """Spatial extent (X, Y, Z) in voxels."""
        x, y, z = self.data.shape[1:]
        return int(x), int(y), int(z)

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Edge lengths of a voxel along its own axes."""
        return spacing_of(self.affine)

    @property
    def orientation(self) -> str:
        """Axis codes, for example ``RAS`` or ``LPS``."""
        return "".join(aff2axcodes(self.affine))

    def reoriented(self, axes: str = "RAS") -> "Volume":
        """Flip and permute axes (no interpolation) so that they run towards ``axes``."""
        change = ornt_transform(io_orientation(self.affine), axcodes2ornt(tuple(axes)))
        spatial = apply_orientation(np.moveaxis(self.data, 0, -1), change)
        affine = self.affine @ inv_ornt_aff(change, self.shape)
        return Volume(np.ascontiguousarray(np.moveaxis(spatial, -1, 0)), affine)


def spacing_of(affine: np.ndarray) -> tuple[float, float, float]:
    """Voxel edge lengths in mm from an affine."""
    x, y, z = np.sqrt((affine[:3, :3] ** 2).sum(axis=0))
    return float(x), float(y), float(z)


def corners_mm(shape: tuple[int, int, int], affine: np.ndarray) -> np.ndarray:
    """World coordinates (8, 3) of the centres of a grid's corner voxels."""
    index = np.array(np.meshgrid(*[(0, n - 1) for n in shape], indexing="ij")).reshape(3, -1).T
    return index @ affine[:3, :3].T + affine[:3, 3]


def corner_gap_voxels(a: Volume, b: Volume) -> float:
    """Largest distance between corresponding corners, in voxels of ``a``; inf where the shapes differ."""
    if a.shape != b.shape:
        return float("inf")
    gap_mm = np.linalg.norm(corners_mm(a.shape, a.affine) - corners_mm(b.shape, b.affine), axis=1).max()
    return float(gap_mm / min(a.spacing_mm))


def check_affine(affine: np.ndarray, path: Path) -> None:
    """Refuse an affine that no scanner can have made.

    Raises:
        InputError: not finite, singular, voxels below 1 micrometre or above 1 metre, or sheared (qform cannot hold it).
    """
    if not np.isfinite(affine).all():
        raise InputError(f"{path}: the affine is not finite; set a valid sform or qform")
    spacing = np.array(spacing_of(affine))
    if spacing.min() < 1e-3 or spacing.max() > 1e3:
        raise InputError(f"{path}: voxel sizes {spacing.round(6).tolist()} mm cannot be right; mend the header")
    directions = affine[:3, :3] / spacing
    if abs(np.linalg.det(directions)) < 0.1:
        raise InputError(f"{path}: the affine is singular (two axes point the same way); mend the header")
    if np.abs(directions.T @ directions - np.eye(3)).max() > _SHEAR_TOLERANCE:
        raise InputError(f"{path}: the affine is sheared; resample the image to a grid with right angles first")


def read_volume(path: str | Path, *, label: bool = False) -> Volume:
    """Read a NIfTI file.

    A fourth dimension becomes channels. Units other than millimetres are converted. The sform is used where its code
    is set, else the qform; a file with neither is refused because its place in the world is a guess.

    Args:
        path: a ``.nii`` or ``.nii.gz`` file.
        label: read integers exactly and check that they are integers.

    Raises:
        InputError: unreadable, empty, not 3D or 4D, not finite, wrong geometry, or a label that is not integer.
    """
    path = Path(path)
    try:
        image, available = _load(path)
        if not isinstance(image, nib.Nifti1Pair):  # Nifti2 derives from Nifti1
            raise InputError(f"{path} is not a NIfTI image; convert it to .nii.gz first")
        header = image.header
        if image.ndim not in (3, 4) or min(image.shape) < 1:
            raise InputError(f"{path} has shape {image.shape}; medgen reads 3D volumes (or 4D with channels last)")
        if int(header["sform_code"]) == 0 and int(header["qform_code"]) == 0:
            raise InputError(f"{path} has neither sform nor qform, so its orientation is unknown; set one")
        # Before any memory is asked for: a damaged header may claim terabytes.
        claimed = getattr(image.dataobj, "offset", 0) + math.prod(image.shape) * image.get_data_dtype().itemsize
        if claimed > available:
            raise InputError(
                f"{path} cannot be read: its header claims {claimed} bytes, it has {available}; copy it again"
            )
        data = np.asanyarray(image.dataobj)
    except FileNotFoundError:
        raise InputError(f"{path} does not exist") from None
    except (ImageFileError, HeaderDataError, WrapStructError, OSError, EOFError, zlib.error, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} cannot be read as NIfTI ({_first_line(error)}); copy or convert it again") from None
    if data.dtype.kind not in "iufb":
        raise InputError(f"{path} holds {data.dtype} values; medgen reads real-valued images")
    affine = np.asarray(image.affine, dtype=np.float64).copy()
    affine[:3] *= _mm_per_unit(header, path)
    check_affine(affine, path)
    data = data[None] if data.ndim == 3 else np.moveaxis(data, -1, 0)
    return Volume(_as_label(data, path) if label else _as_image(data, path), affine)


def _load(path: Path) -> tuple[FileBasedImage, int]:
    """The image, its voxels not read yet, and the number of bytes that its (plain) data file has."""
    if path.name.endswith(".nii.gz"):
        with gzip.open(path) as stream:
            raw = stream.read()  # to the end: only there does gzip compare its checksum
        size = {int.from_bytes(raw[:4], "little"), int.from_bytes(raw[:4], "big")}
        kind = nib.Nifti2Image if 540 in size else nib.Nifti1Image
        return kind.from_bytes(raw), len(raw)
    image = nib.load(path)
    data_file = Path(image.file_map["image"].filename or path)
    return image, data_file.stat().st_size


def _mm_per_unit(header: nib.Nifti1Header, path: Path) -> float:
    code = int(header["xyzt_units"]) & 7
    if code >= len(_MM_PER_UNIT_CODE):
        raise InputError(f"{path} gives its voxel sizes in an unknown unit (code {code}); set xyzt_units to mm")
    return _MM_PER_UNIT_CODE[code]


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0][:200] or type(error).__name__


def _as_image(data: np.ndarray, path: Path) -> np.ndarray:
    with np.errstate(over="ignore"):
        image = np.ascontiguousarray(data, dtype=np.float32)
    if not np.isfinite(image).all():
        bad = int((~np.isfinite(image)).sum())
        raise InputError(f"{path} has {bad} voxels that are NaN or infinite (or overflow float32); mend the image")
    return image


def _as_label(data: np.ndarray, path: Path) -> np.ndarray:
    if data.shape[0] != 1:
        raise InputError(f"{path} is a label with {data.shape[0]} channels; give one integer label map")
    if data.dtype.kind == "f" and not (np.isfinite(data).all() and np.array_equal(data, np.rint(data))):
        raise InputError(f"{path} is a label but holds values that are not integers; save it as integers")
    if data.dtype.kind != "b" and (data.max(initial=0) >= 2**31 or data.min(initial=0) < -(2**31)):
        raise InputError(f"{path} holds label values beyond 32 bits; renumber them")
    return np.ascontiguousarray(data, dtype=np.int32)


def write_volume(path: str | Path, volume: Volume) -> None:
    """Write a volume as NIfTI, atomically, with sform = qform (codes 1) in mm and a header free of text.

    A single channel is written as 3D, several as 4D with channels last. The data type is the array's own where NIfTI
    tools commonly read it (bool becomes uint8, float16 float32, 64-bit integers int32).

    The sform is the affine, rounded to float32 and nothing else, so that writing what was read changes no bit. The
    qform's quaternion is less exact: near a turn by 180 degrees (slightly oblique LPS) float32 misses by up to half
    a voxel over an image. Where it is off by more than ``CORNER_TOLERANCE_VOXELS`` its code is left at 0, so that no
    reader takes it.

    Raises:
        InputError: the affine is not one that sform and qform can both hold, or label values exceed 32 bits.
    """
    path = Path(path)
    check_affine(volume.affine, path)
    affine = _with_right_angles(volume.affine).astype(np.float32).astype(np.float64)
    spatial = volume.data[0] if volume.data.shape[0] == 1 else np.moveaxis(volume.data, 0, -1)
    image = nib.Nifti1Image(_writable(spatial, path), None)
    image.set_sform(affine, code=1)
    image.set_qform(affine, code=1)
    if corner_gap_voxels(volume, Volume(volume.data, image.get_qform())) > CORNER_TOLERANCE_VOXELS:
        image.header["qform_code"] = 0
    image.header.set_xyzt_units("mm")
    for field in ("descrip", "aux_file", "db_name", "intent_name"):
        image.header[field] = b""
    image.header.extensions.clear()
    # Not nib.save: where that runs into an error it leaves the file open, and a full disk gets no room back.
    with atomic(path) as temporary, ImageOpener(str(temporary), "wb") as stream:
        image.to_stream(stream.fobj)


def _with_right_angles(affine: np.ndarray) -> np.ndarray:
    """The affine as it is where only rounding shears it, else with the nearest right-angled directions."""
    spacing = np.array(spacing_of(affine))
    directions = affine[:3, :3] / spacing
    if np.abs(directions.T @ directions - np.eye(3)).max() <= _SHEAR_OF_ROUNDING:
        return affine
    left, _, right = np.linalg.svd(directions)
    straight = affine.copy()
    straight[:3, :3] = (left @ right) * spacing
    return straight


def _writable(data: np.ndarray, path: Path) -> np.ndarray:
    kind, size = data.dtype.kind, data.dtype.itemsize
    if kind == "b":
        data = data.astype(np.uint8)
    elif kind == "f" and size == 2:
        data = data.astype(np.float32)
    elif kind in "iu" and size == 8:
        data = _as_label(data[None], path)[0]
    return np.ascontiguousarray(data)
