"""The teacher's paths from noise to sample, drawn as the training needs them and kept on disk for a resume."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from medgen.diffusion.process import Process
from medgen.files import atomic
from medgen.models.condition import Condition
from medgen.models.seam import Model, Noise, Sampler
from medgen.training.distil.straight import time_of

_SAME = 1e-6
_NAME = "path"


def levels(process: Process, steps: int, like: Condition) -> torch.Tensor:
    """Noise levels (steps + 1,) at which a process places a sampler's steps."""
    found: list[torch.Tensor] = []

    def look(model: Model, x: torch.Tensor, sigmas: torch.Tensor, cond: Condition, *, noise: Noise) -> torch.Tensor:
        found.append(sigmas)
        return x

    shape = (len(like), 1, 1, 1, 1)
    nobody = cast(Model, None)
    process.sample(nobody, shape, like, look, lambda step: torch.zeros(shape, device=like.values.device), steps=steps)
    return found[0]


def refined(own: torch.Tensor, fine: torch.Tensor) -> list[torch.Tensor]:
    """For each step of ``own`` levels (S + 1,) the levels that lead through it: its ends and the ``fine`` ones between.

    Args:
        own: the student's levels, falling.
        fine: the teacher's.
    """
    parts = []
    for high, low in pairwise(own):
        t, a, b = time_of(fine), time_of(high), time_of(low)
        between = fine[(t < a - _SAME) & (t > b + _SAME)]
        parts.append(torch.cat([high[None], between, low[None]]))
    return parts


def paths(
    model: Model,
    process: Process,
    sampler: Sampler,
    shape: Sequence[int],
    cond: Condition,
    noise: Noise,
    *,
    steps: int,
    teacher_steps: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Solve the teacher's ODE and keep its state between the student's steps.

    Args:
        model: the teacher, steered.
        process: of both.
        sampler: a deterministic solver.
        shape: (B, C, X, Y, Z).
        cond: of the batch.
        noise: its streams.
        steps: S of the student.
        teacher_steps: of the teacher, over the whole range.

    Returns:
        States (B, S + 1, C, X, Y, Z) and times (S + 1,) in straight-line variables.
    """
    fine = levels(process, teacher_steps, cond)
    kept: list[torch.Tensor] = []
    at: list[torch.Tensor] = []

    def keep(model: Model, x: torch.Tensor, sigmas: torch.Tensor, cond: Condition, *, noise: Noise) -> torch.Tensor:
        kept.append(x / (1 + sigmas[0]))
        for part in refined(sigmas, fine):
            x = sampler(model, x, part, cond, noise=noise)
            kept.append(x / (1 + part[-1]))
        at.append(time_of(sigmas))
        return x

    process.sample(model, shape, cond, keep, noise, steps=steps)
    return torch.stack(kept, dim=1), at[0]


class Paths:
    """Chunks of paths by number, each a pure function of its number; a chunk that is on disk is not drawn again.

    Args:
        draw: number of a chunk -> its states (B, S + 1, C, X, Y, Z), on the CPU.
        folder: for the chunks.
    """

    def __init__(self, draw: Callable[[int], torch.Tensor], folder: Path) -> None:
        self.draw, self.folder = draw, folder
        self._kept_from = 0

    def __call__(self, number: int) -> torch.Tensor:
        """One chunk, (B, S + 1, C, X, Y, Z)."""
        return self._read(number, slice(None))

    def row(self, number: int, row: int) -> torch.Tensor:
        """One path of a chunk, (S + 1, C, X, Y, Z); no other is read."""
        return self._read(number, slice(row, row + 1))[0]

    def forget(self, before: int) -> None:
        """Remove the chunks of numbers below ``before``; one that is asked for after all is drawn again."""
        for number in range(self._kept_from, before):
            (self.folder / f"{number:06d}.safetensors").unlink(missing_ok=True)
        self._kept_from = max(self._kept_from, before)

    def _read(self, number: int, rows: slice) -> torch.Tensor:
        path = self.folder / f"{number:06d}.safetensors"
        try:
            with safe_open(path, framework="pt") as file:
                found: torch.Tensor = file.get_slice(_NAME)[rows]
                return found
        except (SafetensorError, FileNotFoundError):
            pass  # not there yet, or damaged: it can be drawn again
        chunk = self.draw(number)
        with atomic(path) as temporary:
            save_file({_NAME: chunk.contiguous()}, temporary)
        return chunk[rows]
