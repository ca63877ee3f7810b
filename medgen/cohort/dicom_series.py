"""DICOM series as volumes, through SimpleITK (GDCM): geometry checked slice by slice, nothing but voxels kept."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import SimpleITK as sitk  # noqa: N813

from medgen.errors import InputError
from medgen.volume import Volume, check_affine

POSITION, ORIENTATION = "0020|0032", "0020|0037"
# Slice gaps are written with few digits; beyond 1 % of the spacing something is missing or was not measured evenly.
GAP_TOLERANCE = 0.01
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep GDCM's warnings, which name tags and files, off the terminal."""
    before = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        yield
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(before)


def is_dicom(path: Path) -> bool:
    """Whether a file starts with the DICOM preamble."""
    try:
        with path.open("rb") as stream:
            return stream.read(132)[128:] == b"DICM"
    except OSError:
        return False


def series_files(folder: Path, series: str) -> list[str]:
    """Files of one series directly in a folder."""
    with _quiet():
        return list(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), series))


def series_in(folder: Path) -> dict[str, list[str]]:
    """SeriesInstanceUID -> files, for the files directly in a folder, sorted.

    Raises:
        InputError: a DICOM file belongs to no series, as happens to one cut short: GDCM would leave it out in silence.
    """
    with _quiet():
        ids = sorted(sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(folder)))
    found = {series: series_files(folder, series) for series in ids}
    known = {Path(f).name for files in found.values() for f in files}
    for path in sorted(folder.iterdir()):
        if path.name not in known and path.name != "DICOMDIR" and path.is_file() and is_dicom(path):
            raise InputError(f"{path} is a DICOM file that cannot be read; copy it again or remove it")
    return found


def read_tags(file: str | Path, tags: tuple[str, ...]) -> dict[str, str]:
    """The named tags (``gggg|eeee``) of one file; empty where it lacks one.

    Raises:
        InputError: the file cannot be read as an image.
    """
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(file))
    try:
        with _quiet():
            reader.SetImageIO("GDCMImageIO")
            reader.ReadImageInformation()
    except RuntimeError:
        raise InputError(f"{file} cannot be read as a DICOM image; copy it again or remove it") from None
    # GDCM pads values to even length with blanks or zeros.
    return {t: reader.GetMetaData(t).strip(" \0") if reader.HasMetaDataKey(t) else "" for t in tags}


def read_series(folder: Path, series: str | None = None) -> Volume:
    """Read a DICOM series as a float32 volume in RAS+.

    Args:
        folder: holds the files.
        series: its SeriesInstanceUID, needed where the folder holds several.

    Raises:
        InputError: no series, several, slices missing, uneven, tilted, turned or doubled, colours, or a broken file.
    """
    if series is None:
        found = list(series_in(folder))
        if len(found) != 1:
            what = "no DICOM series" if not found else f"{len(found)} DICOM series"
            raise InputError(f"{folder} holds {what}; give a folder with exactly one")
        series = found[0]
    files = series_files(folder, series)
    if not files:
        raise InputError(f"{folder} no longer holds the DICOM series that was found there; read the cohort again")
    try:
        with _quiet():
            image = sitk.ReadImage(files[0] if len(files) == 1 else _in_order(folder, files))
    except RuntimeError:
        raise InputError(f"{folder}: its DICOM slices cannot be stacked (sizes differ or a file is broken)") from None
    if image.GetNumberOfComponentsPerPixel() > 1 or image.GetDimension() != 3 or image.GetSize()[2] < 2:
        raise InputError(f"{folder} is a DICOM series with colours, or not 3D; medgen reads grey 3D series")
    affine = _LPS_TO_RAS @ _affine_lps(image)
    check_affine(affine, folder)
    data = sitk.GetArrayViewFromImage(image).transpose(2, 1, 0)[None]
    return Volume(np.ascontiguousarray(data, dtype=np.float32), affine)


def _affine_lps(image: sitk.Image) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * np.array(image.GetSpacing())
    affine[:3, 3] = image.GetOrigin()
    return affine


def _in_order(folder: Path, files: list[str]) -> list[str]:
    """Files sorted along the slice normal, after checking that they make an even stack."""
    positions, orientations = [], []
    for file in files:
        tags = read_tags(file, (POSITION, ORIENTATION))
        try:
            positions.append([float(v) for v in tags[POSITION].split("\\")])
            orientations.append([float(v) for v in tags[ORIENTATION].split("\\")])
        except ValueError:
            raise InputError(f"{folder}: a DICOM slice lacks position or orientation; convert it first") from None
    direction = np.array(orientations[0])
    if any(len(o) != 6 or np.abs(np.array(o) - direction).max() > 1e-3 for o in orientations):
        raise InputError(
            f"{folder}: the slices of a DICOM series point different ways (a localiser?); remove the series"
        )
    normal = np.cross(direction[:3], direction[3:])
    points = np.array(positions)
    order = np.argsort(points @ normal, kind="stable")
    steps = np.diff(points[order], axis=0)
    gaps = steps @ normal
    spacing = float(np.median(gaps))
    if (gaps < 1e-3).any():
        raise InputError(f"{folder}: a DICOM series has several slices at one position; split it by echo or time first")
    if np.abs(steps - gaps[:, None] * normal).max() > GAP_TOLERANCE * spacing:
        raise InputError(f"{folder}: the slices of a DICOM series are shifted (gantry tilt); resample the series first")
    if np.abs(gaps - spacing).max() > GAP_TOLERANCE * spacing:
        worst = float(gaps[np.abs(gaps - spacing).argmax()])
        what = "slices are missing" if worst > 1.5 * spacing else "the slices are unevenly spaced"
        raise InputError(
            f"{folder}: {what} in a DICOM series (a gap of {worst:.2f} mm where others are {spacing:.2f} mm);"
            " export it again"
        )
    return [files[i] for i in order]
