"""From a case's sources to its volumes in memory, with the geometry of everything checked against the first channel."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from medgen.cohort.case import Case, Source
from medgen.cohort.dicom_series import read_series
from medgen.errors import InputError
from medgen.volume import CORNER_TOLERANCE_VOXELS, Volume, corner_gap_voxels, read_volume


@dataclass(frozen=True)
class LoadedCase:
    """A case in memory; every volume has the first image's grid and affine, to the bit.

    Attributes:
        images: channel -> float32 volume of one channel; channels the case lacks are not there.
        label: int32 label map with the cohort's values, or None.
        mask: uint8 foreground mask (0 or 1), or None.
    """

    images: Mapping[str, Volume]
    label: Volume | None
    mask: Volume | None


def load_image(source: Source) -> Volume:
    """Read one channel: a NIfTI file, a component of a 4D one, or a DICOM series.

    Raises:
        InputError: unreadable, several channels and none chosen, or a component that is not there.
    """
    if source.path.is_dir():
        return read_series(source.path, source.series)
    return _component(read_volume(source.path), source)


def load_label(case: Case) -> Volume | None:
    """Merge a case's label files in order, non-zero voxels of later ones over earlier ones; None where it has none.

    Raises:
        InputError: unreadable, not integers, or files on different grids.
    """
    merged: Volume | None = None
    for file in case.label:
        found = _read_label(file.source)
        if file.value is not None:
            found = Volume(np.where(found.data != 0, np.int32(file.value), np.int32(0)), found.affine)
        if merged is None:
            merged = found
        else:
            found = _on_grid_of(merged, case.label[0].source.path, found, file.source.path)
            merged = Volume(np.where(found.data != 0, found.data, merged.data), merged.affine)
    return merged


def load_case(case: Case, channels: Sequence[str]) -> LoadedCase:
    """Read the images, label and mask of a case and check that they lie on one grid.

    A volume whose axes run another way over the same grid (a label flipped by a converter) is turned, without
    interpolation.

    Args:
        case: what to read; a missing label, mask or channel is fine.
        channels: to read, in order; the first one present gives the grid.

    Raises:
        InputError: none of the channels is there, a file is unreadable, or two files do not share corners within
            ``CORNER_TOLERANCE_VOXELS``.
    """
    present = [c for c in channels if c in case.images]
    if not present:
        raise InputError(f"case {case.case_id} has none of the channels {', '.join(channels)}; leave it out")
    first = case.images[present[0]]
    whole: dict[Path, Volume] = {}  # a 4D file holds several channels and is read once
    images: dict[str, Volume] = {}
    for channel in present:
        source = case.images[channel]
        if source.component is None:
            found = load_image(source)
        else:
            if source.path not in whole:
                whole[source.path] = read_volume(source.path)
            found = _component(whole[source.path], source)
        images[channel] = _on_grid_of(images[present[0]], first.path, found, source.path) if images else found
    grid = images[present[0]]
    label = load_label(case)
    if label is not None:
        label = _on_grid_of(grid, first.path, label, case.label[0].source.path)
    mask = None
    if case.mask is not None:
        mask = _on_grid_of(grid, first.path, _read_label(case.mask), case.mask.path)
        mask = replace(mask, data=(mask.data != 0).astype(np.uint8))
    return LoadedCase(images, label, mask)


def _component(volume: Volume, source: Source) -> Volume:
    n = volume.data.shape[0]
    if source.component is None and n > 1:
        raise InputError(f"{source.path} has {n} channels where one is expected; split it or name its channels")
    index = source.component or 0
    if index >= n:
        raise InputError(f"{source.path} has {n} channels, but the dataset says it has at least {index + 1}")
    return Volume(np.ascontiguousarray(volume.data[index : index + 1]), volume.affine)


def _read_label(source: Source) -> Volume:
    if source.path.is_dir():
        volume = read_series(source.path, source.series)
        return Volume(np.rint(volume.data).astype(np.int32), volume.affine)
    return read_volume(source.path, label=True)


def _on_grid_of(grid: Volume, grid_path: Path, other: Volume, other_path: Path) -> Volume:
    """``other`` with the axes and the exact affine of ``grid``.

    Raises:
        InputError: naming both files, if the corners differ.
    """
    turned = other if other.orientation == grid.orientation else other.reoriented(grid.orientation)
    gap = corner_gap_voxels(grid, turned)
    if gap > CORNER_TOLERANCE_VOXELS:
        how = f"shapes {grid.shape} and {other.shape}" if np.isinf(gap) else f"corners {gap:.2f} voxels apart"
        raise InputError(f"{other_path} does not lie on {grid_path} ({how}); resample one onto the other")
    return Volume(turned.data, grid.affine)
