"""First pass: what the common grid must know of each case."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from medgen.cohort.load import LoadedCase
from medgen.errors import InputError
from medgen.prepare.foreground import Foreground, find_foreground, without_specks
from medgen.prepare.grid import Grid, transform_points
from medgen.prepare.options import PrepareOptions
from medgen.prepare.register import register
from medgen.prepare.resample import resample_label
from medgen.volume import Volume


@dataclass(frozen=True, eq=False)
class Scan:
    """One case as the plan sees it.

    Attributes:
        source: grid of the case's first channel, as its file lies.
        frame: grid along whose axes the case is prepared: the source's in RAS+ order, or the template's.
        world: (4, 4), world of the frame to world of the source.
        low: first edge of what must be covered, in continuous voxels of the frame.
        high: last edge of it.
        label_values: the values in its label, 0 apart; empty without label.
        foreground: how the foreground was found.
    """

    source: Grid
    frame: Grid
    world: np.ndarray
    low: tuple[float, float, float]
    high: tuple[float, float, float]
    label_values: tuple[int, ...]
    foreground: str

    def to_json(self) -> dict[str, Any]:
        """As plain JSON."""
        return {
            "source": self.source.to_json(),
            "frame": self.frame.to_json(),
            "world": self.world.tolist(),
            "low": list(self.low),
            "high": list(self.high),
            "label_values": list(self.label_values),
            "foreground": self.foreground,
        }

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> "Scan":
        """From what :meth:`to_json` gave."""
        return Scan(
            source=Grid.from_json(value["source"]),
            frame=Grid.from_json(value["frame"]),
            world=np.array(value["world"], dtype=np.float64),
            low=tuple(value["low"]),
            high=tuple(value["high"]),
            label_values=tuple(value["label_values"]),
            foreground=value["foreground"],
        )


def reference_channel(loaded: LoadedCase, channels: Sequence[str], said_in: str) -> str:
    """The first channel that the case has; its grid is the case's.

    Raises:
        InputError: the case has none.
    """
    for name in channels:
        if name in loaded.images:
            return name
    raise InputError(f"{said_in} has none of the channels {', '.join(channels)}; give it one or leave it out")


def foreground_of(loaded: LoadedCase, volume: Volume) -> Foreground:
    """Foreground of one channel, from the case's mask (brought onto the channel's grid) where there is one."""
    mask = None
    if loaded.mask is not None:
        step = np.linalg.solve(loaded.mask.affine, volume.affine)
        mask = resample_label((loaded.mask.data[0] != 0).astype(np.uint8), step, volume.shape)
    return find_foreground(volume.data[0], mask)


def scan_loaded(
    loaded: LoadedCase,
    options: PrepareOptions,
    channels: Sequence[str],
    *,
    template: Volume | None = None,
    said_in: str,
) -> Scan:
    """Scan one loaded case.

    Args:
        loaded: its volumes.
        options: crop and register are used.
        channels: in order.
        template: to register to; None without registration.
        said_in: names the case in errors.
    """
    image = loaded.images[reference_channel(loaded, channels, said_in)]
    source = Grid(image.shape, image.affine)
    frame, world = source.ras(), np.eye(4)
    if template is not None and options.register != "none":
        frame = Grid(template.shape, template.affine)
        world = register(image, template, options.register, said_in=said_in)
    foreground = foreground_of(loaded, image)
    kind = foreground.kind
    if options.crop == "none":
        corners = np.array(np.meshgrid(*[(0, n - 1) for n in image.shape])).reshape(3, -1).T
        points = [transform_points(image.affine, corners)]
    else:
        points = [transform_points(image.affine, extreme_voxels(without_specks(foreground.mask)))]
        if loaded.label is not None:
            points.append(transform_points(loaded.label.affine, extreme_voxels(loaded.label.data[0] != 0)))
    to_frame = np.linalg.inv(world @ frame.affine)
    indices = transform_points(to_frame, np.concatenate(points))
    # Cutting floating-point dust keeps the box of an exact flip exact.
    low, high = np.round(indices.min(axis=0), 6) - 0.5, np.round(indices.max(axis=0), 6) + 0.5
    values = () if loaded.label is None else tuple(int(v) for v in np.unique(loaded.label.data) if v != 0)
    return Scan(source, frame, world, _triple(low), _triple(high), values, kind)


def extreme_voxels(mask: np.ndarray) -> np.ndarray:
    """The two ends of each of a mask's columns, (N, 3): they span its extent under any affine."""
    columns = np.argwhere(mask.any(axis=2))
    inside = mask[columns[:, 0], columns[:, 1]]
    first = inside.argmax(axis=1)
    last = mask.shape[2] - 1 - inside[:, ::-1].argmax(axis=1)
    return np.concatenate([np.column_stack([columns, first]), np.column_stack([columns, last])])


def _triple(values: np.ndarray) -> tuple[float, float, float]:
    x, y, z = (float(v) for v in values)
    return x, y, z
