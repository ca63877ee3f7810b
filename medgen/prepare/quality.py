"""Figures that say whether a case is odd, and which cases are odd beside the others."""

from collections.abc import Mapping, Sequence

import numpy as np

OUTLIER_Z = 3.5
_MIN_CASES = 5


def noise_level(image: np.ndarray, mask: np.ndarray) -> float:
    """Standard deviation of the noise, from pseudo-residuals: a voxel less the mean of its six neighbours.

    The median absolute deviation keeps edges from counting as noise.

    Reference:
        Gasser et al. 1986, Biometrika 73(3); in 3D: Coupé et al. 2008, IEEE TMI 27(4), eq. 8.
    """
    if min(image.shape) < 3:
        return float("nan")
    v = image.astype(np.float32)
    centre = v[1:-1, 1:-1, 1:-1]
    around = v[2:, 1:-1, 1:-1] + v[:-2, 1:-1, 1:-1] + v[1:-1, 2:, 1:-1] + v[1:-1, :-2, 1:-1]
    around = around + v[1:-1, 1:-1, 2:] + v[1:-1, 1:-1, :-2]
    residual = (np.sqrt(6.0 / 7.0) * (centre - around / 6.0))[mask[1:-1, 1:-1, 1:-1]]
    if not residual.size:
        return float("nan")
    return 1.4826 * float(np.median(np.abs(residual - np.median(residual))))


def signal_to_noise(image: np.ndarray, mask: np.ndarray, background: float) -> float | None:
    """Mean of the foreground above the background over :func:`noise_level`; None where there is no noise."""
    noise = noise_level(image, mask)
    return float((image[mask].mean() - background) / noise) if noise > 0 else None


def robust_z(values: Sequence[float | None]) -> list[float | None]:
    """Modified z-scores, 0.6745 (x - median) / MAD; None where a value is missing or all agree.

    Reference:
        Iglewicz and Hoaglin 1993, "How to detect and handle outliers".
    """
    known = np.array([v for v in values if v is not None], dtype=float)
    if known.size < _MIN_CASES:
        return [None] * len(values)
    median = float(np.median(known))
    mad = float(np.median(np.abs(known - median)))
    return [None if v is None or mad == 0 else 0.6745 * (v - median) / mad for v in values]


def flag_outliers(rows: Sequence[Mapping[str, float | None]]) -> list[dict[str, float]]:
    """For each case, the figures whose robust z across the cohort exceeds ``OUTLIER_Z``, with that z."""
    flags: list[dict[str, float]] = [{} for _ in rows]
    for name in sorted({key for row in rows for key in row}):
        for flag, z in zip(flags, robust_z([row.get(name) for row in rows]), strict=True):
            if z is not None and abs(z) > OUTLIER_Z:
                flag[name] = round(z, 2)
    return flags
