"""Findings about the machine."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch

from medgen import __version__
from medgen.doctor.finding import Finding, gib
from medgen.training.precision import Convolution, bfloat16_is_sound, bfloat16_pays

_GOOD_CUDNN = 91500
_LITTLE_MEMORY = 4 * 2**30
_TINY = [
    Convolution((4, channels, n, n, n), channels, (3, 3, 3), (1, 1, 1), (1, 1, 1), last)
    for channels in (16, 64)
    for n in (2, 4)
    for last in (False, True)
]


def available_bytes() -> int | None:
    """Memory that a process may still take: what the system has free, or the container's limit leaves."""
    limits = []
    for line in _lines(Path("/proc/meminfo")):
        if line.startswith("MemAvailable:"):
            limits.append(1024 * int(line.split()[1]))
    limit, used = (_lines(Path(f"/sys/fs/cgroup/memory.{name}")) for name in ("max", "current"))
    if limit and used and limit[0].isdigit():
        limits.append(int(limit[0]) - int(used[0]))
    if not limits and hasattr(os, "sysconf") and "SC_AVPHYS_PAGES" in os.sysconf_names:
        limits.append(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return min(limits, default=None)


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def environment(device: torch.device, disk: Path) -> Iterator[Finding]:
    """Versions, device, memory, cores, and space on the disk that holds ``disk``."""
    version = f"medgen {__version__}, torch {torch.__version__}"
    if device.type == "cuda":
        yield from _cuda(device, version)
    else:
        speed = "bfloat16 in hardware" if bfloat16_pays(device) else "no bfloat16 in hardware, so float32"
        yield Finding("ok", "machine", f"{version} on the {device.type.upper()}, {cores()} cores, {speed}")
        if bfloat16_pays(device) and (bad := [conv for conv in _TINY if not bfloat16_is_sound(device, conv)]):
            extent = " x ".join(map(str, bad[0].shape[2:]))
            yield Finding(
                "odd",
                "machine",
                f"bfloat16 convolutions give wrong gradients on inputs of {extent} voxels here",
                "leave precision at auto, which notices it in a training's own networks, or set float32",
            )
        if torch.cuda.is_available():
            yield Finding("odd", "machine", "there is a GPU, but the config asks for the CPU", "set device: auto")
    free = available_bytes()
    if free is not None:
        what = f"{gib(free)} of memory available"
        little = free < _LITTLE_MEMORY
        yield Finding("odd", "machine", what, "free some") if little else Finding("ok", "machine", what)
    there = next(p for p in (disk.absolute(), *disk.absolute().parents) if p.exists())
    yield Finding("ok", "machine", f"{gib(shutil.disk_usage(there).free)} free on the disk of {there}")


def _cuda(device: torch.device, version: str) -> Iterator[Finding]:
    properties = torch.cuda.get_device_properties(device)
    cudnn = torch.backends.cudnn.version() or 0
    what = f"{version}, CUDA {torch.version.cuda}, cuDNN {cudnn}, {properties.name} with"
    yield Finding("ok", "machine", f"{what} {gib(properties.total_memory)}")
    if cudnn < _GOOD_CUDNN and bfloat16_pays(device):
        yield Finding(
            "odd",
            "machine",
            f"cuDNN {cudnn} has wrong or slow bfloat16 Conv3d (mended in 9.15)",
            "install nvidia-cudnn-cu12>=9.15 or train with precision: float32",
        )


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:  # another system, or a container that hides it
        return []
