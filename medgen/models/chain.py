"""A codec as a chain of links that each say how far they look, so that it can be run in tiles."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn

Span = tuple[int, int]
"""Half-open range of voxels along one axis."""


@dataclass(frozen=True)
class Link:
    """One step of a chain: an optional GroupNorm, a function of a few voxels around, an optional residual sum.

    Attributes:
        run: (B, C, x, y, z) -> (B, C', x * up / down, ...).
        up: factor by which extents grow.
        down: factor by which they shrink; one of the two is 1.
        reach: voxels beyond those it covers that an output looks at, on the input's grid; None for everywhere.
        width: the most channels at once, for the memory it takes; 0 for what its kernels say.
        norm: applied before ``run``, with the statistics of the whole.
        opens: whether its input is kept for a residual sum.
        closes: the shortcut of that sum, applied to what was kept, voxel by voxel, and added to the output.
    """

    run: Callable[[torch.Tensor], torch.Tensor]
    up: int = 1
    down: int = 1
    reach: int | None = 0
    width: int = 0
    norm: nn.GroupNorm | None = None
    opens: bool = False
    closes: Callable[[torch.Tensor], torch.Tensor] | None = None

    @property
    def channels(self) -> int:
        """The most channels at once."""
        kernels = self.run.parameters() if isinstance(self.run, nn.Module) else ()
        return self.width or max((max(p.shape[:2]) for p in kernels if p.ndim == 5), default=1)

    def needs(self, span: Span, extent: int) -> Span:
        """The input that an output span needs, within an input of ``extent`` voxels."""
        assert self.reach is not None
        low, high = span[0] * self.down // self.up - self.reach, -(-span[1] * self.down // self.up) + self.reach
        # Aligned to `down`, so that a strided kernel falls on the same voxels as on the whole.
        return max(0, low // self.down * self.down), min(extent, -(-high // self.down) * self.down)

    def extents(self, extents: Sequence[int]) -> tuple[int, ...]:
        """Extents of the output."""
        return tuple(n * self.up // self.down for n in extents)


@dataclass(frozen=True)
class Chain:
    """A codec's way in one direction.

    Attributes:
        start: the inputs -> the first link's input.
        links: the steps.
        finish: the last link's output -> the result; looks at single voxels only.
    """

    start: Callable[..., torch.Tensor]
    links: tuple[Link, ...]
    finish: Callable[[torch.Tensor], Any]


@runtime_checkable
class Chained(Protocol):
    """A codec that can be taken apart; its chains give what its ``encode`` and ``decode`` give."""

    def encoding(self) -> Chain:
        """(image, label) -> Encoded."""
        ...

    def decoding(self) -> Chain:
        """Latent -> Decoded."""
        ...


def halo(encoding: Chain, decoding: Chain) -> int | None:
    """The halo of a codec, in latents, from its chains; None where a link looks everywhere or normalises by groups."""
    reaches = []
    for chain in (encoding, decoding):
        if any(link.reach is None or link.norm is not None for link in chain.links):
            return None
        far = 1 << 20  # one output voxel, far from every border
        span, under, stride = (far, far + 1), (far, far + 1), 1
        for link in reversed(chain.links):
            span = link.needs(span, 1 << 30)
            under = (under[0] * link.down // link.up, -(-under[1] * link.down // link.up))
            stride *= link.down
        reaches.append(-(-max(under[0] - span[0], span[1] - under[1]) // stride))
    return max(reaches)
