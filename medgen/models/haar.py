"""The three-dimensional Haar wavelet as a change of resolution: orthonormal, so that its transpose inverts it."""

import torch

_HALF = 0.5**0.5


def analyse(x: torch.Tensor) -> torch.Tensor:
    """One level of the Haar transform.

    Along each axis neighbouring voxels a, b become (a + b) / sqrt 2 and (a - b) / sqrt 2 (Haar 1910; Mallat 1989).

    Args:
        x: (B, C, X, Y, Z), even extents.

    Returns:
        (B, 8 C, X / 2, Y / 2, Z / 2): first the C low-pass channels, then the seven detail bands.
    """
    for axis in (2, 3, 4):
        even, odd = x.unflatten(axis, (-1, 2)).unbind(axis + 1)
        x = torch.cat([even + odd, even - odd], dim=1) * _HALF
    return x


def synthesise(bands: torch.Tensor) -> torch.Tensor:
    """The inverse of :func:`analyse`: (B, 8 C, x, y, z) to (B, C, 2 x, 2 y, 2 z)."""
    for axis in (4, 3, 2):
        low, high = (bands * _HALF).chunk(2, dim=1)
        bands = torch.stack([low + high, low - high], dim=axis + 1).flatten(axis, axis + 1)
    return bands
