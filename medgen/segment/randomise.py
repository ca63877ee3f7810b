"""Images of random contrast made from label maps alone: domain randomisation, drawn fresh at every step.

A segmenter that has seen every contrast looks at shapes. Everything drawn is keyed by (seed, step) and comes from the
CPU, so that a resumed training sees what an uninterrupted one saw. No voxel of a real image enters.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

_WIDEST = 4  # voxels that the blurring kernel reaches to each side; 2.6 deviations of the widest blur


@dataclass(frozen=True)
class Randomisation:
    """What images are made of; ranges are uniform, intensities in units of [0, 1].

    Attributes:
        deviation: largest standard deviation of the intensities within a region.
        blobs: most regions that the background falls into, each with an intensity of its own.
        blob_voxels: smallest and largest extent of such regions, roughly.
        blur_voxels: largest standard deviation of the blur along each axis: partial volumes and coarse resolution.
        bias: largest standard deviation of the logarithm of the bias field.
        bias_points: of the bias field along each axis.
        gamma: standard deviation of the logarithm of the exponent.
        noise: largest standard deviation of the noise of the finished image.

    Reference:
        Billot et al. (2023), SynthSeg, Medical Image Analysis 86, sections 3.1 and 4.2.
    """

    deviation: float = 0.15
    blobs: int = 6
    blob_voxels: tuple[int, int] = (6, 24)
    blur_voxels: float = 1.5
    bias: float = 0.3
    bias_points: int = 4
    gamma: float = 0.4
    noise: float = 0.05


def randomise(
    label: torch.Tensor, labels: int, channels: int, options: Randomisation, *, seed: int, step: int
) -> torch.Tensor:
    """Images for a batch of label maps.

    Args:
        label: ids (B, X, Y, Z); -1 counts as background.
        labels: ids with background.
        channels: of the images, each with intensities of its own.
        options: what images are made of.
        seed: of the training.
        step: of the training.

    Returns:
        (B, channels, X, Y, Z) float32 in [-1, 1], on the labels' device; the labels stay as they are.
    """
    batch, extent, device = len(label), tuple(label.shape[1:]), label.device
    rng = torch.Generator().manual_seed((seed * 1_000_003 + step) % 2**63)

    def uniform(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=rng).to(device)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=rng).to(device)

    blob = _blobs(rng, batch, extent, options).to(device)
    region = torch.where(label > 0, label + options.blobs - 1, blob)
    count = labels - 1 + options.blobs
    flat = region.reshape(batch, 1, -1).expand(-1, channels, -1)
    mean = uniform(batch, channels, count).gather(2, flat)
    spread = (uniform(batch, channels, count) * options.deviation).gather(2, flat)
    image = (mean + spread * normal(*flat.shape)).view(batch, channels, *extent)
    image = _blurred(image, uniform(batch, 3) * options.blur_voxels)
    points = [min(options.bias_points, n) for n in extent]
    field = F.interpolate(normal(batch, channels, *points), size=extent, mode="trilinear", align_corners=True)
    image = image * torch.exp(field * (uniform(batch, channels) * options.bias)[..., None, None, None])
    low, high = image.amin(dim=(2, 3, 4), keepdim=True), image.amax(dim=(2, 3, 4), keepdim=True)
    image = ((image - low) / (high - low).clamp_min(1e-6)).clamp_(0.0, 1.0)
    image = image ** torch.exp(normal(batch, channels) * options.gamma)[..., None, None, None]
    image = image + normal(*image.shape) * (uniform(batch, channels) * options.noise)[..., None, None, None]
    return image.clamp_(0.0, 1.0).mul_(2.0).sub_(1.0)


def _blobs(rng: torch.Generator, batch: int, extent: Sequence[int], options: Randomisation) -> torch.Tensor:
    """Ids (B, X, Y, Z) from 0 to ``options.blobs`` - 1 of smooth random regions; how many and how large is drawn."""
    shapes = []
    smallest, largest = options.blob_voxels
    for _ in range(batch):
        size = int(torch.randint(smallest, largest + 1, (1,), generator=rng))
        number = int(torch.randint(1, options.blobs + 1, (1,), generator=rng))
        coarse = torch.randn(1, number, *(max(2, n // size + 1) for n in extent), generator=rng)
        smooth = F.interpolate(coarse, size=tuple(extent), mode="trilinear", align_corners=True)
        shapes.append(smooth[0].argmax(dim=0))
    return torch.stack(shapes)


def _blurred(image: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """Gaussian blur with deviations (B, 3) in voxels along each axis; below a tenth of a voxel there is none."""
    batch, channels = image.shape[:2]
    reach = torch.arange(-_WIDEST, _WIDEST + 1, device=image.device, dtype=torch.float32)
    kernels = torch.exp(-0.5 * (reach / sigma.clamp_min(0.1)[..., None]) ** 2)
    kernels = (kernels / kernels.sum(dim=-1, keepdim=True)).repeat_interleave(channels, dim=0)
    rows = image.reshape(1, batch * channels, *image.shape[2:])
    for axis in range(3):
        shape = [batch * channels, 1, 1, 1, 1]
        shape[2 + axis] = 2 * _WIDEST + 1
        # Edge values go on beyond the patch: zeros would draw a dark rim.
        amounts = [0, 0, 0, 0, 0, 0]
        amounts[2 * (2 - axis)] = amounts[2 * (2 - axis) + 1] = _WIDEST
        rows = F.conv3d(F.pad(rows, amounts, mode="replicate"), kernels[:, axis].reshape(shape), groups=len(kernels))
    return rows.view(image.shape)
