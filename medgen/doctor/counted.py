"""Parts of an experiment counted for a machine that is not here: device memory exactly, time at given rates."""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from medgen.doctor import parts
from medgen.doctor.parts import Job, Networks
from medgen.doctor.tally import Count, Tally
from medgen.models.memory import GPU_SHARE
from medgen.training.ema import GAMMAS

OVERHEAD_BYTES = 2**30
"""What a GPU's context, its libraries' code and a convolution's workspace take, about."""

_LEAST_BYTES = 2**28  # for activations: tiles of single voxels would be counted for ever


@dataclass(frozen=True)
class Machine:
    """Rates that are sustained over a training, not those of a data sheet.

    Attributes:
        tflops: 10^12 floating-point operations of convolutions and products a second.
        gb_per_s: 10^9 bytes of memory read and written a second; None where time is that of the operations alone.
        memory_bytes: of the device; None where it is not known.
    """

    tflops: float
    gb_per_s: float | None = None
    memory_bytes: int | None = None

    def seconds(self, count: Count) -> float:
        """Time of what was counted: operations, then traffic, one after the other."""
        moving = count.moved_bytes / (1e9 * self.gb_per_s) if self.gb_per_s else 0.0
        return count.flops / (1e12 * self.tflops) + moving

    def told(self) -> str:
        """The rates in words."""
        moving = f" and {self.gb_per_s:g} GB/s" if self.gb_per_s else ""
        return f"{self.tflops:.3g} TFLOP/s{moving} sustained"


def count_parts(job: Job, *, cuda: bool = True, memory_bytes: int | None = None) -> Mapping[str, Count]:
    """Count every part of a job once, in its second step, where optimisers hold their states.

    Args:
        job: the experiment's.
        cuda: count as CUDA's autocast computes, in bfloat16 where precision is ``auto``; else as this CPU does.
        memory_bytes: of the device, from which tiles of encoding and decoding follow.

    Returns:
        Part -> what it takes. ``peak_bytes`` holds weights, gradients, states of the optimiser and averages of the
        network that the part belongs to, as the stage that needs it does.
    """
    networks = Networks(_on_gpu(job) if cuda else job, torch.device("cpu"))
    found: dict[str, Count] = {}
    for name in job.parts:
        with warnings.catch_warnings(), Tally(cuda=cuda) as tally:
            warnings.simplefilter("ignore")
            kept = _hold(tally, networks, name)
            budget = (
                None if memory_bytes is None else max(_LEAST_BYTES, int(GPU_SHARE * (memory_bytes - tally.alive_bytes)))
            )
            found[name] = _second(tally, networks.part(name, budget=budget), twice="step" in name)
            del kept
    return found


def _second(tally: Tally, work: Callable[[], Any], *, twice: bool) -> Count:
    first = tally.count(work)
    return replace(tally.count(work), held_bytes=first.held_bytes) if twice else first


def _hold(tally: Tally, networks: Networks, name: str) -> list[torch.Tensor]:
    """Give fake weights to what the part's stage holds, averages included; the others are set aside."""
    codec, network = networks.codec_task, networks.denoiser_task
    averaged: list[torch.nn.Module] = []
    if name == parts.CODEC_STEP:
        used = [*codec.modules.values(), *([codec.perceptual] if codec.perceptual is not None else [])]
        tally.adopt(used, codec.optimisers.values())
        averaged = [*codec.modules.values()]
    elif name == parts.SEGMENTER_STEP and networks.segmenter_task is not None:
        task = networks.segmenter_task
        tally.adopt([*task.modules.values()], task.optimisers.values())
        averaged = [*task.modules.values()]
    elif "step" in name:
        profiles = 1 if name == parts.STUDENT_STEP else len(GAMMAS)
        # A student is trained beside its teacher; the codec is held for pictures.
        tally.adopt([networks.network], network.optimisers.values())
        tally.adopt([networks.codec])
        averaged = [networks.network] * (profiles + (name == parts.STUDENT_STEP))
    else:
        used = [networks.codec] if name == parts.ENCODE else [networks.codec, networks.network]
        tally.adopt(used)
        for module in used:
            module.requires_grad_(False)
    return [torch.empty(t.shape, dtype=torch.float32) for module in averaged for t in module.state_dict().values()]


def _on_gpu(job: Job) -> Job:
    """The job as a GPU would do it: ``auto`` is bfloat16 there."""
    config: dict[str, Any] = {**job.config}
    for section in ("autoencoder", "diffusion", "distil"):
        training = (config.get(section) or {}).get("training")
        if training and training["precision"] == "auto":
            config[section] = {**config[section], "training": {**training, "precision": "bfloat16"}}
    return replace(job, config={**config, "device": "cpu"}, precision="bfloat16")
