"""What a layout's ``convert`` gives: all of a model folder but its bookkeeping."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.stats.qmc import Sobol

from medgen.cohort.joint import Joint
from medgen.cohort.schema import Covariate, Schema, Value
from medgen.errors import InputError
from medgen.prepare.grid import GeometryRecord
from medgen.prepare.intensity import IntensityRecord

_ROWS = 1024  # a power of 2, as Sobol points want


@dataclass(frozen=True)
class Imported:
    """Published weights brought to medgen's kinds.

    Attributes:
        name: of the model.
        channels: image channels.
        shape: of the grid the model works on.
        latent_shape: (C, x, y, z).
        codec: kind and options.
        network: kind and options.
        process: kind and options.
        sampling: default sampler, options, steps, guidance.
        schema: what can be asked for.
        joint: how what is not asked for is drawn.
        scale_factor: the network works on latents times this.
        geometry: the model's grid, and the grid that samples are written on.
        intensity: of each channel.
        codec_state: weights of the codec.
        network_state: weights of the network.
        differences: largest difference between the original networks' outputs and ours, by network.
        notes: sentences for the model card: what is known of covariates, grid and licence.
    """

    name: str
    channels: tuple[str, ...]
    shape: tuple[int, int, int]
    latent_shape: tuple[int, int, int, int]
    codec: tuple[str, Mapping[str, Any]]
    network: tuple[str, Mapping[str, Any]]
    process: tuple[str, Mapping[str, Any]]
    sampling: Mapping[str, Any]
    schema: Schema
    joint: Joint
    scale_factor: float
    geometry: GeometryRecord
    intensity: tuple[IntensityRecord, ...]
    codec_state: Mapping[str, torch.Tensor]
    network_state: Mapping[str, torch.Tensor]
    differences: Mapping[str, float]
    notes: tuple[str, ...]


def uniform_joint(schema: Schema, allowed: Callable[[Mapping[str, Value]], bool] = lambda row: True) -> Joint:
    """A joint in which every column is uniform over its range or levels and independent of the others.

    Published weights come without the joint distribution of their training cases; what is not asked for is then drawn
    evenly. It is fitted on evenly spread rows, so that it is the same kind of joint as a cohort's.

    Args:
        schema: the columns; numeric ones with their range.
        allowed: which rows make sense.
    """
    count = len(schema.covariates)
    # Sobol points fill the unit cube evenly. The first is the origin, and the far corner is put behind them, so that
    # ranges reach their ends.
    points = np.concatenate([Sobol(max(1, count), scramble=False).random(_ROWS), np.ones((1, max(1, count)))])
    rows: list[dict[str, Value]] = [
        {c.name: _at(c, float(u)) for c, u in zip(schema.covariates, point[:count], strict=True)} for point in points
    ]
    return Joint.fit(schema, [row for row in rows if allowed(row)])


def _at(c: Covariate, u: float) -> Value:
    """The value at a fraction u of a column's range or levels."""
    if not c.is_numeric:
        return c.levels[min(int(u * len(c.levels)), len(c.levels) - 1)]
    assert c.minimum is not None and c.maximum is not None
    return c.minimum + u * (c.maximum - c.minimum)


def latent_grid(shape: Sequence[int], stride: int, factor: int) -> tuple[int, int, int]:
    """Extents of the latent of a volume.

    Raises:
        InputError: the volume does not divide by stride times factor.
    """
    multiple = stride * factor
    if any(n <= 0 or n % multiple for n in shape):
        raise InputError(f"--shape {' '.join(map(str, shape))} must be multiples of {multiple} for these weights")
    x, y, z = (int(n) // stride for n in shape)
    return x, y, z
