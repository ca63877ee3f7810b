"""Figures of images, against independent implementations and closed forms."""

import itertools

import numpy as np
import pytest
from scipy import ndimage

from medgen.measure.msssim import WEIGHTS, ms_ssim, pairwise_ms_ssim, scales
from medgen.measure.sharpness import Spectrum, content, kept_frequency, laplacian_variance, radial_spectrum

RNG = np.random.default_rng(0)


def ms_ssim_by_scipy(a, b, levels, window=7, sigma=1.5, data_range=2.0):
    """Wang et al. (2003) on numpy and scipy."""
    r = window // 2
    g = np.exp(-(np.arange(-r, r + 1) ** 2) / (2 * sigma**2))
    g /= g.sum()

    def blur(v):
        for axis in range(3):
            v = ndimage.correlate1d(v, g, axis)
        return v[r:-r, r:-r, r:-r]

    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    weights, total = np.array(WEIGHTS[:levels]) / sum(WEIGHTS[:levels]), 1.0
    for level in range(levels):
        ma, mb = blur(a), blur(b)
        va, vb, cov = blur(a * a) - ma**2, blur(b * b) - mb**2, blur(a * b) - ma * mb
        cs = (2 * cov + c2) / (va + vb + c2)
        luminance = (2 * ma * mb + c1) / (ma**2 + mb**2 + c1)
        term = (cs * luminance if level == levels - 1 else cs).mean()
        total *= max(term, 0.0) ** weights[level]
        even = tuple(slice(n - n % 2) for n in a.shape)
        halves = [n for m in a.shape for n in (m // 2, 2)]
        a, b = (v[even].reshape(halves).mean(axis=(1, 3, 5)) for v in (a, b))
    return total


@pytest.mark.parametrize(("extent", "levels"), [((28, 32, 36), 3), ((14, 16, 20), 2), ((8, 10, 12), 1)])
def test_ms_ssim_equals_an_implementation_on_scipy(extent, levels):
    a = ndimage.gaussian_filter(RNG.normal(size=extent), 2) * 8
    b = a + RNG.normal(0, 0.2, extent)
    assert scales(extent) == levels
    assert ms_ssim(a[None], b[None]) == pytest.approx(ms_ssim_by_scipy(a, b, levels), abs=2e-4)
    assert ms_ssim(a[None], a[None]) == pytest.approx(1, abs=1e-5)


def test_ms_ssim_of_any_extent_is_defined():
    assert scales((112, 160, 128)) == 5 and scales((40, 56, 40)) == 3
    for extent in ((3, 9, 9), (6, 6, 6), (5, 20, 20), (13, 13, 13)):
        a, b = RNG.uniform(-1, 1, (2, 2, *extent))
        assert 0 <= ms_ssim(a, b) < 0.9
    a = RNG.uniform(-1, 1, (1, 28, 28, 28))
    assert ms_ssim(a, -a) == 0  # negative at a scale: no likeness, not NaN


def test_pairwise_ms_ssim_tells_alike_from_diverse():
    base = ndimage.gaussian_filter(RNG.normal(size=(1, 14, 14, 14)), (0, 2, 2, 2)) * 8
    alike = [base + RNG.normal(0, 0.05, base.shape) for _ in range(4)]
    diverse = list(RNG.uniform(-1, 1, (4, *base.shape)))
    assert len(pairwise_ms_ssim(alike)) == 6 and len(pairwise_ms_ssim(alike, pairs=4)) == 4
    assert pairwise_ms_ssim(diverse).mean() < 0.6 < 0.9 < pairwise_ms_ssim(alike).mean()


def test_laplacian_variance_closed_forms():
    x, y, z = np.meshgrid(*(np.arange(20.0),) * 3, indexing="ij")
    assert laplacian_variance((3 * x**2 - y * z + 7)[None]) == pytest.approx(0, abs=1e-12)
    noise = RNG.normal(0, 0.5, (2, 48, 48, 48))
    assert laplacian_variance(noise) == pytest.approx(42 * 0.25, rel=0.03)
    # A plane wave is an eigenvector: 2 (cos k - 1).
    wave = np.cos(2 * np.pi * x / 4)[None]
    inner = np.cos(2 * np.pi * np.arange(1, 19) / 4).var()
    assert laplacian_variance(wave) == pytest.approx(4 * inner)


def test_padding_does_not_count_as_sharpness():
    padded = np.full((1, 20, 20, 20), -1.0)
    padded[:, 4:16, 4:16, 4:16] = 0.5
    inside = padded[0] > 0
    assert laplacian_variance(padded) > 0.1 and laplacian_variance(padded, inside) == 0


def test_content_is_a_crop_without_its_border_whatever_is_dark_in_it():
    image = np.full((2, 24, 24, 24), -1.0)
    image[0, :, 5:20, 5:20] = 0.3  # reaches the grid's ends along the first axis
    image[0, 10:14, 10:14, 10:14] = -1.0
    image[1, 1, 1, 1] = 0.9  # a speck
    expected = np.zeros((24, 24, 24), bool)
    expected[:, 7:18, 7:18] = True
    found = content(image)
    assert not (found & ~expected).any() and found.sum() > 0.9 * expected.sum()  # its edges are rounded
    assert found[0, 12, 12] and found[12, 12, 12] and not found[1, 1, 1]
    assert not content(np.full((1, 16, 16, 16), -1.0)).any()
    # The step at the end of a crop is left out, texture within it is not.
    image[0, 10:14, 10:14, 10:14] = 0.3
    assert laplacian_variance(image[:1], content(image[:1])) == pytest.approx(0, abs=1e-12)
    image[0, :, 5:20, 5:20] += RNG.normal(0, 0.1, (24, 15, 15))
    assert laplacian_variance(image[:1], content(image[:1])) == pytest.approx(42 * 0.01, rel=0.15)


def test_white_noise_has_a_flat_spectrum_at_its_variance():
    noise = RNG.normal(0, 0.7, (3, 32, 40, 36))
    for window in (True, False):
        found = radial_spectrum(noise, 12, window)
        assert found.power[2:] == pytest.approx(np.full(10, 0.49), rel=0.35)  # the first shells hold few waves
        assert found.power[-6:] == pytest.approx(np.full(6, 0.49), rel=0.12)


def test_a_wave_stands_in_its_shell_and_blur_takes_high_frequencies():
    x = np.arange(32.0)
    wave = np.broadcast_to(np.sin(2 * np.pi * x * 6 / 32)[:, None, None], (32, 32, 32))[None]
    found = radial_spectrum(wave, 16, window=False)
    assert found.frequency[found.power.argmax()] == pytest.approx(6 / 32, abs=1 / 32)
    assert np.delete(found.power, found.power.argmax()).max() < 1e-12
    noise = RNG.normal(size=(1, 32, 32, 32))
    blurred = ndimage.gaussian_filter(noise, (0, 1.5, 1.5, 1.5), mode="wrap")
    ratio = radial_spectrum(blurred, 8, window=False).power / radial_spectrum(noise, 8, window=False).power
    frequency = radial_spectrum(noise, 8, window=False).frequency
    # A Gaussian's transfer function, squared.
    assert ratio[:3] == pytest.approx(np.exp(-((2 * np.pi * frequency * 1.5) ** 2))[:3], rel=0.35)
    assert (np.diff(ratio) < 0).all()


def test_the_spectrum_holds_all_power_below_half_a_cycle():
    image = ndimage.gaussian_filter(RNG.normal(size=(1, 32, 32, 32)), (0, 2, 2, 2), mode="wrap")
    transform = np.abs(np.fft.fftn(image[0])) ** 2 / image[0].size
    radius = np.sqrt(sum(g**2 for g in np.meshgrid(*(np.fft.fftfreq(32),) * 3, indexing="ij")))
    edges = np.arange(17) / 32
    expected = [transform[(radius > low) & (radius <= high)].mean() for low, high in itertools.pairwise(edges)]
    assert radial_spectrum(image, 16, window=False).power == pytest.approx(expected)


def test_the_frequency_that_a_blur_keeps_is_that_of_its_closed_form():
    noise = np.random.default_rng(3).normal(size=(1, 64, 64, 64))
    real = radial_spectrum(noise, window=False)
    assert kept_frequency(real, real) == 0.5
    for sigma in (0.7, 1.0, 2.0):
        blurred = np.stack([ndimage.gaussian_filter(noise[0], sigma, mode="wrap", truncate=6)])
        found = kept_frequency(radial_spectrum(blurred, window=False), real)
        # A Gaussian leaves exp(-(2 pi sigma f)^2) of the power.
        assert found == pytest.approx(np.sqrt(np.log(2)) / (2 * np.pi * sigma), abs=0.012)
    nothing = Spectrum(real.frequency, np.zeros_like(real.power))
    assert kept_frequency(nothing, real) == real.frequency[0]
