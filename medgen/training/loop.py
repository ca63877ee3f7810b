"""The one training loop. A task's step yields (loss, optimiser name) pairs; everything else is here.

Under ``torchrun`` every process runs it; see :mod:`medgen.training.distributed`. A step whose loss or gradient is not
finite, or whose loss has exploded, is not applied: the training goes back to its last good state, written every
``GOOD_EVERY`` steps, with half the learning rate. Which states those are depends on the step alone, and the checkpoint
names the one in force, so a killed training repeats even that.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import nn

from medgen.errors import InputError
from medgen.training import checkpoint, ema
from medgen.training.distributed import World, world
from medgen.training.ema import Ema
from medgen.training.log import TrainingLog
from medgen.training.precision import autocast, bfloat16_pays, unsound
from medgen.training.watch import DivergedError, Watch, drop_goods, good_path, judged

GOOD_EVERY = 250

Progress = Callable[[int, int, str], None]
"""(done, total, remark) -> None; drawn by the caller."""


class Task(Protocol):
    """What is trained."""

    @property
    def modules(self) -> Mapping[str, nn.Module]:
        """What is trained, by name."""
        ...

    @property
    def optimisers(self) -> Mapping[str, torch.optim.Optimizer]:
        """What steps it, by name."""
        ...

    def step(self, step: int, share: float) -> Iterator[tuple[torch.Tensor, str, Mapping[str, torch.Tensor]]]:
        """Yield (loss, name of the optimiser to step, figures to log), once or more; all of it in autocast.

        ``share`` of the training lies behind, in [0, 1). Where gradients are accumulated over k batches, this is
        called k times a step, with consecutive numbers. The first loss of a step is the one watched for divergence.
        """
        ...

    def validate(self, averages: Mapping[str, Ema]) -> Mapping[str, float]:
        """Figures of the averaged weights on held-out cases; ``averages`` by :func:`medgen.training.ema.key`."""
        ...

    def panel(self, averages: Mapping[str, Ema]) -> np.ndarray | None:
        """A picture (H, W, 3) uint8 of how it goes, or None."""
        ...


@runtime_checkable
class Varied(Protocol):
    """A task whose batches differ in extents."""

    def probes(self, step: int) -> Sequence[int]:
        """Numbers of steps, from ``step`` on, that together show every extent."""
        ...


class Keeper(Protocol):
    """Keeps the weights of a training that are worth most, which need not be the last."""

    def starts(self, step: int) -> None:
        """The training goes on from ``step``: what was kept of later steps counts no more."""
        ...

    def see(self, step: int, averages: Mapping[str, Ema], figures: Mapping[str, float], *, last: bool) -> bool:
        """Judge a validation's figures; True where its weights were kept."""
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
        accumulate: batches whose gradients are averaged into one step.
        rollbacks: how often a diverged training may go back to its last good state, at half the learning rate each
            time, before it is given up.
        profiles: of the averages, see :data:`medgen.training.ema.GAMMAS`.
    """

    steps: int
    minutes: float | None = None
    warmup: int = 50
    clip: float = 1.0
    precision: str = "auto"
    log_every: int = 20
    validate_every: int = 250
    checkpoint_seconds: float = 60.0
    accumulate: int = 1
    rollbacks: int = 3
    profiles: tuple[str, ...] = ("long",)

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
    task: Task,
    folder: Path,
    schedule: Schedule,
    device: torch.device,
    on_progress: Progress | None = None,
    *,
    keeper: Keeper | None = None,
    here: World | None = None,
) -> dict[str, Ema]:
    """Train until the schedule's end and return the averaged weights.

    Resumes from ``folder/checkpoint.safetensors`` where it is there.

    Args:
        task: what is trained.
        folder: for checkpoints, log and panels.
        schedule: how long and how fast.
        device: where the modules are.
        on_progress: called with (done, total, remark).
        keeper: told of every validation.
        here: this process among those that train; all by default. A training of one process beside others that wait
            is given ``World()``.

    Raises:
        InputError: the training diverged, ``schedule.rollbacks`` times over.
    """
    here = here or world(device)
    here.share_start(task.modules.values())
    averages = {
        ema.key(name, profile): Ema(module, ema.GAMMAS[profile])
        for name, module in task.modules.items()
        for profile in schedule.profiles
    }
    path = folder / checkpoint.NAME
    step, clock, watch = 0, _Clock(), Watch()
    if path.exists():
        saved = checkpoint.load(path, task.modules, averages, task.optimisers)
        step, clock = int(saved["step"]), _Clock(before=float(saved["seconds"]))
        watch = Watch.from_json(saved["watch"]) if "watch" in saved else watch
    here.wait()
    if here.first:
        drop_goods(folder, [watch.good] if path.exists() else [])
    base = {name: [g["lr"] for g in o.param_groups] for name, o in task.optimisers.items()}
    log = TrainingLog(folder, resume_at=step) if here.first else None
    if keeper:
        keeper.starts(step)
    asked = schedule.precision
    schedule, remark = _settled(task, step, schedule, device, here)
    if remark and on_progress and here.first:
        on_progress(round(1000 * schedule.share(step, clock.seconds)), 1000, remark)
    saved_at = time.monotonic()
    figures: dict[str, list[torch.Tensor]] = {}

    def keep(where: Path) -> None:
        progress = {"step": step, "seconds": clock.seconds, "watch": watch.to_json()}
        checkpoint.save(where, task.modules, averages, task.optimisers, progress)

    # The clock is read once a step: the step that sees the end is the one that logs, validates and saves.
    now = here.agree(clock.seconds)
    while schedule.share(step, now) < 1.0:
        if step == 0 or (step % GOOD_EVERY == 0 and watch.calm):
            watch.good = step
            if here.first and not good_path(folder, step).exists():
                keep(good_path(folder, step))
        rate = schedule.rate(step, now) * watch.rate
        for name, optimiser in task.optimisers.items():
            for group, lr in zip(optimiser.param_groups, base[name], strict=True):
                group["lr"] = lr * rate
        try:
            loss = _step(task, step, schedule, schedule.share(step, now), device, watch, figures, here)
        except DivergedError as reason:
            good = good_path(folder, watch.good)
            if watch.rollbacks >= schedule.rollbacks or not good.exists():
                tried = f", after going back {watch.rollbacks} times" if watch.rollbacks else ""
                ways = "lower its learning_rate" + (", or let precision be auto" if asked == "bfloat16" else "")
                raise InputError(
                    f"the training in {folder} diverged at step {step} ({reason}){tried}; {ways}"
                ) from None
            watch = Watch.from_json({**_restored(task, averages, good), "rollbacks": watch.rollbacks + 1})
            step, now = watch.good, here.agree(clock.seconds)
            figures.clear()
            if keeper:
                keeper.starts(step)
            if log:
                log.close()
                log = TrainingLog(folder, resume_at=step)
                log.scalars(step, {"rollback": watch.rollbacks})
                if on_progress:
                    done = round(1000 * schedule.share(step, now))
                    on_progress(done, 1000, f"diverged ({reason}), back to step {step} at half the learning rate")
            continue
        watch.add(loss)
        step += 1
        for name, module in task.modules.items():
            for profile in schedule.profiles:
                averages[ema.key(name, profile)].update(module, step)
        now = here.agree(clock.seconds)
        share = schedule.share(step, now)
        last = share >= 1.0
        if log is None:
            figures.clear()
            continue
        if step % schedule.log_every == 0 or last:
            means = {key: float(torch.stack(values).float().mean()) for key, values in figures.items()}
            log.scalars(step, {**means, "rate": rate, "seconds": now})
            figures.clear()
            if on_progress:
                remark = ", ".join(f"{k} {v:.4f}" for k, v in means.items())
                on_progress(round(1000 * share), 1000, f"step {step}: {remark}")
        kept = False
        if step % schedule.validate_every == 0 or last:
            found = task.validate(averages)
            log.scalars(step, {f"val_{k}": v for k, v in found.items()})
            picture = task.panel(averages)
            if picture is not None:
                log.panel(step, "panel", picture)
            kept = keeper is not None and keeper.see(step, averages, found, last=last)
        # What was kept must not be newer than what a killed training goes on from.
        if time.monotonic() - saved_at > schedule.checkpoint_seconds or last or kept:
            keep(path)
            drop_goods(folder, [] if last else [watch.good])
            saved_at = time.monotonic()
    if log:
        log.close()
    here.wait()
    if on_progress and here.first:
        on_progress(1000, 1000, f"{step} steps in {clock.seconds:.0f} s")
    return averages


def _settled(task: Task, step: int, schedule: Schedule, device: torch.device, here: World) -> tuple[Schedule, str]:
    """What ``auto`` is on this machine: float32 where bfloat16 gives wrong gradients of the task's own convolutions."""
    if schedule.precision != "auto" or not bfloat16_pays(device) or device.type != "cpu":
        return schedule, ""

    start = schedule.accumulate * step
    probes = task.probes(start) if isinstance(task, Varied) else [start]

    def forward() -> None:
        # The batch of the step to come, as far as its first loss, late enough for all parts of it to take part.
        for probe in probes:
            next(task.step(probe, 1.0))

    wrong = unsound(task.modules.values(), forward, device)
    if not here.agree(float(wrong is not None)):
        return replace(schedule, precision="bfloat16"), ""
    where = "" if wrong is None else f" on inputs of {' x '.join(map(str, wrong.shape[2:]))}"
    return (
        replace(schedule, precision="float32"),
        f"in float32: bfloat16 convolutions give wrong gradients{where} on this machine",
    )


def _step(
    task: Task,
    step: int,
    schedule: Schedule,
    share: float,
    device: torch.device,
    watch: Watch,
    figures: dict[str, list[torch.Tensor]],
    here: World,
) -> float:
    """One step of each optimiser over its accumulated batches; returns the mean of the losses that lead.

    Raises:
        DivergedError: before the weights of the optimiser concerned are touched.
    """
    k = schedule.accumulate
    first = math.nan
    losses: dict[str, list[torch.Tensor]] = {}
    for part in range(k):
        with autocast(device, schedule.precision):
            for loss, name, parts in task.step(k * step + part, share):
                optimiser = task.optimisers[name]
                if name not in losses:
                    optimiser.zero_grad(set_to_none=True)
                losses.setdefault(name, []).append(loss.detach())
                with torch.autocast(device.type, enabled=False):
                    (loss / k if k > 1 else loss).backward()
                    if part == k - 1:
                        mean = here.mean(torch.stack(losses[name]).float().mean())
                        leads = name == next(iter(losses))
                        value = _apply(optimiser, mean, schedule.clip, watch, here, leads=leads)
                        first = value if leads else first
                for key, figure in parts.items():
                    figures.setdefault(key, []).append(figure.detach())
    here.average_buffers(task.modules)
    return first


def _apply(
    optimiser: torch.optim.Optimizer, loss: torch.Tensor, clip: float, watch: Watch, here: World, *, leads: bool
) -> float:
    """Clip and step, unless the loss or its gradient says that the training has diverged."""
    parameters = [p for g in optimiser.param_groups for p in g["params"] if p.requires_grad]
    here.average_gradients(parameters)
    norm = nn.utils.clip_grad_norm_([p for p in parameters if p.grad is not None], clip)
    value = judged(watch, loss, norm, leads=leads)
    optimiser.step()
    return value


def _restored(task: Task, averages: Mapping[str, Ema], path: Path) -> Mapping[str, Any]:
    """Load a good state; returns its watch."""
    raw: Mapping[str, Any] = checkpoint.load(path, task.modules, averages, task.optimisers)["watch"]
    return raw
