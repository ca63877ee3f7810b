"""Training a student to draw in a few steps what its teacher draws in many."""

from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
import torch

from medgen.diffusion.process import Process
from medgen.errors import InputError
from medgen.models.condition import Condition
from medgen.models.seam import Model, Sampler
from medgen.sampling import euler
from medgen.sampling.noise import Key, generator, streams
from medgen.training.distil.objective import Batch, Objective
from medgen.training.distil.paths import Paths, levels, paths
from medgen.training.distil.straight import time_of
from medgen.training.dropout import dropped
from medgen.training.ema import Ema
from medgen.training.optimiser import adamw

_HELD_OUT = 16
# Paths of a large latent would fill a disk within the hour.
_ROOM_BYTES, _LEAST_CHUNKS = 8 << 30, 64

Ask = Callable[[str, range], Condition]
"""(purpose, numbers) -> what the paths of these numbers are asked, on the device."""


@dataclass(frozen=True)
class Teacher:
    """What is imitated.

    Attributes:
        network: on its device; the student starts as its copy.
        model: the network as a denoiser, with its guidance and all other steering.
        process: of teacher and student.
        sampler: a deterministic solver.
        steps: of the solver over the whole range.
        shape: (C, X, Y, Z) of the latents.
        ask: what paths are asked.
    """

    network: torch.nn.Module
    model: Model
    process: Process
    sampler: Sampler
    steps: int
    shape: tuple[int, ...]
    ask: Ask


class DistilTask:
    """A student learns from its teacher's paths alone; no case of the cohort is needed.

    Paths are drawn while the training goes on: chunk i is there from step i * ``reuse`` on, and a batch takes its
    rows from all chunks that are there, or from the newest 8 GiB of them. What a step sees depends on its number only,
    so a resumed training repeats it.

    Args:
        teacher: what is imitated.
        objective: what the student minimises.
        folder: for the paths.
        steps: S, evaluations of the student for a sample.
        batch: rows a step, and paths a chunk.
        reuse: steps of training for each chunk.
        learning_rate: of AdamW.
        drop: chance of asking nothing of a path, and of leaving each of its covariates open.
        seed: of the training.
        rank: of this process in a distributed training, which has paths of its own.
    """

    def __init__(
        self,
        teacher: Teacher,
        objective: Objective,
        folder: Path,
        *,
        steps: int,
        batch: int,
        reuse: int,
        learning_rate: float,
        drop: float,
        seed: int,
        rank: int = 0,
    ) -> None:
        self.teacher, self.objective, self.steps, self.batch, self.reuse = teacher, objective, steps, batch, reuse
        self.drop, self.seed, self.own = drop, seed, f"paths-{rank}"
        # In evaluation mode: what it learns is a map without noise, which dropout would only blur.
        self.student = deepcopy(teacher.network).eval().requires_grad_(True)
        self.device = next(self.student.parameters()).device
        self.modules: Mapping[str, torch.nn.Module] = {"network": self.student}
        self.optimisers: Mapping[str, torch.optim.Optimizer] = {
            "network": adamw(self.student.parameters(), learning_rate, weight_decay=0.0, device=self.device)
        }
        self.times = time_of(levels(teacher.process, steps, self._asked(self.own, range(1))))
        if (self.times.diff() == 0).any():
            raise InputError(f"distil: in {steps} steps this process repeats a noise level; take fewer")
        chunk_bytes = 4 * batch * (steps + 1) * prod(teacher.shape)
        self.window = max(_LEAST_CHUNKS, _ROOM_BYTES // chunk_bytes)
        self.paths = Paths(lambda chunk: self._draw(self.own, self._numbers(chunk)), folder / self.own)
        self.held_out = Paths(
            lambda chunk: torch.cat([self._draw("held-out", p) for p in self._held_out()]), folder / "held-out"
        )

    def step(self, step: int, share: float) -> Iterator[tuple[torch.Tensor, str, Mapping[str, torch.Tensor]]]:
        """One batch of paths; gradients are accumulated over consecutive numbers like any other."""
        random = generator("distil", self.own, self.seed, step)
        newest = step // self.reuse
        oldest = max(0, newest + 1 - self.window)
        if oldest:
            self.paths.forget(oldest - self.window)  # a training resumed from before draws again what it needs
        picked = torch.randint(oldest * self.batch, (newest + 1) * self.batch, (self.batch,), generator=random).tolist()
        if step % self.reuse == 0:  # new paths are trained on at once
            picked = list(self._numbers(newest))
        path = torch.stack([self.paths.row(*divmod(i, self.batch)) for i in picked]).to(self.device)
        cond = Condition.cat([self._asked(self.own, range(i, i + 1)) for i in picked])
        # One uniform number shared out over the batch, as in the teacher's own training.
        uniform = (torch.rand(1, generator=random) + torch.arange(self.batch) / self.batch) % 1.0
        batch = Batch(path, self.times, cond, uniform.to(self.device))
        loss = self.objective(self.teacher.process.as_model(self.student), batch).mean()
        yield loss, "network", {"loss": loss}

    @torch.no_grad()
    def validate(self, averages: Mapping[str, Ema]) -> Mapping[str, float]:
        """How far the averaged student's samples lie from the teacher's, from noise that no step ever sees."""
        student = averages["network"].applied(self.student)
        return {"rmse": self.distance(self.teacher.process.as_model(student))}

    @torch.no_grad()
    def distance(self, model: Model) -> float:
        """Root mean square distance, in standardised latents, of a model's samples by Euler in S steps."""
        t, ends = self.teacher, self.held_out(0)[:, -1]
        off = []
        for numbers in self._held_out():
            noise = streams(self._keys("held-out", numbers), t.shape, self.device)
            shape, cond = (len(numbers), *t.shape), self._asked("held-out", numbers)
            drawn = t.process.sample(model, shape, cond, euler.sample, noise, steps=self.steps)
            off.append((drawn.cpu() - ends[numbers.start : numbers.stop]).square())
        return float(torch.cat(off).mean().sqrt())

    def panel(self, averages: Mapping[str, Ema]) -> np.ndarray | None:
        """None: the student's pictures are the teacher's."""
        return None

    def _held_out(self) -> list[range]:
        """The held-out paths in batches."""
        return [range(i, min(i + self.batch, _HELD_OUT)) for i in range(0, _HELD_OUT, self.batch)]

    def _numbers(self, chunk: int) -> range:
        return range(chunk * self.batch, (chunk + 1) * self.batch)

    def _keys(self, purpose: str, numbers: range) -> list[Key]:
        # A dataset's seeds are small numbers: no path starts from the noise of a sample that is drawn later.
        seed = int(torch.randint(2**62, (1,), generator=generator("distil", purpose, self.seed)))
        return [Key(seed, i) for i in numbers]

    def _asked(self, purpose: str, numbers: range) -> Condition:
        cond = self.teacher.ask(purpose, numbers)
        if purpose != self.own:
            return cond
        rows = []
        for b, i in enumerate(numbers):
            random = generator("distil", "drop", purpose, self.seed, i)
            rows.append(dropped(cond.rows(slice(b, b + 1)), self.drop, self.drop, random))
        return Condition.cat(rows)

    @torch.no_grad()
    def _draw(self, purpose: str, numbers: range) -> torch.Tensor:
        t = self.teacher
        noise = streams(self._keys(purpose, numbers), t.shape, self.device)
        shape, cond = (len(numbers), *t.shape), self._asked(purpose, numbers)
        with torch.autocast(self.device.type, enabled=False):
            states, _ = paths(
                t.model, t.process, t.sampler, shape, cond, noise, steps=self.steps, teacher_steps=t.steps
            )
        return states.cpu()
