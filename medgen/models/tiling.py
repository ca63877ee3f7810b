"""Encoding and decoding of any extent within the memory at hand.

A convolution looks a few voxels far: a tile with that much around it gives what the whole gives, and no seam needs
blending. A GroupNorm looks at the whole volume, and with tens of them in a row a tile decoded on its own differs by
many percent. So a codec that can be taken apart (:class:`medgen.models.chain.Chained`) is run link by link: each
activation is held once, whole, and each link fills the next in tiles, with the statistics of the whole where it
normalises. That is exact, computes each voxel once but for a rim of one or two, and holds an activation or two where
the network at once holds five. A codec that only knows its halo is run in tiles as it is; one that knows nothing is
run whole.
"""

from collections.abc import Sequence
from itertools import product
from math import prod

import torch
from torch import nn

from medgen.models.chain import Chain, Chained, Link, Span
from medgen.models.codec import Codec, Decoded, Encoded, Gaussian
from medgen.models.memory import budget_bytes

COPIES = 5  # activations that a link holds at once: input, norm, activation, output, one reordered by the convolution
_FLOAT = 4


def decode(
    codec: Codec,
    latent: torch.Tensor,
    *,
    tile: int | None = None,
    budget: int | None = None,
    device: torch.device | str | None = None,
) -> Decoded:
    """Decode within the memory at hand.

    Args:
        codec: in evaluation mode.
        latent: (B, C, x, y, z) on the codec's device.
        tile: voxels along each axis of what is computed at once; by default as the budget allows, whole where it fits.
        budget: bytes for activations; by default what :func:`budget_bytes` says.
        device: where the result lies, by default where ``latent`` does.
    """
    chain = codec.decoding() if isinstance(codec, Chained) else _decoding(codec)
    goal = latent.device if device is None else torch.device(device)
    budget = budget_bytes(latent.device) if budget is None else budget
    if tile is None and len(latent) * whole_bytes(chain.links, latent.shape[2:]) <= budget:
        whole = codec.decode(latent)
        return Decoded(whole.image.to(goal), None if whole.label_logits is None else whole.label_logits.to(goal))
    rows = [_run(chain, (row,), latent.device, goal, tile, budget) for row in latent.split(1)]
    decoded: Decoded = chain.finish(rows[0] if len(rows) == 1 else torch.cat(rows))
    return decoded


def encode(
    codec: Codec,
    image: torch.Tensor,
    label: torch.Tensor | None,
    *,
    tile: int | None = None,
    budget: int | None = None,
) -> Encoded:
    """Encode within the memory at hand; see :func:`decode`.

    Args:
        codec: in evaluation mode.
        image: (B, C, X, Y, Z) on the codec's device.
        label: (B, X, Y, Z) ids or None.
        tile: as for :func:`decode`.
        budget: as for :func:`decode`.
    """
    chain = codec.encoding() if isinstance(codec, Chained) else _encoding(codec)
    budget = budget_bytes(image.device) if budget is None else budget
    if tile is None and len(image) * whole_bytes(chain.links, image.shape[2:]) <= budget:
        return codec.encode(image, label)
    labels: Sequence[torch.Tensor | None] = [None] * len(image) if label is None else label.split(1)
    pairs = zip(image.split(1), labels, strict=True)
    encoded: Encoded = chain.finish(
        torch.cat([_run(chain, pair, image.device, image.device, tile, budget) for pair in pairs])
    )
    return encoded


def _decoding(codec: Codec) -> Chain:
    """A codec as one link."""

    def joined(latent: torch.Tensor) -> torch.Tensor:
        decoded = codec.decode(latent)
        return decoded.image if decoded.label_logits is None else torch.cat([decoded.image, decoded.label_logits], 1)

    def parted(out: torch.Tensor) -> Decoded:
        c = codec.image_channels
        return Decoded(out[:, :c], out[:, c:] if codec.labels else None)

    return Chain(lambda z: z, (Link(joined, up=codec.stride, reach=codec.halo, width=_width(codec)),), parted)


def _encoding(codec: Codec) -> Chain:
    """A codec as one link."""

    def joined(image: torch.Tensor, label: torch.Tensor | None) -> torch.Tensor:
        return image if label is None else torch.cat([image, label[:, None].to(image.dtype)], dim=1)

    def both(x: torch.Tensor) -> torch.Tensor:
        c = codec.image_channels
        encoded = codec.encode(x[:, :c], x[:, c].long() if x.shape[1] > c else None)
        return torch.cat([encoded.mean, encoded.logvar], dim=1)

    reach = None if codec.halo is None else codec.halo * codec.stride
    link = Link(both, down=codec.stride, reach=reach, width=_width(codec))
    return Chain(joined, (link,), lambda out: Gaussian(*out.chunk(2, dim=1)))


def _width(codec: nn.Module) -> int:
    """Channels at full resolution, about: each halving of the extents leaves room for eight times as many."""
    widest = max((max(p.shape[:2]) for p in codec.parameters() if p.ndim == 5), default=1)
    return max(8, widest // 8)


@torch.no_grad()
def _run(
    chain: Chain,
    inputs: Sequence[torch.Tensor | None],
    device: torch.device,
    goal: torch.device,
    tile: int | None,
    budget: int,
) -> torch.Tensor:
    """One volume through the links of a chain: computed on ``device``, the result on ``goal``."""
    x = chain.start(*inputs)
    if tile is None:
        # What is held between links counts too; where it alone is too much, it is held on the CPU.
        held = whole_bytes(chain.links, x.shape[2:], copies=1)
        host = device if 2 * held <= budget else torch.device("cpu")
        room = max(budget // 8, budget - held) if host == device else budget
    else:
        host, room = device, 0
    kept: torch.Tensor | None = None
    for i, link in enumerate(chain.links):
        last = i + 1 == len(chain.links)
        size = tile_of(link, x.shape[2:], room, tile)
        scale = _affine(link.norm, x) if link.norm is not None else None
        if link.opens:
            kept = x
        into = kept if link.closes is not None else None
        x = _fill(link, x, scale, into, size, device, goal if last else host)
        if link.closes is not None:
            kept = into = None
    return x.to(goal)


def whole_bytes(links: Sequence[Link], extents: Sequence[int], copies: int = COPIES) -> int:
    """Memory that links take on inputs of these extents, about: of the largest, ``copies`` of its activation."""
    most = 0
    for link in links:
        after = link.extents(extents)
        most = max(most, copies * _FLOAT * link.channels * max(prod(extents), prod(after)))
        extents = after
    return most


def tile_of(link: Link, extents: Sequence[int], room: int, tile: int | None = None) -> tuple[int, ...]:
    """Extents of a link's tiles on its output's grid.

    Args:
        link: a step of a chain.
        extents: of its input.
        room: bytes for what is computed at once; halved along the longest axis until that fits.
        tile: where given, voxels along each axis instead.
    """
    end = link.extents(extents)
    if link.reach is None:
        return end
    if tile is not None:
        return tuple(min(n, max(link.up, tile // (link.up * link.down) * link.up)) for n in end)
    size, pieces = list(end), [1, 1, 1]
    while _tile_bytes(link, size, extents) > room and any(n > link.up for n in size):
        axis = max(range(3), key=size.__getitem__)
        pieces[axis] += 1
        size[axis] = max(link.up, -(-end[axis] // (pieces[axis] * link.up)) * link.up)
    return tuple(size)


def _tile_bytes(link: Link, size: Sequence[int], extents: Sequence[int]) -> int:
    assert link.reach is not None
    rim = 2 * link.reach
    tile = [min(n * link.down // link.up + rim, whole) for n, whole in zip(size, extents, strict=True)]
    return whole_bytes((link,), tile)


def _affine(norm: nn.GroupNorm, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A GroupNorm of the whole of ``x`` as scale and shift of each channel, (B, C, 1, 1, 1)."""
    groups = x.reshape(x.shape[0], norm.num_groups, -1)
    variance_BG, mean_BG = torch.var_mean(groups, dim=-1, correction=0)
    each = x.shape[1] // norm.num_groups
    scale = (variance_BG.float() + norm.eps).rsqrt().repeat_interleave(each, dim=1)
    shift = -mean_BG.float().repeat_interleave(each, dim=1) * scale
    if norm.affine:
        weight, bias = norm.weight.to(x.device).float(), norm.bias.to(x.device).float()
        scale, shift = scale * weight, shift * weight + bias
    return scale[..., None, None, None], shift[..., None, None, None]


def _fill(
    link: Link,
    x: torch.Tensor,
    scale: tuple[torch.Tensor, torch.Tensor] | None,
    kept: torch.Tensor | None,
    size: Sequence[int],
    device: torch.device,
    goal: torch.device,
) -> torch.Tensor:
    """Apply a link tile by tile into one tensor on ``goal``; a residual sum takes the place of what was kept."""
    extents, end = x.shape[2:], link.extents(x.shape[2:])
    affine = None if scale is None else tuple(t.to(device) for t in scale)
    out: torch.Tensor | None = None
    for box in product(*([(a, min(a + t, n)) for a in range(0, n, t)] for n, t in zip(end, size, strict=True))):
        if link.reach is None:
            need: list[Span] = [(0, n) for n in extents]
        else:
            need = [link.needs(span, n) for span, n in zip(box, extents, strict=True)]
        y = x[_at(need)].to(device)
        if affine is not None:
            y = torch.addcmul(affine[1].to(y.dtype), y, affine[0].to(y.dtype))
        y = link.run(y)
        starts = [a * link.up // link.down for a, _ in need]
        y = y[_at([(a - s, b - s) for (a, b), s in zip(box, starts, strict=True)])]
        if list(size) == list(end) and link.closes is None:
            return y.to(goal)
        place = _at(box)
        if link.closes is not None:
            assert kept is not None
            y = y + link.closes(kept[place].to(device))
        if out is None:
            # The shortcut looks at single voxels, so that the sum can be written over them.
            fits = kept is not None and kept.shape[1] >= y.shape[1] and kept.device == goal and kept.dtype == y.dtype
            out = kept[:, : y.shape[1]] if fits and kept is not None else _like(y, end, goal)
        out[place] = y
    assert out is not None
    return out


def _at(box: Sequence[Span]) -> tuple[slice, ...]:
    """Index of a box in a tensor (B, C, X, Y, Z)."""
    return (slice(None), slice(None), *(slice(a, b) for a, b in box))


def _like(y: torch.Tensor, extents: Sequence[int], device: torch.device) -> torch.Tensor:
    """Room for the whole that a tile is of, with the tile's order in memory."""
    last = y.shape[1] > 1 and y.stride(1) == 1
    layout = torch.channels_last_3d if last else torch.contiguous_format
    return torch.empty((*y.shape[:2], *extents), dtype=y.dtype, device=device, memory_format=layout)
