"""Training under ``torchrun``: as many processes as devices, equal weights in all, files written by the first.

Each process takes its own batches (its rank is part of their key), gradients are averaged over all, and so a step of
n processes sees n batches. Modules are not wrapped: a task calls any method of them. All processes see one run folder.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import nn

# The others wait while the first one validates, prepares or generates.
_PATIENCE = timedelta(days=7)


@dataclass(frozen=True)
class World:
    """This process among all.

    Attributes:
        rank: of this process.
        size: how many there are.
        device: where small numbers are exchanged.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def first(self) -> bool:
        """Whether this process writes the files."""
        return self.rank == 0

    def agree(self, value: float) -> float:
        """The first process's number, in all."""
        if self.size == 1:
            return value
        shared = torch.tensor([value], dtype=torch.float64, device=self.device)
        dist.broadcast(shared, 0)
        return float(shared)

    def wait(self) -> None:
        """Until all processes are here."""
        self.agree(0.0)

    def mean(self, value: torch.Tensor) -> torch.Tensor:
        """The mean of a scalar over all processes."""
        if self.size == 1:
            return value
        shared = value.detach().float().clone()
        dist.all_reduce(shared)
        return shared / self.size

    def share_start(self, modules: Iterable[nn.Module]) -> None:
        """Give all processes the first one's weights and buffers."""
        if self.size > 1:
            for module in modules:
                for tensor in module.state_dict().values():
                    dist.broadcast(tensor, 0)

    def average_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Mean over the processes, in one message; a weight that only some of them used counts 0 in the others."""
        if self.size == 1:
            return
        used = torch.tensor([float(p.grad is not None) for p in parameters], device=parameters[0].device)
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        flat = torch.cat([used, *(g.float().flatten() for g in grads)])
        dist.all_reduce(flat)
        anywhere = (flat[: len(parameters)] > 0).tolist()
        parts = (flat[len(parameters) :] / self.size).split([g.numel() for g in grads])
        for p, part, wanted in zip(parameters, parts, anywhere, strict=True):
            # In the weight's own layout, which a fused optimiser takes for granted.
            p.grad = torch.empty_like(p).copy_(part.view_as(p)) if wanted else None

    def average_buffers(self, modules: Mapping[str, nn.Module]) -> None:
        """Mean of floating buffers that a step has changed in each process (running statistics)."""
        if self.size > 1:
            for module in modules.values():
                for buffer in module.buffers():
                    if buffer.is_floating_point():
                        dist.all_reduce(buffer)
                        buffer /= self.size


def leave() -> None:
    """Part from the other processes at the end of a run."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def local_device(kind: str) -> torch.device:
    """The device of a kind, under ``torchrun`` this process's own."""
    if kind == "cuda" and "LOCAL_RANK" in os.environ:
        return torch.device(kind, int(os.environ["LOCAL_RANK"]))
    return torch.device(kind)


def world(device: torch.device | None = None) -> World:
    """This process among those that ``torchrun`` started; alone without it.

    Args:
        device: of the training: what is exchanged travels by NCCL between GPUs and by gloo between CPUs. It is asked
            for once, by the first call; later calls may leave it out.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1 or not dist.is_available():
        return World()
    if not dist.is_initialized():
        cuda = device is not None and device.type == "cuda"
        if cuda:
            torch.cuda.set_device(device)
        dist.init_process_group("nccl" if cuda else "gloo", timeout=_PATIENCE)
    on_gpu = dist.get_backend() == "nccl"
    where = torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")
    return World(dist.get_rank(), dist.get_world_size(), where)
