"""Overlap of label maps."""

from collections.abc import Sequence

import numpy as np


def dice(a: np.ndarray, b: np.ndarray, ids: Sequence[int]) -> list[float]:
    """Dice (1945) coefficient of each id between two label maps of one shape; NaN where neither has it."""
    assert a.shape == b.shape, f"label maps of shapes {a.shape} and {b.shape}"
    scores = []
    for i in ids:
        in_a, in_b = a == i, b == i
        total = int(in_a.sum()) + int(in_b.sum())
        scores.append(2.0 * int((in_a & in_b).sum()) / total if total else float("nan"))
    return scores
