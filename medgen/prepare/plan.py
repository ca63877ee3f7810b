"""The grid all cases share, and each case's place in it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from medgen.errors import InputError
from medgen.prepare.grid import Grid
from medgen.prepare.options import PrepareOptions
from medgen.prepare.scan import Scan

Spacing = tuple[float, float, float]
_ROUNDING_VOXELS = 0.01


@dataclass(frozen=True)
class Plan:
    """What all cases share.

    Attributes:
        spacing_mm: of the prepared grid.
        shape: of the prepared grid.
        channels: in order.
        label_values: original value of each label id, 0 first.
        low: for a registered cohort, first edge of the shared box in voxels of the template; else None.
        high: last edge of it.
    """

    spacing_mm: Spacing
    shape: tuple[int, int, int]
    channels: tuple[str, ...]
    label_values: tuple[int, ...]
    low: Spacing | None = None
    high: Spacing | None = None

    def to_json(self) -> Mapping[str, Any]:
        """As plain JSON, for digests."""
        return dict(vars(self))


def make_plan(scans: Sequence[Scan], options: PrepareOptions, channels: Sequence[str]) -> Plan:
    """Choose the shared grid: spacing, then the smallest shape that covers every case's box.

    Raises:
        InputError: more labels than 16 bits can number.
    """
    spacing = _spacing(scans, options)
    registered = options.register != "none"
    boxes = [_box(s, spacing, options) for s in scans]
    low = high = None
    if registered:
        low = _triple(np.min([b[0] for b in boxes], axis=0))
        high = _triple(np.max([b[1] for b in boxes], axis=0))
        boxes = [(np.array(low), np.array(high))]
    shape = options.shape
    if shape is None:
        extents = [
            (b[1] - b[0]) * np.array(s.frame.spacing_mm) / spacing for b, s in zip(boxes, scans, strict=not registered)
        ]
        x, y, z = (options.stride * _ceil(e / options.stride) for e in np.max(extents, axis=0))
        shape = x, y, z
    values = sorted({v for s in scans for v in s.label_values})
    if len(values) >= 2**16:
        raise InputError(f"the labels hold {len(values)} different values; medgen numbers at most 65535")
    return Plan(spacing, shape, tuple(channels), (0, *values), low, high)


def target_grid(scan: Scan, plan: Plan, options: PrepareOptions) -> Grid:
    """The prepared grid of one case: along its frame's axes, centred on its box (or the shared box).

    Along an axis whose spacing does not change the grid is moved onto whole voxels, so that no value is interpolated.
    """
    if plan.low is not None and plan.high is not None:
        low, high = np.array(plan.low), np.array(plan.high)
    else:
        low, high = _box(scan, plan.spacing_mm, options)
    extent = np.array(plan.shape)
    step = np.array(plan.spacing_mm) / scan.frame.spacing_mm
    origin = (low + high) / 2.0 - (extent - 1) / 2.0 * step
    kept = np.abs(step - 1.0) * extent < _ROUNDING_VOXELS
    origin = np.where(kept, np.floor(origin + 0.5), origin)
    placed = np.eye(4)
    placed[:3, :3], placed[:3, 3] = np.diag(step), origin
    return Grid(plan.shape, scan.frame.affine @ placed)


def _spacing(scans: Sequence[Scan], options: PrepareOptions) -> Spacing:
    given = options.spacing_mm
    if isinstance(given, tuple):
        return given
    if given is not None:
        return float(given), float(given), float(given)
    # float32 headers say 0.99999994; six decimals are a nanometre.
    return _triple(np.round(np.median([s.source.ras().spacing_mm for s in scans], axis=0), 6))


def _box(scan: Scan, spacing_mm: Spacing, options: PrepareOptions) -> tuple[np.ndarray, np.ndarray]:
    """Edges of a case's box with its margin, within the image unless it is registered, in voxels of its frame."""
    low, high = np.array(scan.low), np.array(scan.high)
    if options.crop == "foreground":
        margin = options.margin_voxels * np.array(spacing_mm) / scan.frame.spacing_mm
        low, high = low - margin, high + margin
    if options.register == "none":
        low, high = np.maximum(low, -0.5), np.minimum(high, np.array(scan.frame.shape) - 0.5)
    return low, high


def _ceil(value: float) -> int:
    return max(1, math.ceil(round(float(value), 4)))


def _triple(values: np.ndarray) -> Spacing:
    x, y, z = (float(v) for v in values)
    return x, y, z
