"""Intensities in range, and on demand spread over the range as the cohort's are."""

from collections.abc import Mapping

import numpy as np

from medgen.errors import InputError
from medgen.generation.gates.law import check_level, check_within, outside
from medgen.generation.gates.seam import Context, Judge, Seen, Verdict

ON = True
_DARK = -0.9
_BEYOND = 0.25
_LEAST_VOXELS = 8


def measure(seen: Seen) -> Mapping[str, float]:
    """Of each channel: the share of voxels that are not dark, and of these the mean, spread and 5% and 95% points."""
    scores: dict[str, float] = {}
    for name, channel in zip(seen.channels, seen.clipped(), strict=True):
        if name is None:
            continue
        lit = channel[channel > _DARK].astype(np.float64)
        figures = {"filled": lit.size / channel.size}
        if lit.size >= _LEAST_VOXELS:
            low, high = np.percentile(lit, [5, 95])
            figures |= {"mean": lit.mean(), "std": lit.std(), "low": low, "high": high}
        scores |= {f"{name}.{key}": round(float(value), 5) for key, value in figures.items()}
    return scores


def build(context: Context, *, level: float = 0.0, beyond: float = 0.02) -> Judge:
    """Reject images that leave the range, and on demand those that fill it unlike any case of the cohort.

    Args:
        context: the cohort's laws.
        level: chance of rejecting a real case, at most about, where the spread over the range is judged too; 0.001 is
            a good value for a model that keeps the contrast. 0 judges the range alone.
        beyond: share of voxels that may lie outside [-1, 1] by more than an eighth of the range. They are clipped when
            the image is written; a codec rings a little at bright edges.

    Raises:
        InputError: a level is asked for, and the model holds no figures of its training cases.
    """
    if level > 0 and not context.laws:
        raise InputError(
            "the gate 'intensity' has a level, for which the model folder holds no figures of its training cases; "
            "leave the level out, and the range alone is judged"
        )

    def judge(seen: Seen) -> Verdict:
        scores = dict(measure(seen))
        faults = outside(scores, context.laws, level) if level > 0 else {}
        for name, channel in zip(seen.channels, seen.image, strict=True):
            key = f"{name}.beyond"
            scores[key] = round(float((np.abs(channel) > 1 + _BEYOND).mean()), 5)
            if scores[key] > beyond:
                faults[key] = f"{scores[key]:.1%} of {name} lie outside the range, {beyond:.1%} are allowed"
        return Verdict(scores, faults)

    return judge


def check(*, level: float, beyond: float) -> None:
    """Refuse values that mean nothing; a level of 0 judges the range alone."""
    if level != 0:
        check_level("intensity", level)
    check_within("intensity", "beyond", beyond, 0, 1)
