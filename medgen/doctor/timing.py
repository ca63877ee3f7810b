"""Peak memory and time of the stages that use networks, measured by a few real steps in a process of their own.

A process of its own because memory that the doctor itself took would count otherwise, and because steps that do not
fit must not take the doctor with them. The job goes in and the results come out as JSON; nothing is pickled.
"""

import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

LIMIT_SECONDS = 60.0
_LONG = 4.0  # a first step of more seconds is not repeated
_REPEATS = 2
_ROWS = 2

Measured = dict[str, Any]
"""stage, seconds (a unit), unit, bytes (peak), and for the failed one: error."""


def measured(job: Mapping[str, Any], limit_seconds: float = LIMIT_SECONDS) -> tuple[list[Measured], str]:
    """Run a job.

    Args:
        job: for an experiment: config, channels, labels, shape, encoder, rows; for a model: model.
        limit_seconds: after which the process is ended.

    Returns:
        What was measured, and why that is not all; empty where it is.
    """
    command = [sys.executable, "-m", "medgen.doctor.timing"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as child:
        try:
            out, complaint = child.communicate(json.dumps(job), timeout=limit_seconds)
            late = False
        except subprocess.TimeoutExpired:
            child.kill()
            out, complaint = child.communicate()
            late = True
    found = [json.loads(line) for line in out.splitlines() if line.startswith('{"stage"') and line.endswith("}")]
    done = [m for m in found if "error" not in m]
    errors = [m["error"] for m in found if "error" in m]
    if errors:
        return done, str(errors[0])
    if late:
        return done, f"not finished within {limit_seconds:.0f} s"
    if child.returncode:
        last = (complaint.strip().splitlines() or ["no message"])[-1]
        killed = "killed, most likely for want of memory" if child.returncode == -9 else last[:200]
        return done, killed
    return done, ""


def reset_peak() -> None:
    """Let the peak of this process's memory start from what it holds now (Linux)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:  # another system: the peak since the start is an upper bound
        return


def peak_bytes() -> int:
    """Largest resident memory of this process since :func:`reset_peak`."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        unit = 1 if sys.platform == "darwin" else 1024
        return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _main() -> None:
    """The process: a job from stdin, one line of JSON a stage to stdout."""
    import torch

    from medgen.errors import InputError

    job = json.load(sys.stdin)
    stage = "start"
    try:
        for result in _model(job) if "model" in job else _experiment(job):
            stage = result["stage"]
            print(json.dumps(result), flush=True)
    except (InputError, MemoryError, torch.OutOfMemoryError) as error:
        reason = str(error).split("\n")[0] or "out of memory"
        print(json.dumps({"stage": f"after {stage}", "error": reason[:300]}), flush=True)


class _Meter:
    """Times a function and watches the memory of its device."""

    def __init__(self, device: Any) -> None:
        self.cuda = device if device.type == "cuda" else None

    def start(self) -> None:
        """Start watching memory."""
        import torch

        if self.cuda is not None:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.cuda)
        else:
            reset_peak()

    def peak(self) -> int:
        """Peak since the start."""
        import torch

        return int(torch.cuda.max_memory_reserved(self.cuda)) if self.cuda is not None else peak_bytes()

    def once(self, work: Callable[[], Any]) -> float:
        """Seconds of one call."""
        import torch

        start = time.perf_counter()
        work()
        if self.cuda is not None:
            torch.cuda.synchronize(self.cuda)
        return time.perf_counter() - start

    def each(self, work: Callable[[], Any]) -> float:
        """Seconds of a typical call: after the first, unless that one was long."""
        first = self.once(work)
        return first if first > _LONG else sum(self.once(work) for _ in range(_REPEATS)) / _REPEATS


def _experiment(job: Mapping[str, Any]) -> Iterator[Measured]:
    import torch

    from medgen import config as configs
    from medgen.generation.model import build_codec, build_network
    from medgen.models.condition import ConditionEncoder
    from medgen.registry import resolve
    from medgen.sampling.noise import Key, streams
    from medgen.stages.run import Run
    from medgen.steering.cfg import wrap as guide
    from medgen.store.latents import LatentStatistics
    from medgen.training.autoencoder import AutoencoderTask
    from medgen.training.diffusion import DiffusionTask
    from medgen.training.precision import autocast

    c = configs.build(job["config"], "the config")
    run = Run(c, Path(), lambda *_: None)
    if c.threads:
        torch.set_num_threads(c.threads)
    device, shape, channels, labels = run.device, job["shape"], job["channels"], job["labels"]
    meter = _Meter(device)
    images = (torch.rand(_ROWS, channels, *shape) * 2 - 1).half().to(device)
    ids = torch.randint(0, labels, (_ROWS, 1, *shape), dtype=torch.int16).to(device) if labels else None

    def trained(task: Any, precision: str) -> Callable[[], None]:
        def step() -> None:
            with autocast(device, precision):
                for loss, name, _ in task.step(0):
                    task.optimisers[name].zero_grad(set_to_none=True)
                    with torch.autocast(device.type, enabled=False):
                        loss.backward()
                    task.optimisers[name].step()

        return step

    a = c.autoencoder
    meter.start()
    codec = build_codec(run.codec_kind(), channels, labels).to(device)
    task = AutoencoderTask(
        codec,
        images,
        ids,
        [],
        patch=a.patch or shape,
        batch=a.training.batch,
        learning_rate=1e-6,
        kl_weight=a.kl_weight,
        label_weight=a.label_weight,
        seed=0,
    )
    seconds = meter.each(trained(task, a.training.precision))
    yield {"stage": "autoencoder", "unit": "step", "seconds": seconds, "bytes": meter.peak()}

    del task
    codec.requires_grad_(False).eval()
    meter.start()
    with torch.no_grad():
        label = None if ids is None else ids[:1, 0].long()
        seconds = meter.once(lambda: codec.encode(images[:1].float(), label))
        latent = codec.encode(images[:1, :, : codec.stride * 2, : codec.stride * 2, : codec.stride * 2].float(), None)
    yield {"stage": "latents", "unit": "encoding", "seconds": seconds, "bytes": meter.peak()}

    d, encoder = c.diffusion, ConditionEncoder.from_json(job["encoder"])
    rows = [job["rows"][i % len(job["rows"])] for i in range(d.training.batch)]
    cond = encoder.encode(rows).to(device)
    size = (latent.mean.shape[1], *(n // codec.stride for n in shape))
    mean = torch.randn(len(rows), *size).to(device)
    meter.start()
    process = resolve("diffusion", d.process, "build")(**d.process_options)
    network = build_network(run.network_kind(), size[0], encoder.schema).to(device)
    statistics = LatentStatistics((0.0,) * size[0], (1.0,) * size[0])
    diffusion = DiffusionTask(
        network,
        process,
        mean,
        torch.zeros_like(mean),
        statistics,
        cond,
        None,
        batch=d.training.batch,
        learning_rate=1e-6,
        drop_all=d.drop_all,
        drop_each=d.drop_each,
        seed=0,
    )
    seconds = meter.each(trained(diffusion, d.training.precision))
    yield {"stage": "diffusion", "unit": "step", "seconds": seconds, "bytes": meter.peak()}

    g = c.generate
    del diffusion
    network.requires_grad_(False).eval()
    solver = resolve("sampling", g.sampler, "sample")
    steered = guide(process.as_model(network), scale=g.guidance)

    def draw(steps: int) -> None:
        noise = streams([Key(0, 0)], size, device)
        process.sample(
            steered,
            (1, *size),
            cond.rows(slice(0, 1)),
            lambda *args, **kwargs: solver(*args, **kwargs, **g.sampler_options),
            noise,
            steps=steps,
        )

    meter.start()
    with torch.no_grad():
        one = meter.once(lambda: draw(1))
        more = meter.once(lambda: draw(3)) / 3 if one < _LONG else one
        decode = meter.once(lambda: codec.decode(torch.randn(1, *size, device=device)))
    yield {"stage": "synthetic", "unit": "sample", "seconds": g.steps * more + decode, "bytes": meter.peak()}


def _model(job: Mapping[str, Any]) -> Iterator[Measured]:
    from dataclasses import replace

    from medgen.cohort.requests import plan
    from medgen.generation.generator import Generator
    from medgen.sampling.noise import Key

    generator = Generator.load(job["model"])
    meter = _Meter(generator.model.device)
    row = plan(generator.schema, generator.model.joint).row(0, 0)
    meter.start()
    few = Generator(generator.model, replace(generator.drawing, steps=min(2, generator.drawing.steps)))
    seconds = meter.once(lambda: few.draw([row], [Key(0, 0)]))
    whole = seconds * generator.drawing.steps / few.drawing.steps
    yield {"stage": "synthetic", "unit": "sample", "seconds": whole, "bytes": meter.peak()}


if __name__ == "__main__":
    _main()
