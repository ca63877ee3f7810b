"""Devices, threads and mixed precision."""

from contextlib import AbstractContextManager

import torch

from medgen.errors import InputError
from medgen.training.distributed import local_device


def device_of(name: str) -> torch.device:
    """The device a config names; ``auto`` is the first GPU, else the CPU.

    Raises:
        InputError: the device is not there.
    """
    if name == "auto":
        return local_device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = local_device(name)
    except RuntimeError:
        raise InputError(f"device '{name}' is none of auto, cpu, cuda, cuda:N and mps") from None
    if device.type == "cuda" and (not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()):
        raise InputError(f"device {name} is not available here; set device: auto or cpu")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise InputError("device mps is not available here; set device: auto or cpu")
    return device


def bfloat16_pays(device: torch.device) -> bool:
    """Whether the hardware multiplies bfloat16 natively: emulation is slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        # Private, but the only query torch has; where it is gone float32 is the safe answer.
        queries = [getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")]
        return any(bool(query()) for query in queries if query is not None)
    return False


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """Autocast to bfloat16 as ``precision`` says: float32, bfloat16, or auto (where the hardware gains)."""
    enabled = precision == "bfloat16" or (precision == "auto" and bfloat16_pays(device))
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled)
