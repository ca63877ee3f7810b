"""The one training loop. A task's step yields (loss, optimiser name) pairs; everything else is here."""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import nn

from medgen.errors import InputError
from medgen.training import checkpoint
from medgen.training.ema import Ema
from medgen.training.log import TrainingLog
from medgen.training.precision import autocast

Progress = Callable[[int, int, str], None]
"""(done, total, remark) -> None; drawn by the caller."""


class Task(Protocol):
    """What is trained."""

    modules: Mapping[str, nn.Module]
    optimisers: Mapping[str, torch.optim.Optimizer]

    def step(self, step: int) -> Iterator[tuple[torch.Tensor, str, Mapping[str, torch.Tensor]]]:
        """Yield (loss, name of the optimiser to step, figures to log), once or more; all of it in autocast."""
        ...

    def validate(self, averages: Mapping[str, Ema]) -> Mapping[str, float]:
        """Figures of the averaged weights on held-out cases."""
        ...

    def panel(self, averages: Mapping[str, Ema]) -> np.ndarray | None:
        """A picture (H, W, 3) uint8 of how it goes, or None."""
        ...


@dataclass(frozen=True)
class Schedule:
    """How long and how fast.

    Attributes:
        steps: optimiser steps.
        minutes: wall-clock end, None for none; the learning rate follows whichever is nearer its end.
        warmup: steps of linear warm-up, then a cosine to 0.
        clip: largest gradient norm.
        precision: see :func:`medgen.training.precision.autocast`.
        log_every: steps between log lines.
        validate_every: steps between validations and panels.
        checkpoint_seconds: seconds between checkpoints.
    """

    steps: int
    minutes: float | None = None
    warmup: int = 50
    clip: float = 1.0
    precision: str = "auto"
    log_every: int = 20
    validate_every: int = 250
    checkpoint_seconds: float = 60.0

    def share(self, step: int, seconds: float) -> float:
        """How much of the training lies behind, in [0, 1]."""
        clock = seconds / (60 * self.minutes) if self.minutes else 0.0
        return min(1.0, max(step / self.steps, clock))

    def rate(self, step: int, seconds: float) -> float:
        """Factor on the learning rate."""
        warm = min(1.0, (step + 1) / max(1, self.warmup))
        return warm * 0.5 * (1 + math.cos(math.pi * self.share(step, seconds)))


@dataclass
class _Clock:
    """Seconds of training, those before a resume counted in."""

    before: float = 0.0
    start: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        return self.before + time.monotonic() - self.start


def train(
    task: Task, folder: Path, schedule: Schedule, device: torch.device, on_progress: Progress | None = None
) -> dict[str, Ema]:
    """Train until the schedule's end and return the averaged weights.

    Resumes from ``folder/checkpoint.safetensors`` where it is there. A loss or gradient that is not finite stops the
    training within the step, before any weight is touched, leaving the last checkpoint.

    Raises:
        InputError: the training diverged.
    """
    averages = {name: Ema(module) for name, module in task.modules.items()}
    path = folder / "checkpoint.safetensors"
    step, clock = 0, _Clock()
    if path.exists():
        saved = checkpoint.load(path, task.modules, averages, task.optimisers)
        step, clock = int(saved["step"]), _Clock(before=float(saved["seconds"]))
    base = {name: [g["lr"] for g in o.param_groups] for name, o in task.optimisers.items()}
    log = TrainingLog(folder, resume_at=step)
    saved_at = time.monotonic()
    figures: dict[str, list[torch.Tensor]] = {}

    def keep() -> None:
        progress = {"step": step, "seconds": clock.seconds}
        checkpoint.save(path, task.modules, averages, task.optimisers, progress)

    # The clock is read once a step: the step that sees the end is the one that logs, validates and saves.
    now = clock.seconds
    while schedule.share(step, now) < 1.0:
        rate = schedule.rate(step, now)
        for name, optimiser in task.optimisers.items():
            for group, lr in zip(optimiser.param_groups, base[name], strict=True):
                group["lr"] = lr * rate
        with autocast(device, schedule.precision):
            for loss, name, parts in task.step(step):
                _apply(loss, task.optimisers[name], schedule.clip, step, path)
                for key, value in parts.items():
                    figures.setdefault(key, []).append(value.detach())
        step += 1
        for name, module in task.modules.items():
            averages[name].update(module, step)
        now = clock.seconds
        share = schedule.share(step, now)
        last = share >= 1.0
        if step % schedule.log_every == 0 or last:
            means = {key: float(torch.stack(values).float().mean()) for key, values in figures.items()}
            log.scalars(step, {**means, "rate": rate, "seconds": now})
            figures.clear()
            if on_progress:
                remark = ", ".join(f"{k} {v:.4f}" for k, v in means.items())
                on_progress(round(1000 * share), 1000, f"step {step}: {remark}")
        if step % schedule.validate_every == 0 or last:
            log.scalars(step, {f"val_{k}": v for k, v in task.validate(averages).items()})
            picture = task.panel(averages)
            if picture is not None:
                log.panel(step, "panel", picture)
        if time.monotonic() - saved_at > schedule.checkpoint_seconds or last:
            keep()
            saved_at = time.monotonic()
    log.close()
    if on_progress:
        on_progress(1000, 1000, f"{step} steps in {clock.seconds:.0f} s")
    return averages


def _apply(loss: torch.Tensor, optimiser: torch.optim.Optimizer, clip: float, step: int, path: Path) -> None:
    """One optimiser step, refused where the loss or its gradient is not finite."""
    optimiser.zero_grad(set_to_none=True)
    with torch.autocast(loss.device.type, enabled=False):
        loss.backward()
        parameters = [p for g in optimiser.param_groups for p in g["params"] if p.grad is not None]
        norm = nn.utils.clip_grad_norm_(parameters, clip)
    if not torch.isfinite(norm) or not torch.isfinite(loss):
        raise InputError(
            f"training diverged at step {step} (loss {loss.item():.3g}, gradient {norm.item():.3g}); lower "
            f"learning_rate and run again: it goes on from {path} where that exists"
        )
    optimiser.step()
