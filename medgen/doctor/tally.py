"""Operations, traffic and peak memory of a piece of torch, counted without computing it.

The work is run on fake tensors (shapes, types and devices without values: torch's own, and nothing is allocated). Every
operation is seen on its way: what it computes, what it reads and writes, and which storages are alive after it. Peak
memory is then exact up to what a backend takes for itself (a convolution's workspace, rounding to blocks), and the same
code is counted that trains and draws.
"""

import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

# What CUDA's autocast computes in float32 where a CPU's does not (PyTorch's "Automatic Mixed Precision" reference), as
# far as networks ask it by these functions.
_CUDA_FLOAT32 = (
    *("layer_norm", "group_norm", "softmax", "log_softmax", "cross_entropy", "nll_loss"),
    *("mse_loss", "l1_loss", "smooth_l1_loss", "kl_div"),
)


@dataclass(frozen=True)
class Count:
    """What a piece of work takes.

    Attributes:
        peak_bytes: most memory alive at once, what was alive before included where it was made under the same tally.
        flops: floating-point operations of products, convolutions and attention, two for a multiplication and sum.
        moved_bytes: read and written by all operations, were each to run on its own, as they do.
        held_bytes: of the peak, alive when it began.
    """

    peak_bytes: int
    flops: float
    moved_bytes: float
    held_bytes: int = 0


class Tally(TorchDispatchMode):
    """Counts while it is active; tensors made inside are fake.

    Args:
        cuda: follow CUDA's rules of autocast, on which the types of activations depend, and not a CPU's.
    """

    def __init__(self, *, cuda: bool) -> None:
        super().__init__()
        self.flops = self.moved_bytes = 0.0
        self.alive_bytes = self.peak_bytes = 0
        self._sizes: dict[int, tuple[weakref.ref[Any], int]] = {}
        self._fake = FakeTensorMode(allow_non_fake_inputs=True)
        self._policy = _CudaAutocast() if cuda else None
        self._undo: list[Callable[[], Any]] = []

    def __enter__(self) -> "Tally":
        self._fake.__enter__()
        super().__enter__()
        if self._policy is not None:
            self._policy.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._policy is not None:
            self._policy.__exit__(kind, error, trace)
        super().__exit__(kind, error, trace)
        self._fake.__exit__(kind, error, trace)
        for put_back in reversed(self._undo):
            put_back()
        self._undo.clear()

    def adopt(self, modules: Iterable[nn.Module], optimisers: Iterable[torch.optim.Optimizer] = ()) -> None:
        """Give modules that were built outside, and what steps them, fake weights until the tally ends."""
        new: dict[int, torch.Tensor] = {}

        def like(t: torch.Tensor) -> torch.Tensor:
            if id(t) not in new:
                hollow = torch.empty_strided(t.shape, t.stride(), dtype=t.dtype)
                is_weight = isinstance(t, nn.Parameter)
                new[id(t)] = nn.Parameter(hollow, requires_grad=t.requires_grad) if is_weight else hollow
            return new[id(t)]

        for module in (part for whole in modules for part in whole.modules()):
            tables: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
            for held in tables:
                for name, tensor in held.items():
                    if tensor is not None:
                        self._undo.append(partial(held.__setitem__, name, tensor))
                        held[name] = like(tensor)
        for optimiser in optimisers:
            self._undo.append(optimiser.state.clear)
            for group in optimiser.param_groups:
                self._undo.append(partial(group.__setitem__, "params", group["params"]))
                group["params"] = [like(p) for p in group["params"]]

    def count(self, work: Callable[[], Any]) -> Count:
        """What one call takes; ``peak_bytes`` counts what is alive when it starts."""
        flops, moved, held = self.flops, self.moved_bytes, self.alive_bytes
        self.peak_bytes = held
        work()
        return Count(self.peak_bytes, self.flops - flops, self.moved_bytes - moved, held)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Let an operation through and note it."""
        out = func(*args, **(kwargs or {}))
        made = [t for t in tree_leaves(out) if isinstance(t, torch.Tensor)]
        for tensor in made:
            self._note(tensor)
        packet = func._overloadpacket
        if packet in flop_registry:
            self.flops += flop_registry[packet](*args, **(kwargs or {}), out_val=out)
        elif "dot_product" in packet.__name__:
            self.flops += _attention(packet.__name__, args)
        if not getattr(func, "is_view", False):
            read = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
            self.moved_bytes += sum(t.numel() * t.element_size() for t in (*read, *made))
        return out

    def _note(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._sizes:
            return
        size = storage.nbytes()
        self._sizes[key] = (weakref.ref(storage, lambda _: self._free(key)), size)
        self.alive_bytes += size
        self.peak_bytes = max(self.peak_bytes, self.alive_bytes)

    def _free(self, key: int) -> None:
        _, size = self._sizes.pop(key)
        self.alive_bytes -= size


def _attention(name: str, args: tuple[Any, ...]) -> float:
    """Operations of a fused attention that torch's own table lacks: two products forward, five backward."""
    backward = "backward" in name
    query, key = args[int(backward)], args[int(backward) + 1]
    return (10.0 if backward else 4.0) * query.numel() * int(key.shape[-2])


class _CudaAutocast:
    """What CUDA's autocast brings to float32, brought to it: the functions are replaced while it is entered.

    A function mode would be neater, but blocks that compute their activations again do so outside of it.
    """

    def __init__(self) -> None:
        self.plain = {name: getattr(F, name) for name in _CUDA_FLOAT32}

    def __enter__(self) -> "_CudaAutocast":
        for name, function in self.plain.items():
            setattr(F, name, partial(_in_float32, function))
        return self

    def __exit__(self, *_: object) -> None:
        for name, function in self.plain.items():
            setattr(F, name, function)


def _in_float32(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    if torch.is_autocast_enabled("cpu"):
        args = tuple(_float(a) for a in args)
        kwargs = {name: _float(a) for name, a in kwargs.items()}
    return function(*args, **kwargs)


def _float(value: Any) -> Any:
    return value.float() if isinstance(value, torch.Tensor) and value.dtype == torch.bfloat16 else value
