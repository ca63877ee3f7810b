"""Robust intensities: one linear map a channel of a case onto [-1, 1], and back to the scanner's units."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from medgen.errors import InputError
from medgen.prepare.foreground import Foreground

_BELOW_DEPTH = 0.05
_DARKEST_TISSUE = -0.98
_BACKGROUND_UP_TO = -0.99


@dataclass(frozen=True)
class IntensityRecord:
    """The map of one channel: ``lo`` becomes -1 and ``hi`` becomes 1; what lies beyond is clipped.

    Attributes:
        lo: intensity that becomes -1.
        hi: intensity that becomes 1.
        integer: the channel's values were integers.
        background: constant outside a skull-stripped foreground, which becomes exactly -1; None without one.
        clipped_low: share of the foreground that lay below ``lo``.
        clipped_high: share of the foreground that lay above ``hi``.
        n4: whether a bias field was divided out before (that is not undone).
        borrowed: the case has no such channel; the figures are the cohort's medians, for generated images.
    """

    lo: float
    hi: float
    integer: bool
    background: float | None = None
    clipped_low: float = 0.0
    clipped_high: float = 0.0
    n4: bool = False
    borrowed: bool = False

    @property
    def _background_is_apart(self) -> bool:
        """Whether the background lies among the tissues' intensities, so that -1 is kept for it alone."""
        return self.background is not None and self.background != self.lo

    def apply(self, image: np.ndarray) -> np.ndarray:
        """Intensities as float32 in [-1, 1]; the background constant is exactly -1."""
        scaled = (image.astype(np.float64) - self.lo) * (2.0 / (self.hi - self.lo)) - 1.0
        out = np.clip(scaled, _DARKEST_TISSUE if self._background_is_apart else -1.0, 1.0).astype(np.float32)
        if self.background is not None:
            out[image == self.background] = -1.0
        return out

    def invert(self, prepared: np.ndarray) -> np.ndarray:
        """Values in [-1, 1] as intensities: float32, or uint8, int16 or int32 where they were integers."""
        units = (np.asarray(prepared, dtype=np.float64) + 1.0) * ((self.hi - self.lo) / 2.0) + self.lo
        if self._background_is_apart:
            units[np.asarray(prepared) <= _BACKGROUND_UP_TO] = self.background
        if not self.integer:
            return units.astype(np.float32)
        ends = [v for v in (self.lo, self.hi, self.background) if v is not None]
        for kind in (np.uint8, np.int16):
            info = np.iinfo(kind)
            if min(ends) >= info.min and max(ends) <= info.max:
                return np.clip(np.rint(units), info.min, info.max).astype(kind)
        return np.rint(units).astype(np.int32)

    def to_json(self) -> dict[str, Any]:
        """As plain JSON."""
        return asdict(self)

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> "IntensityRecord":
        """From what :meth:`to_json` gave."""
        return IntensityRecord(**value)


def fit_intensity(
    image: np.ndarray,
    foreground: Foreground,
    percentiles: tuple[float, float],
    *,
    said_in: str,
    n4: bool = False,
) -> IntensityRecord:
    """Choose the map of one channel (X, Y, Z).

    ``hi`` is the upper percentile of the foreground. ``lo`` is the background's constant where there is one, so that
    edges fade into it and ringing below it (skull-stripped images that were interpolated) is clipped; but the
    foreground's lower percentile where much of the foreground lies below that constant (images standardised to mean
    zero; then ``lo`` is a little less than that, so that -1 stays the background's alone). Where the background is
    air, ``lo`` is the lower percentile of the whole image, since Otsu's foreground leaves out dark tissue.

    Args:
        image: intensities.
        foreground: of this image.
        percentiles: lower and upper, 0 to 100.
        said_in: the file, for the message.
        n4: recorded.

    Raises:
        InputError: the image is constant.
    """
    inside = image[foreground.mask]
    low, high = (float(v) for v in np.percentile(inside, percentiles))
    background = foreground.background
    if background is not None:
        deep = background - float(np.percentile(inside, 1.0))
        lo = background
        if deep > _BELOW_DEPTH * max(high - background, 0.0):
            lo = low - (high - low) * (1.0 + _DARKEST_TISSUE) / (1.0 - _DARKEST_TISSUE)
    elif foreground.kind == "all":
        lo = low
    else:
        lo = float(np.percentile(image, percentiles[0]))
    if not high > lo:
        low, high = float(inside.min()), float(inside.max())
        lo = min(lo, low)
    if not high > lo:
        raise InputError(f"{said_in} is constant in its foreground; replace the image or leave the case out")
    return IntensityRecord(
        lo=lo,
        hi=high,
        integer=bool((image == np.rint(image)).all()),
        background=background,
        clipped_low=float((inside < lo).mean()),
        clipped_high=float((inside > high).mean()),
        n4=n4,
    )
