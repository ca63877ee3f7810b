"""The process that takes a few real steps: a job from stdin, one line of JSON a stage to stdout.

The steps are those of the stages themselves, on random arrays of the right shape; see :mod:`medgen.doctor.timing`.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from medgen import config as configs
from medgen.cohort.requests import plan
from medgen.doctor.timing import Measured, peak_bytes, reset_peak
from medgen.errors import InputError
from medgen.generation.generator import Generator
from medgen.generation.model import build_codec, build_network
from medgen.models.codec import Codec
from medgen.models.condition import ConditionEncoder
from medgen.registry import resolve
from medgen.sampling.noise import Key, streams
from medgen.stages.codec import autoencoder_task
from medgen.stages.run import Run
from medgen.steering.cfg import wrap as guide
from medgen.store.augment import Augmentation
from medgen.store.latents import LatentStatistics
from medgen.store.patches import PatchSampler
from medgen.training.diffusion import DiffusionTask, LatentSet
from medgen.training.loop import Task
from medgen.training.precision import autocast

_LONG_SECONDS = 8.0
_ROWS = 2
_RATE = 1e-6


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


def _step(task: Task, device: torch.device, precision: str) -> None:
    """One step as :func:`medgen.training.loop.train` takes it, without clipping."""
    with autocast(device, precision):
        for loss, name, _ in task.step(0, 0.5):
            task.optimisers[name].zero_grad(set_to_none=True)
            with torch.autocast(device.type, enabled=False):
                loss.backward()
            task.optimisers[name].step()


def _experiment(job: Mapping[str, Any]) -> Iterator[Measured]:
    run = Run(configs.build(job["config"], "the config"), Path(), lambda *_: None)
    if run.config.threads:
        torch.set_num_threads(run.config.threads)
    meter = Meter(run.device)
    meter.start()
    codec = build_codec(run.codec_kind(), job["channels"], job["labels"]).to(run.device)
    yield from _codec(run, codec, job, meter)
    yield from _diffusion(run, codec.requires_grad_(False).eval(), job, meter)


def _codec(run: Run, codec: Codec, job: Mapping[str, Any], meter: Meter) -> Iterator[Measured]:
    a, shape = run.config.autoencoder, job["shape"]
    images = (torch.rand(_ROWS, job["channels"], *shape) * 2 - 1).half().to(run.device)
    ids = torch.randint(0, job["labels"], (_ROWS, 1, *shape), dtype=torch.int16) if job["labels"] else None
    arrays = [images] if ids is None else [images, ids.to(run.device)]
    augment = a.augment.values()
    sampler = PatchSampler(
        arrays, a.patch or shape, a.training.batch, seed=0, augmentation=Augmentation(**augment) if augment else None
    )
    task = autoencoder_task(
        codec, sampler, [], a.model_copy(update={"training": a.training.model_copy(update={"learning_rate": _RATE})}), 0
    )
    seconds = meter.typical(partial(_step, task, run.device, a.training.precision))
    yield {"stage": "autoencoder", "unit": "step", "seconds": seconds, "bytes": meter.peak()}
    del task
    meter.start()
    label = None if ids is None else ids[:1, 0].long().to(run.device)
    with torch.no_grad():
        seconds = meter.once(lambda: codec.encode(images[:1].float(), label))
    yield {"stage": "latents", "unit": "encoding", "seconds": seconds, "bytes": meter.peak()}


def _diffusion(run: Run, codec: Codec, job: Mapping[str, Any], meter: Meter) -> Iterator[Measured]:
    d, g, device = run.config.diffusion, run.config.generate, run.device
    encoder = ConditionEncoder.from_json(job["encoder"])
    cond = encoder.encode([job["rows"][i % len(job["rows"])] for i in range(d.training.batch)]).to(device)
    size = (codec.latent_channels, *(n // codec.stride for n in job["shape"]))
    mean = torch.randn(len(cond), *size).to(device)
    meter.start()
    process = resolve("diffusion", d.process, "build")(**d.process_options)
    network = build_network(run.network_kind(), size[0], encoder.schema).to(device)
    task = DiffusionTask(
        network,
        process,
        LatentSet(mean, torch.zeros_like(mean), cond),
        LatentStatistics((0.0,) * size[0], (1.0,) * size[0]),
        None,
        batch=d.training.batch,
        learning_rate=_RATE,
        drop_all=d.drop_all,
        drop_each=d.drop_each,
        seed=0,
    )
    seconds = meter.typical(partial(_step, task, device, d.training.precision))
    yield {"stage": "diffusion", "unit": "step", "seconds": seconds, "bytes": meter.peak()}
    del task
    solver = partial(resolve("sampling", g.sampler, "sample"), **g.sampler_options)
    steered = guide(process.as_model(network.requires_grad_(False).eval()), scale=g.guidance)

    def draw(steps: int) -> None:
        noise = streams([Key(0, 0)], size, device)
        process.sample(steered, (1, *size), cond.rows(slice(0, 1)), solver, noise, steps=steps)

    meter.start()
    with torch.no_grad():
        one = meter.once(lambda: draw(1))
        each = meter.once(lambda: draw(3)) / 3 if one < _LONG_SECONDS else one
        decode = meter.once(lambda: codec.decode(torch.randn(1, *size, device=device)))
    yield {"stage": "synthetic", "unit": "sample", "seconds": g.steps * each + decode, "bytes": meter.peak()}


def _model(job: Mapping[str, Any]) -> Iterator[Measured]:
    generator = Generator.load(job["model"])
    meter = Meter(generator.model.device)
    row = plan(generator.schema, generator.model.joint).row(0, 0)
    drawing = generator.drawing
    few = Generator(generator.model, replace(drawing, steps=min(2, drawing.steps)))
    meter.start()
    seconds = meter.once(lambda: few.draw([row], [Key(0, 0)]))
    whole = seconds * drawing.steps / few.drawing.steps
    yield {"stage": "synthetic", "unit": "sample", "seconds": whole, "bytes": meter.peak()}


def _main() -> None:
    job = json.load(sys.stdin)
    stage = "start"
    try:
        for result in _model(job) if "model" in job else _experiment(job):
            stage = result["stage"]
            print(json.dumps(result), flush=True)
    except (InputError, MemoryError, torch.OutOfMemoryError) as error:
        reason = str(error).split("\n")[0] or "out of memory"
        print(json.dumps({"stage": f"after {stage}", "error": reason[:300]}), flush=True)


if __name__ == "__main__":
    _main()
