"""How sharp an image is, and at which frequencies it holds power."""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage


def laplacian_variance(image: np.ndarray, inside: np.ndarray | None = None) -> float:
    """Variance of the discrete Laplacian (six neighbours): large for sharp images and for noisy ones.

    Args:
        image: (C, X, Y, Z); the mean over channels is returned.
        inside: (X, Y, Z) bool, voxels that count, without those whose neighbours are not inside; None leaves out the
            outermost layer only. White noise of variance s^2 gives 42 s^2.

    Reference:
        Pech-Pacheco et al. (2000), doi:10.1109/ICPR.2000.903548.
    """
    counted = np.ones(image.shape[1:], bool) if inside is None else np.asarray(inside, bool)
    # Outside of the grid counts as not inside.
    counted = ndimage.binary_erosion(counted, border_value=0)
    assert counted.any(), "no voxel has all its neighbours inside"
    return float(np.mean([ndimage.laplace(np.asarray(c, np.float64))[counted].var() for c in image]))


def content(image: np.ndarray, dark: float = -0.95, margin: int = 2) -> np.ndarray:
    """Where an image holds something: (X, Y, Z) bool, without padding and the step from it.

    Crops and skull-stripped brains end in a step that is larger than any of their details, and nothing of how sharp
    they are. What is dark within the content belongs to it.

    Args:
        image: (C, X, Y, Z) in [-1, 1], padding at -1.
        dark: what is above it in any channel is content, specks of a few voxels aside.
        margin: layers of voxels that are left out along the content's border.
    """
    around = 4  # so that content at the border of the grid is closed like any other
    filled = np.pad((np.asarray(image) > dark).any(axis=0), around)
    filled = ndimage.binary_opening(ndimage.binary_closing(filled, iterations=3), iterations=2)
    filled = ndimage.binary_fill_holes(filled)[(slice(around, -around),) * 3]
    return np.asarray(ndimage.binary_erosion(filled, iterations=margin, border_value=1))


@dataclass(frozen=True, eq=False)
class Spectrum:
    """Power by frequency.

    Attributes:
        frequency: (K,) mean frequency of each shell, in cycles per voxel, above 0 up to 0.5.
        power: (K,) mean of |FFT|^2 per voxel over the shell: white noise of variance s^2 gives s^2 in every shell.
    """

    frequency: np.ndarray
    power: np.ndarray


def kept_frequency(made: Spectrum, real: Spectrum, share: float = 0.5) -> float:
    """Frequency up to which an image keeps a share of another's power, in cycles per voxel, 0.5 where it keeps all.

    Power falls off with frequency in one way or another for every codec; where it first falls below the share is found
    between the two shells by a straight line.

    Args:
        made: of a reconstruction.
        real: of what was reconstructed, over the same shells.
        share: of the power.
    """
    ratio = made.power / np.maximum(real.power, 1e-30)
    lost = np.flatnonzero(ratio < share)
    if not len(lost):
        return 0.5
    k = int(lost[0])
    if k == 0:
        return float(made.frequency[0])
    (a, b), (fa, fb) = ratio[k - 1 : k + 1], made.frequency[k - 1 : k + 1]
    return float(fa + (fb - fa) * (a - share) / (a - b))


def radial_spectrum(image: np.ndarray, bins: int = 16, window: bool = True) -> Spectrum:
    """Power spectrum of an image (C, X, Y, Z) averaged over directions and channels.

    Args:
        image: real-valued.
        bins: shells of equal width between 0 and 0.5 cycles per voxel; those that hold no frequency are left out.
            Corners beyond 0.5 and the mean are not counted.
        window: taper with a Hann window, so that the borders' jump, which is none of the image, puts no power
            everywhere.
    """
    extent = image.shape[1:]
    taper = np.ones(extent)
    if window:
        for axis, n in enumerate(extent):
            shape = [n if a == axis else 1 for a in range(3)]
            taper = taper * np.hanning(n + 2)[1:-1].reshape(shape)
    grids = np.meshgrid(*(np.fft.fftfreq(n) for n in extent), indexing="ij", sparse=True)
    radius = np.sqrt(sum(g**2 for g in grids)).ravel()
    shell = np.where((radius > 0) & (radius <= 0.5), np.ceil(radius * 2 * bins).astype(int), 0)
    data = np.asarray(image, np.float64)
    data = (data - data.mean(axis=(1, 2, 3), keepdims=True)) * taper
    power = (np.abs(np.fft.fftn(data, axes=(1, 2, 3))) ** 2).mean(axis=0).ravel() / np.sum(taper**2)
    counts = np.bincount(shell, minlength=bins + 1)[1:]
    there = counts > 0

    def mean(values: np.ndarray) -> np.ndarray:
        return np.bincount(shell, values, minlength=bins + 1)[1:][there] / counts[there]

    return Spectrum(mean(radius), mean(power))
