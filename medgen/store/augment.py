"""Augmentation in two halves: parameters are drawn on the CPU, then applied deterministically.

Everything geometric (flips, rotation, zoom, shift) of a patch is one affine map from its voxels to those of the
volume, so a patch is resampled at most once, and not at all where only a flip was drawn. What a draw holds depends on
the generator alone, never on the device.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch

NOISE_BANK = 2**22


@dataclass(frozen=True)
class Augmentation:
    """What may happen to a patch; the defaults do nothing.

    Attributes:
        flip: axes (0 to 2) mirrored with a chance of one half each. Leave out the left-right axis of a cohort whose
            structures all lie on one side.
        rotate_degrees: largest turn about each axis, either way.
        scale: largest zoom of each axis: a factor between 1 / (1 + scale) and 1 + scale, uniform in its logarithm.
        translate_voxels: largest shift along each axis; positions are random already, so this matters below a voxel.
        intensity_scale: images are multiplied by 1 + u with abs(u) at most this, per channel.
        intensity_shift: images get up to this added or subtracted, per channel, in units of [-1, 1].
        gamma: images, mapped to [0, 1], are raised to a power between 1 / (1 + gamma) and 1 + gamma, per channel.
        noise: largest standard deviation of added Gaussian noise, in units of [-1, 1].
        chance: with which a patch gets each of: the affine, scale and shift of intensities, gamma, noise.
        spacing_mm: of a voxel, so that a turn is rigid where voxels are not cubes.
    """

    flip: tuple[int, ...] = ()
    rotate_degrees: tuple[float, float, float] = (0.0, 0.0, 0.0)
    scale: float = 0.0
    translate_voxels: float = 0.0
    intensity_scale: float = 0.0
    intensity_shift: float = 0.0
    gamma: float = 0.0
    noise: float = 0.0
    chance: float = 1.0
    spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0)

    @property
    def warps(self) -> bool:
        """Whether patches can need resampling."""
        return any(self.rotate_degrees) or self.scale > 0 or self.translate_voxels > 0

    @property
    def recolours(self) -> bool:
        """Whether intensities change."""
        return any((self.intensity_scale, self.intensity_shift, self.gamma, self.noise))


@dataclass(frozen=True)
class Draws:
    """The parameters of one batch, B patches of images with C channels.

    A patch's voxel at offset o from its centre takes the volume's value at ``linear @ o + shift`` from that centre.

    Attributes:
        flips: (B, 3) whether an axis is mirrored.
        warped: (B,) whether the patch needs resampling; where not, ``linear`` is the flip and ``shift`` is 0.
        linear: (B, 3, 3), flips included.
        shift: (B, 3) voxels.
        gain: (B, C) factor of intensities.
        offset: (B, C) added after the factor.
        exponent: (B, C) gamma.
        noise: (B, C) standard deviations.
        window: (B, C) where in the noise bank a patch's noise starts, as a share of the room there is.
    """

    flips: np.ndarray
    warped: np.ndarray
    linear: np.ndarray
    shift: np.ndarray
    gain: np.ndarray
    offset: np.ndarray
    exponent: np.ndarray
    noise: np.ndarray
    window: np.ndarray

    def channels(self, first: int, count: int) -> "Draws":
        """The draws of some of the channels."""
        names = ("gain", "offset", "exponent", "noise", "window")
        return replace(self, **{name: getattr(self, name)[:, first : first + count] for name in names})


def draw(augmentation: Augmentation, rng: np.random.Generator, batch: int, channels: int) -> Draws:
    """Parameters for a batch. Every option has its own numbers, so switching one on changes no other's draws."""
    a = augmentation
    geometry = rng.random((batch, 16))
    colour = rng.random((batch, channels, 5))
    happens = geometry[:, 3:7] < a.chance
    signed = 2 * geometry[:, 7:] - 1
    flips = (geometry[:, :3] < 0.5) & np.isin(np.arange(3), a.flip)
    mirror = np.where(flips, -1.0, 1.0)
    warped = happens[:, 0] & a.warps
    turns = rotations(signed[:, :3] * np.deg2rad(a.rotate_degrees))
    spacing = np.asarray(a.spacing_mm)
    zoom = np.exp(signed[:, 3:6] * np.log1p(a.scale))
    linear = turns * (spacing / spacing[:, None]) / zoom[:, None, :]
    linear = np.where(warped[:, None, None], linear, np.eye(3)) * mirror[:, None, :]
    shift = np.where(warped[:, None], signed[:, 6:9] * a.translate_voxels, 0.0)
    either_way = 2 * colour - 1
    levels, gamma, noisy = (happens[:, k : k + 1] for k in (1, 2, 3))
    return Draws(
        flips,
        warped,
        linear,
        shift,
        gain=np.where(levels, 1 + either_way[..., 0] * a.intensity_scale, 1.0),
        offset=np.where(levels, either_way[..., 1] * a.intensity_shift, 0.0),
        exponent=np.where(gamma & (a.gamma > 0), np.exp(either_way[..., 2] * np.log1p(a.gamma)), 1.0),
        noise=np.where(noisy, colour[..., 3] * a.noise, 0.0),
        window=colour[..., 4],
    )


def rotations(angles: np.ndarray) -> np.ndarray:
    """Rotation matrices (B, 3, 3) of angles (B, 3) in radians about the axes 0, 1 and 2, applied in that order."""
    (cx, cy, cz), (sx, sy, sz) = np.cos(angles).T, np.sin(angles).T
    rows = [
        [cz * cy, cz * sy * sx - sz * cx, cz * sy * cx + sz * sx],
        [sz * cy, sz * sy * sx + cz * cx, sz * sy * cx - cz * sx],
        [-sy, cy * sx, cy * cx],
    ]
    return np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)


class NoiseBank:
    """Standard normal numbers drawn once; a patch's noise is a random window of them.

    Drawing fresh numbers costs a CPU more than resampling the patch, and gives other numbers on every kind of device.
    A window starts at any of millions of places, so a network cannot come to know the noise.

    Args:
        seed: of the experiment.
        voxels: of a patch.
        device: where patches are.
    """

    def __init__(self, seed: int, voxels: int, device: torch.device) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.values = torch.randn(max(NOISE_BANK, 8 * voxels), generator=generator).to(device)
        self.voxels = voxels

    def starts(self, window: np.ndarray) -> np.ndarray:
        """First number of each window."""
        return (window * (len(self.values) - self.voxels)).astype(np.int64)


def recolour_patch(patch: torch.Tensor, draws: Draws, b: int, bank: NoiseBank | None) -> None:
    """Change the intensities of one patch (C, X, Y, Z) in place: what a CPU does while the patch is in its cache."""
    for c, channel in enumerate(patch):
        exponent, gain, offset = float(draws.exponent[b, c]), float(draws.gain[b, c]), float(draws.offset[b, c])
        if exponent != 1.0:
            channel.add_(1.0).mul_(0.5).clamp_(0.0, 1.0).pow_(exponent)
            gain, offset = 2.0 * gain, offset - gain
        if gain != 1.0:
            channel.mul_(gain)
        if offset != 0.0:
            channel.add_(offset)
        if bank is not None and draws.noise[b, c] > 0:
            start = int(bank.starts(draws.window[b, c]))
            noise = bank.values[start : start + bank.voxels].view(channel.shape)
            channel.add_(noise, alpha=float(draws.noise[b, c]))


def recolour_batch(
    patches: torch.Tensor, levels: torch.Tensor, starts: torch.Tensor, bank: NoiseBank | None, *, gamma: bool
) -> torch.Tensor:
    """The same for a whole batch (B, C, X, Y, Z), on an accelerator.

    Args:
        patches: in [-1, 1].
        levels: (4, B, C) gain, offset, exponent and noise of :class:`Draws`, on the device.
        starts: (B, C) of the noise windows, on the device.
        bank: None where no noise is asked for.
        gamma: whether any exponent can differ from 1.
    """
    gain, offset, exponent, noise = levels[..., None, None, None].unbind(0)
    if gamma:
        curved = patches.add(1.0).mul_(0.5).clamp_(0.0, 1.0).pow_(exponent).mul_(2.0).sub_(1.0)
        patches = torch.where(exponent == 1.0, patches, curved)
    patches = torch.addcmul(offset, patches, gain)
    if bank is not None:
        windows = bank.values.unfold(0, bank.voxels, 1)[starts].view(patches.shape)
        patches = patches.addcmul_(windows, noise)
    return patches
