"""Which voxels are body: given by a mask, or estimated."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import SimpleITK as sitk  # noqa: N813
from scipy import ndimage

Kind = Literal["mask", "stripped", "otsu", "all"]

_STRIPPED_SHARE = 0.05
_FAINT = 0.02
_FAINT_SHARE = 0.10
_AIR_CONTRAST = 0.15
_AIR_BORDER_SHARE = 0.3
_SPECK_SHARE = 0.01


@dataclass(frozen=True, eq=False)
class Foreground:
    """The foreground of one image.

    Attributes:
        mask: (X, Y, Z) bool.
        kind: "mask" was given; "stripped": outside, the image holds one constant (skull-stripped); "otsu":
            separated from dark air; "all": no background was found (a crop inside the body).
        background: the constant outside, where there is one.
    """

    mask: np.ndarray
    kind: Kind
    background: float | None = None

    @property
    def share(self) -> float:
        """Of all voxels."""
        return float(self.mask.mean())


def find_foreground(image: np.ndarray, mask: np.ndarray | None = None) -> Foreground:
    """Estimate the foreground of one image (X, Y, Z), or take the given mask (X, Y, Z), non-zero inside.

    A constant that fills the corners, with hardly anything faint beside it, is the background of a skull-stripped
    image. Otherwise Otsu's threshold separates air, if what lies below it is dark and lies at the border. Else the
    whole image is foreground.
    """
    if mask is not None and (mask != 0).any():
        inside = mask != 0
        outside = image[~inside]
        constant = float(outside.flat[0]) if outside.size and (outside == outside.flat[0]).all() else None
        return Foreground(inside, "mask", constant)
    background = _corner_value(image)
    other = image != background
    share = 1.0 - float(other.mean())
    if share >= _STRIPPED_SHARE and other.any():
        distance = np.abs(image[other] - background)
        if float((distance < _FAINT * np.percentile(distance, 99)).mean()) < _FAINT_SHARE:
            return Foreground(other, "stripped", background)
    threshold = _otsu(image)
    above = image > threshold
    if above.any() and not above.all():
        floor = float(np.percentile(image, 0.1))
        dark, bright = float(np.median(image[~above])) - floor, float(np.median(image[above])) - floor
        if dark < _AIR_CONTRAST * bright and _border_share(~above) >= _AIR_BORDER_SHARE:
            return Foreground(without_specks(above), "otsu")
    return Foreground(np.ones(image.shape, dtype=bool), "all")


def _corner_value(image: np.ndarray) -> float:
    corners = image[:: max(image.shape[0] - 1, 1), :: max(image.shape[1] - 1, 1), :: max(image.shape[2] - 1, 1)]
    values, counts = np.unique(corners, return_counts=True)
    return float(values[counts.argmax()])


def _otsu(image: np.ndarray) -> float:
    top = float(np.percentile(image, 99.5))
    clipped = np.minimum(image, top).astype(np.float32)
    found = sitk.OtsuThresholdImageFilter()
    found.SetNumberOfHistogramBins(256)
    found.Execute(sitk.GetImageFromArray(clipped))
    return float(found.GetThreshold())


def _border_share(mask: np.ndarray) -> float:
    faces = [np.take(mask, i, axis=axis).ravel() for axis in range(3) for i in (0, -1)]
    return float(np.concatenate(faces).mean())


def without_specks(mask: np.ndarray) -> np.ndarray:
    """The mask without components below 1% of the largest."""
    labels, count = ndimage.label(mask)
    if count <= 1:
        return mask
    sizes = np.bincount(labels.ravel(), minlength=count + 1)
    sizes[0] = 0
    return (sizes >= _SPECK_SHARE * sizes.max())[labels]
