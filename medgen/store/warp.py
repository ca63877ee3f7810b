"""One affine resampling of a patch: images trilinear, labels nearest, edge values beyond the volume.

``near`` holds for each output voxel o the input voxel ``linear @ o + origin``. A patch is taken from a box of the
volume just large enough, so the cost follows the patch and not the volume.

On a CPU torch's 3D ``grid_sample`` is a scalar loop while its 2D one is vectorised. Trilinear interpolation is linear
interpolation between two bilinear ones, and stacking a box's planes into one tall image puts plane i below plane
i - 1; so one 2D call whose row is ``floor(x) * height + y``, and whose two channels are the box and the box moved up
by one plane, gives both neighbours: the same numbers, three to eight times sooner.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F

_CHUNK = 2**17  # voxels resampled at a time on a CPU, so that scratch memory does not follow the patch
_NEAR = 1e-3  # voxels; coordinates in float32 may miss the box by less than this


def reach(linear: np.ndarray, patch: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest of ``linear @ o`` per axis over the voxels o of a patch; linear (..., 3, 3)."""
    ends = linear * (np.asarray(patch) - 1.0)
    return np.minimum(ends, 0.0).sum(-1), np.maximum(ends, 0.0).sum(-1)


def origins(linear: np.ndarray, shift: np.ndarray, starts: np.ndarray, patch: Sequence[int]) -> np.ndarray:
    """Volume coordinates (B, 3) of each patch's first voxel, the map being about the patch's centre."""
    half = (np.asarray(patch) - 1.0) / 2
    return starts + half + shift - linear @ half


def boxes(
    linear: np.ndarray, origin: np.ndarray, patch: Sequence[int], extent: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """First voxel and extents (B, 3) of the boxes that patches read, inside the volume; at least 2 where it has 2."""
    low, high = reach(linear, patch)
    last = np.asarray(extent) - 1
    first = np.clip(np.floor(origin + low).astype(np.int64), 0, np.maximum(last - 1, 0))
    end = np.clip(np.floor(origin + high).astype(np.int64) + 1, np.minimum(first + 1, last), last)
    return first, end - first + 1


def _coordinate(row: Sequence[float], origin: float, x: torch.Tensor, y: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    plane = (y * row[1] + origin)[:, None] + z * row[2]
    return (x * row[0])[:, None, None] + plane


def linear_patch(box: torch.Tensor, linear: np.ndarray, origin: np.ndarray, out: torch.Tensor) -> None:
    """Trilinear resampling of one patch on a CPU.

    Args:
        box: (X, C, Y, Z) float32, contiguous, X at least 2: planes first, so that a plane's channels lie together.
        linear: (3, 3).
        origin: (3,) in voxels of the box.
        out: (C, *patch) float32, written.
    """
    planes, channels, height, width = box.shape
    tall = ((planes - 2) * channels + 1) * height
    rows = 2.0 / max(tall - 1, 1)
    columns = 2.0 / max(width - 1, 1)
    x, y, z = (torch.arange(n, dtype=torch.float32) for n in out.shape[1:])
    (ax, ay, az), (ox, oy, oz) = linear.tolist(), origin.tolist()
    low, high = reach(linear, out.shape[1:])
    spills = ((origin + low < _NEAR) | (origin + high > np.array([planes, height, width]) - 1 - _NEAR)).tolist()
    step = max(1, _CHUNK // (len(y) * len(z)))
    for at in range(0, len(x), step):
        part = x[at : at + step]
        plane = _coordinate(ax, ox, part, y, z)
        if spills[0]:
            plane.clamp_(0.0, planes - 1.0)
        below = plane.floor()
        if spills[0]:
            below.clamp_(max=planes - 2.0)
        share = plane.sub_(below)
        grid = torch.empty(2, len(part), len(y), len(z))
        if spills[1]:
            row = _coordinate(ay, oy, part, y, z).clamp_(0.0, height - 1.0).mul_(rows).sub_(1.0)
        else:
            row = _coordinate([a * rows for a in ay], oy * rows - 1.0, part, y, z)
        torch.add(row, below, alpha=channels * height * rows, out=grid[1])
        grid[0] = _coordinate([a * columns for a in az], oz * columns - 1.0, part, y, z)
        # Overlapping views: channel k of the image is the box from its k-th plane on, and every slab sees the same.
        image = box.as_strided((len(part), 2 * channels, tall, width), (0, height * width, width, 1))
        pair = F.grid_sample(image, grid.movedim(0, -1), padding_mode="border", align_corners=True)
        target = out[:, at : at + step].transpose(0, 1)
        torch.lerp(pair[:, :channels], pair[:, channels:], share[:, None], out=target)


def nearest_patch(box: torch.Tensor, linear: np.ndarray, origin: np.ndarray, out: torch.Tensor) -> None:
    """Nearest-neighbour resampling of one patch of ids on a CPU.

    Args:
        box: (C, X, Y, Z) of integers, contiguous.
        linear: (3, 3).
        origin: (3,) in voxels of the box.
        out: (C, *patch), written.
    """
    extent = box.shape[1:]
    # An index into the flat box must be exact: float32 holds whole numbers up to 2^24.
    dtype = torch.float32 if box[0].numel() < 2**24 else torch.float64
    x, y, z = (torch.arange(n, dtype=dtype) for n in out.shape[1:])
    low, high = reach(linear, out.shape[1:])
    spills = ((origin + low < -0.5 + _NEAR) | (origin + high > np.array(extent) - 0.5 - _NEAR)).tolist()
    step = max(1, _CHUNK // (len(y) * len(z)))
    for at in range(0, len(x), step):
        index = None
        for row, first, size, spill in zip(linear.tolist(), origin.tolist(), extent, spills, strict=True):
            near = _coordinate(row, first, x[at : at + step], y, z).round_()
            if spill:
                near.clamp_(0.0, size - 1.0)
            index = near if index is None else index.mul_(size).add_(near)
        assert index is not None
        flat = index.to(torch.int32 if index.dtype == torch.float32 else torch.int64).view(-1)
        for c in range(len(box)):
            out[c, at : at + step] = box[c].view(-1).index_select(0, flat).view(index.shape)


def batch_grid(linear: torch.Tensor, origin: torch.Tensor, patch: Sequence[int], box: Sequence[int]) -> torch.Tensor:
    """Sampling grid (B, *patch, 3) for :func:`torch.nn.functional.grid_sample` with aligned corners.

    Outer sums and not ``affine_grid``: that is a matrix product, which TF32 or autocast would round to a tenth of a
    voxel.

    Args:
        linear: (B, 3, 3) float32 on the device.
        origin: (B, 3) in voxels of the boxes.
        patch: extents of the output.
        box: extents of the boxes.
    """
    axes = [torch.arange(n, device=linear.device, dtype=torch.float32) for n in patch]
    coordinates = []
    for i in (2, 1, 0):  # grid_sample wants the last axis first
        ax, ay, az = linear[:, i].unbind(1)
        line = ax[:, None] * axes[0] + origin[:, i, None]
        plane = (ay[:, None] * axes[1])[:, :, None] + (az[:, None] * axes[2])[:, None]
        coordinates.append((line[:, :, None, None] + plane[:, None]).mul_(2.0 / max(box[i] - 1, 1)).sub_(1.0))
    return torch.stack(coordinates, dim=-1)
