"""The process that takes a few real steps: a job from stdin, one line of JSON a part to stdout.

The parts are those of the stages themselves (:mod:`medgen.doctor.parts`), on arrays of the right shape; see
:mod:`medgen.doctor.timing`.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from medgen import config as configs
from medgen.cohort.requests import plan
from medgen.doctor import parts
from medgen.doctor.parts import Job, Networks
from medgen.doctor.stand_ins import random_cases
from medgen.doctor.timing import Measured, peak_bytes, reset_peak
from medgen.errors import InputError
from medgen.generation.generator import Generator
from medgen.sampling.noise import Key
from medgen.segment.train import BATCH, CLASSICAL, PATCH
from medgen.stages.run import Run
from medgen.store.augment import Augmentation
from medgen.training.precision import autocast

_LONG_SECONDS = 8.0


@dataclass(frozen=True)
class Meter:
    """Times a function and watches the memory of a device."""

    device: torch.device

    def start(self) -> None:
        """Start watching memory."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            reset_peak()

    def peak(self) -> int:
        """Bytes at most since the start."""
        return int(torch.cuda.max_memory_reserved(self.device)) if self.device.type == "cuda" else peak_bytes()

    def once(self, work: Callable[[], Any]) -> float:
        """Seconds of one call."""
        start = time.perf_counter()
        work()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter() - start

    def typical(self, work: Callable[[], Any]) -> float:
        """Seconds of a call after the first, which warms up; of the first, where there is no time for a second."""
        seconds = self.once(work)
        if seconds > _LONG_SECONDS:
            return seconds
        seconds = self.once(work)
        return seconds if seconds > _LONG_SECONDS / 4 else (seconds + self.once(work)) / 2


def _experiment(job: Job) -> Iterator[Measured]:
    run = Run(configs.build(dict(job.config), "the config"), Path(), lambda *_: None)
    if run.config.threads:
        torch.set_num_threads(run.config.threads)
    meter = Meter(run.device)
    yield {"part": "rate", "seconds": _rate(meter, run.config.autoencoder.training.precision), "bytes": 0}
    networks = Networks(job, run.device)
    a = run.config.autoencoder
    augment = a.augment.values()
    networks.codec_task.sampler = random_cases(
        job.channels,
        job.labels,
        job.shape,
        a.patch,
        a.training.batch,
        Augmentation(**augment) if augment else None,
        run.device,
    )
    if networks.segmenter_task is not None:
        networks.segmenter_task.sampler = random_cases(
            job.channels, job.label_ids, job.shape, PATCH, BATCH, CLASSICAL, run.device
        )
    for name in job.parts:
        for module in (networks.codec, networks.network):
            module.requires_grad_("step" in name).train("step" in name)
        meter.start()
        work = networks.part(name)
        seconds = meter.typical(work)
        yield {"part": name, "seconds": seconds, "bytes": meter.peak()}


def _rate(meter: Meter, precision: str) -> float:
    """Seconds of a convolution's forward and backward pass."""
    conv = torch.nn.Conv3d(parts.RATE_WIDTH, parts.RATE_WIDTH, 3, padding=1).to(meter.device)
    x = torch.randn(1, parts.RATE_WIDTH, *(parts.RATE_EXTENT,) * 3, device=meter.device, requires_grad=True)

    def work() -> None:
        with autocast(meter.device, precision):
            out = conv(x)
        out.float().sum().backward()

    return meter.typical(work)


def _model(job: Mapping[str, Any]) -> Iterator[Measured]:
    generator = Generator.load(job["model"])
    meter = Meter(generator.model.device)
    row = plan(generator.schema, generator.model.joint).row(0, 0)
    drawing = generator.drawing

    def draw(steps: int) -> float:
        few = Generator(generator.model, replace(drawing, steps=min(steps, drawing.steps)))
        return meter.once(lambda: few.draw([row], [Key(0, 0)]))

    meter.start()
    some = min(3, drawing.steps)
    draw(1)  # warms up
    one, more = draw(1), draw(some)
    # Decoding comes once, however many steps there are; a step is what some more of them take.
    each = max(0.0, more - one) / (some - 1) if some > 1 else 0.0
    yield {"part": "synthetic", "seconds": one + each * (drawing.steps - 1), "bytes": meter.peak()}


def _main() -> None:
    job = json.load(sys.stdin)
    stage = "start"
    try:
        for result in _model(job) if "model" in job else _experiment(Job.from_json(job)):
            stage = result["part"]
            print(json.dumps(result), flush=True)
    except (InputError, MemoryError, torch.OutOfMemoryError) as error:
        reason = str(error).split("\n")[0] or "out of memory"
        print(json.dumps({"part": f"after {stage}", "error": reason[:300]}), flush=True)


if __name__ == "__main__":
    _main()
