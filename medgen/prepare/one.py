"""Second pass: one case onto the shared grid."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from medgen.cohort.load import LoadedCase
from medgen.measure.volumes import label_volumes_ml
from medgen.prepare.bias import correct_bias
from medgen.prepare.foreground import Foreground
from medgen.prepare.grid import GeometryRecord, transform_points
from medgen.prepare.intensity import IntensityRecord, fit_intensity
from medgen.prepare.options import PrepareOptions
from medgen.prepare.plan import Plan, target_grid
from medgen.prepare.quality import signal_to_noise
from medgen.prepare.scan import Scan, extreme_voxels, foreground_of, reference_channel
from medgen.volume import Volume


@dataclass(frozen=True, eq=False)
class PreparedArrays:
    """One case, prepared.

    Attributes:
        image: (C, X, Y, Z) float16 or float32 in [-1, 1]; -1 where a channel is missing or nothing was imaged.
        label: (X, Y, Z) ids, or None.
        geometry: the way back.
        intensity: a record for each channel, None where it is missing.
        volumes_ml: of each label id but the background, on the original label grid; None without label.
        quality: figures; among them ``label_kept``, for each label but the background its volume on the prepared grid
            over its own (a coarse grid loses small structures), and ``outside_share``, the foreground cut off.
    """

    image: np.ndarray
    label: np.ndarray | None
    geometry: GeometryRecord
    intensity: tuple[IntensityRecord | None, ...]
    volumes_ml: tuple[float, ...] | None
    quality: Mapping[str, Any]


def prepare_loaded(
    loaded: LoadedCase, scan: Scan, plan: Plan, options: PrepareOptions, *, said_in: str
) -> PreparedArrays:
    """Bring one loaded case onto the shared grid.

    Args:
        loaded: its volumes.
        scan: of the first pass.
        plan: the shared grid.
        options: choices.
        said_in: names the case in errors.
    """
    geometry = GeometryRecord(scan.source, target_grid(scan, plan, options), scan.world)
    image = np.full((len(plan.channels), *plan.shape), -1.0, dtype=np.float16 if options.half else np.float32)
    records: list[IntensityRecord | None] = []
    figures: dict[str, float | None] = {}
    reference = reference_channel(loaded, plan.channels, said_in)
    for c, name in enumerate(plan.channels):
        volume = loaded.images.get(name)
        if volume is None:
            records.append(None)
            continue
        foreground = foreground_of(loaded, volume)
        values, record = _channel(volume, foreground, options, f"{said_in}, channel {name},")
        image[c] = _settle(
            geometry.apply_image(record.apply(values), interpolation=options.interpolation, affine=volume.affine),
            foreground,
            volume,
            geometry,
            options,
        )
        records.append(record)
        figures[f"snr_{name}"] = signal_to_noise(values, foreground.mask, record.lo)
        if name == reference:
            figures["foreground_share"] = foreground.share
            figures["outside_share"] = _outside(foreground.mask, volume, geometry)
    label, volumes, kept = None, None, None
    if loaded.label is not None:
        ids = label_ids(loaded.label.data[0], plan.label_values)
        label = geometry.apply_label(ids, affine=loaded.label.affine)
        found = label_volumes_ml(ids, range(1, len(plan.label_values)), loaded.label.affine)
        volumes = tuple(round(v, 6) for v in found.values())
        counts = np.bincount(label.ravel(), minlength=len(plan.label_values))
        kept = [round(counts[i] * geometry.voxel_ml / v, 4) if v else None for i, v in found.items()]
    quality = {
        **{name: None if value is None else round(float(value), 6) for name, value in figures.items()},
        "label_kept": kept,
        "foreground": scan.foreground,
        "orientation": Volume(np.zeros((1, 1, 1, 1)), scan.source.affine).orientation,
        "not_invertible": ["n4"] if options.n4 else [],
    }
    return PreparedArrays(image, label, geometry, tuple(records), volumes, quality)


def label_ids(label: np.ndarray, label_values: Sequence[int]) -> np.ndarray:
    """Original label integers as their positions in ``label_values``, uint8 or uint16.

    Every value must be listed; the plan lists those of all cases.
    """
    order = np.argsort(label_values)
    ids = order[np.searchsorted(np.asarray(label_values)[order], label)]
    return ids.astype(np.uint8 if len(label_values) <= 256 else np.uint16)


def _channel(
    volume: Volume, foreground: Foreground, options: PrepareOptions, said_in: str
) -> tuple[np.ndarray, IntensityRecord]:
    """The channel's intensities, bias-corrected where that is chosen, and their map."""
    values = volume.data[0]
    if options.n4:
        corrected = correct_bias(values, foreground.mask, volume.spacing_mm)
        if foreground.background is not None:
            corrected[values == foreground.background] = foreground.background
        values = corrected
    record = fit_intensity(values, foreground, options.percentiles, said_in=said_in, n4=options.n4)
    # A bias field is real-valued, but generated images are to be stored as the scanner's were.
    return values, replace(record, integer=bool((volume.data[0] == np.rint(volume.data[0])).all()))


def _settle(
    image: np.ndarray, foreground: Foreground, volume: Volume, geometry: GeometryRecord, options: PrepareOptions
) -> np.ndarray:
    """Undo what cubic interpolation adds: values beyond [-1, 1], and ripples in a background that was constant."""
    if options.interpolation == "bspline" and foreground.background is not None:
        inside = (volume.data[0] != foreground.background).astype(np.float32)
        seen = geometry.apply_image(inside, fill=0.0, affine=volume.affine)
        image[seen == 0] = -1.0
    return np.clip(image, -1.0, 1.0)


def _outside(mask: np.ndarray, volume: Volume, geometry: GeometryRecord) -> float:
    """Share of the foreground that the prepared grid cuts off."""
    to_target = np.linalg.inv(geometry.index_map_to(volume.affine))

    def share_inside(voxels: np.ndarray) -> float:
        index = transform_points(to_target, voxels)
        return float(((index >= -0.5) & (index <= np.array(geometry.target.shape) - 0.5)).all(axis=1).mean())

    # The grid is convex: where the ends of all columns lie in it, all voxels do.
    return 0.0 if share_inside(extreme_voxels(mask)) == 1.0 else 1.0 - share_inside(np.argwhere(mask))
