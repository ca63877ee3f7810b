"""Slices of volumes side by side, for panels and contact sheets."""

from collections.abc import Sequence

import numpy as np
from matplotlib import color_sequences

_COLOURS = (np.array(color_sequences["tab10"]) * 255).astype(np.float32)
_OVERLAY = 0.45


def slices(image: np.ndarray, label: np.ndarray | None) -> np.ndarray:
    """The three middle planes of the first channel, and again with the label laid over; (H, W, 3) uint8.

    Args:
        image: (C, X, Y, Z) in [-1, 1], RAS+: shown with the front up or to the right and the patient's left on the
            picture's left; black without channels.
        label: (X, Y, Z) ids or None.
    """
    tiles = []
    shown = image[0] if len(image) else np.full(image.shape[1:], -1.0, dtype=np.float32)
    for axis in range(3):
        # Where there is a label, its middle shows more than the grid's.
        middle = image.shape[1 + axis] // 2
        if label is not None and label.any():
            middle = int(np.median(np.nonzero(label)[axis]))
        plane = np.rot90(np.take(shown, middle, axis=axis))
        grey = np.clip((plane.astype(np.float32) + 1) * 127.5, 0, 255)
        tile = np.repeat(grey[..., None], 3, axis=2)
        tiles.append(tile)
        if label is not None:
            ids = np.rot90(np.take(label, middle, axis=axis))
            colour = _COLOURS[(ids - 1) % len(_COLOURS)]
            tiles.append(np.where((ids > 0)[..., None], (1 - _OVERLAY) * tile + _OVERLAY * colour, tile))
    height = max(t.shape[0] for t in tiles)
    padded = [
        np.pad(t, (((height - t.shape[0]) // 2, height - t.shape[0] - (height - t.shape[0]) // 2), (1, 1), (0, 0)))
        for t in tiles
    ]
    return np.concatenate(padded, axis=1).astype(np.uint8)


def rows_of_slices(cases: Sequence[tuple[np.ndarray, np.ndarray | None]]) -> np.ndarray:
    """One row of :func:`slices` a case."""
    rows = [slices(image, label) for image, label in cases]
    # A case without a label has half as many pictures as what was found in it.
    width = max(row.shape[1] for row in rows)
    return np.concatenate([np.pad(row, ((1, 1), (0, width - row.shape[1]), (0, 0))) for row in rows], axis=0)


def sheet(cases: Sequence[tuple[np.ndarray, np.ndarray | None]], columns: int = 2, enlarge: int = 2) -> np.ndarray:
    """A contact sheet: :func:`slices` of every case in a grid of ``columns``, each voxel ``enlarge`` pixels."""
    rows = [slices(image, label) for image, label in cases]
    height, width = max(r.shape[0] for r in rows), max(r.shape[1] for r in rows)
    cells = [np.pad(r, ((2, height - r.shape[0] + 2), (4, width - r.shape[1] + 4), (0, 0))) for r in rows]
    cells += [np.zeros_like(cells[0])] * (-len(cells) % columns)
    lines = [np.concatenate(cells[i : i + columns], axis=1) for i in range(0, len(cells), columns)]
    return np.concatenate(lines, axis=0).repeat(enlarge, axis=0).repeat(enlarge, axis=1)
