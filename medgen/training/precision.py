"""Devices, threads and mixed precision."""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

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


_SMALL_VOXELS = 64
_OFF = 0.1


@dataclass(frozen=True)
class Convolution:
    """A convolution as a training meets it: what of it decides which kernel of the backend computes it.

    Attributes:
        shape: (B, C, X, Y, Z) of its input.
        outputs: channels.
        kernel: extents.
        stride: of it.
        padding: of it.
        last: whether channels lie last in memory.
    """

    shape: tuple[int, ...]
    outputs: int
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    last: bool


@lru_cache(maxsize=256)
def bfloat16_is_sound(device: torch.device, conv: Convolution) -> bool:
    """Whether the device's bfloat16 gives a convolution's output and gradients to within a tenth of float32's.

    Rounding costs about 1%. Some backends compute the gradient of the weights wrongly where extents are tiny.
    """
    # What is wrong is memory that was never written, which by chance may hold what is right: so several tries.
    return all(_is_right(device, conv, torch.Generator().manual_seed(attempt)) for attempt in range(3))


def _is_right(device: torch.device, conv: Convolution, random: torch.Generator) -> bool:
    shape = (conv.outputs, conv.shape[1], *conv.kernel)
    weight, x = torch.randn(shape, generator=random), torch.randn(conv.shape, generator=random)
    if conv.last:
        weight, x = (t.contiguous(memory_format=torch.channels_last_3d) for t in (weight, x))
    pull: torch.Tensor | None = None
    found = []
    for enabled in (False, True):
        leaves = [t.to(device).clone().requires_grad_(True) for t in (weight, x)]
        with torch.enable_grad(), torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled):
            out = F.conv3d(leaves[1], leaves[0], None, conv.stride, conv.padding)
        pull = torch.randn(out.shape, generator=random) if pull is None else pull
        found.append([out.float(), *torch.autograd.grad(out, leaves, pull.to(out))])
    return all(bool((b - a).norm() <= _OFF * a.norm()) for a, b in zip(*found, strict=True))


def unsound(modules: Iterable[nn.Module], probe: Callable[[], Any], device: torch.device) -> Convolution | None:
    """A convolution of few voxels that bfloat16 computes wrongly on the device; None where all are right.

    Args:
        modules: whose convolutions are looked at.
        probe: runs them forward once, on inputs as they will be; what it changes beside gradients is put back.
        device: where they are.
    """
    modules = list(modules)
    seen: set[Convolution] = set()

    def look(layer: nn.Module, args: tuple[Any, ...]) -> None:
        assert isinstance(layer, nn.Conv3d)
        x = args[0]
        if x.shape[2:].numel() <= _SMALL_VOXELS and layer.groups == 1 and layer.dilation == (1, 1, 1):
            padding = layer.padding if not isinstance(layer.padding, str) else (0, 0, 0)
            last = x.is_contiguous(memory_format=torch.channels_last_3d)
            seen.add(
                Convolution(tuple(x.shape), layer.out_channels, layer.kernel_size, layer.stride, tuple(padding), last)
            )

    layers = [m for whole in modules for m in whole.modules() if isinstance(m, nn.Conv3d)]
    if not layers:
        return None
    # A codebook learns in its forward pass, and is a parameter without a gradient.
    changed = ((*whole.buffers(), *(p for p in whole.parameters() if not p.requires_grad)) for whole in modules)
    kept = [(t, t.detach().clone()) for tensors in changed for t in tensors]
    hooks = [layer.register_forward_pre_hook(look) for layer in layers]
    try:
        with autocast(device, "bfloat16"):
            probe()
    finally:
        for hook in hooks:
            hook.remove()
        with torch.no_grad():
            for tensor, before in kept:
                tensor.copy_(before)
    return next((conv for conv in sorted(seen, key=repr) if not bfloat16_is_sound(device, conv)), None)
