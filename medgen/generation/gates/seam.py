"""What gates see, say and are given."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medgen.generation.gates.law import Law


@dataclass(frozen=True, eq=False)
class Seen:
    """A case as gates see it: a draw, or a real case on the same grid.

    Attributes:
        image: (C, X, Y, Z) on the model's grid, where real cases lie in [-1, 1]; of a draw as decoded, not clipped.
        label: (X, Y, Z) label ids on that grid, None where there is none.
        channels: names of the image's channels that the case has, None for those it has not.
        names: of the label ids, background first.
        spacing_mm: of the grid.
        measured: volumes and what is derived from them, by column, as they are written.
        requested: what was asked for, by column, numbers only: the least and the largest that answer it, which are
            the same where one value was asked for.
        latent: (C, x, y, z) standardised latent of a draw, on the CPU.
    """

    image: np.ndarray
    label: np.ndarray | None
    channels: tuple[str | None, ...]
    names: tuple[str, ...]
    spacing_mm: tuple[float, float, float]
    measured: Mapping[str, float] = field(default_factory=dict)
    requested: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    latent: torch.Tensor | None = None

    def clipped(self) -> np.ndarray:
        """The image in [-1, 1], float32."""
        clipped: np.ndarray = np.clip(np.asarray(self.image, dtype=np.float32), -1, 1)
        return clipped


@dataclass(frozen=True)
class Verdict:
    """What a gate says of a draw.

    Attributes:
        scores: what it measured, finite numbers for the sidecar.
        faults: score -> why it rejects, in words; empty where it accepts.
    """

    scores: Mapping[str, float]
    faults: Mapping[str, str] = field(default_factory=dict)


Judge = Callable[[Seen], Verdict]


class CannotJudgeError(Exception):
    """A gate lacks what it needs; the message says what, and it is told to the user and in every sidecar."""


@dataclass(frozen=True)
class Context:
    """What a gate may need beside the draw.

    Attributes:
        laws: score -> how it is spread over the cohort's training cases, for gates that measure them.
        figures: what else the gate's ``learn`` made of their scores, plain JSON.
        cases: training cases that were measured.
        names: of the label ids, background first.
        folder: of the model; None where it was not loaded from one.
        statistics: mean and standard deviation of each latent channel, as the model holds them.
        latent_shape: (C, x, y, z).
        image_channels: how many.
        channels: their names.
        spacing_mm: of the model's grid.
    """

    laws: Mapping[str, Law]
    figures: Mapping[str, Any]
    cases: int
    names: tuple[str, ...]
    folder: Path | None
    statistics: Mapping[str, list[float]]
    latent_shape: tuple[int, ...]
    image_channels: int
    channels: tuple[str, ...] = ()
    spacing_mm: tuple[float, ...] = ()

    def need_laws(self) -> None:
        """Stop a gate that knows nothing of the cohort.

        Raises:
            CannotJudgeError: the model holds no figures of its training cases for this gate.
        """
        if not self.laws:
            raise CannotJudgeError("the model folder holds no figures of its training cases for it")
