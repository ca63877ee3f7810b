"""The flow that makes one structure larger or smaller and has its neighbours give way.

The velocity is a potential flow, v = grad u with laplace(u) = rate. The rate is 1 inside the structure, so that every
part of it grows in proportion, thick ones by more millimetres than thin ones; outside it is negative where tissue may
give, and balances the inside. It is solved anew after every short step, for the structure as it then is: the steps'
composition is a diffeomorphism, and tissue is compressed and moved, never overwritten. Shrinking is the same flow
run backwards.

Reference:
    Christensen, Rabbitt & Miller, Deformable templates using large deformation kinematics, TIP 1996 (short steps).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import fft

from medgen.edit.flow import compose, sample

_STEEPEST = 0.3  # most that a step compresses or stretches any place, as a share
_LONGEST = 0.5  # coarse voxels that a step may move anything


@dataclass(frozen=True)
class Push:
    """A flow under way, on the coarse grid.

    Attributes:
        inside: (a, b, c) the structure's share of each cell at the start.
        gives: (a, b, c) weight from 0 to 1 of what gives way at the start.
        free: (a, b, c) weight from 0 to 1 by which anything may move here; does not move itself.
        spacing_mm: of the cells.
        displacement: (3, a, b, c) so far, in cells.
    """

    inside: np.ndarray
    gives: np.ndarray
    free: np.ndarray
    spacing_mm: tuple[float, ...]
    displacement: np.ndarray


def start(inside: np.ndarray, gives: np.ndarray, free: np.ndarray, spacing_mm: Sequence[float]) -> Push:
    """Nothing moved yet."""
    still = np.zeros((3, *inside.shape), np.float32)
    return Push(inside, gives, free, tuple(spacing_mm), still)


def step(push: Push, time: float) -> tuple[Push, float]:
    """Follow the flow for a time in which the structure would grow by the factor exp(time), or for less.

    Returns:
        the flow after it, and the time that it took: steps are kept short.
    """
    inside, gives = sample(push.inside, push.displacement), sample(push.gives, push.displacement)
    rate = inside - gives * (inside.sum() / max(float(gives.sum()), 1e-6))
    potential = solve(rate, push.spacing_mm)
    velocity = np.stack([_slope(potential, axis) / s**2 for axis, s in enumerate(push.spacing_mm)]) * push.free
    most = min(_STEEPEST / max(float(np.abs(rate).max()), 1e-6), _LONGEST / max(float(np.abs(velocity).max()), 1e-6))
    time = float(np.clip(time, -most, most))
    moved = compose(push.displacement, (-time * velocity).astype(np.float32))
    return Push(push.inside, push.gives, push.free, push.spacing_mm, moved), time


def solve(rate: np.ndarray, spacing_mm: Sequence[float]) -> np.ndarray:
    """The potential u of laplace(u) = rate - mean(rate), without flow through the grid's faces.

    Args:
        rate: (a, b, c), per unit time.
        spacing_mm: of the cells.

    Returns:
        (a, b, c) in mm^2 per unit time.
    """
    waves = fft.dctn(rate.astype(np.float32), type=2)
    lines = [(2 * np.cos(np.pi * np.arange(n) / n) - 2) / s**2 for n, s in zip(rate.shape, spacing_mm, strict=True)]
    x, y, z = np.ix_(*lines)
    laplace = (x + y + z).astype(np.float32)
    laplace[0, 0, 0] = 1.0
    waves /= laplace
    waves[0, 0, 0] = 0.0
    potential: np.ndarray = fft.idctn(waves, type=2)
    return potential


def _slope(data: np.ndarray, axis: int) -> np.ndarray:
    """Central differences along an axis, per cell; 0 where it has one cell."""
    slope: np.ndarray = np.gradient(data, axis=axis) if data.shape[axis] > 1 else np.zeros_like(data)
    return slope
