"""Labels where the cohort's lie: in the image, and among each other. Off unless named.

Where a cohort is very much alike, as phantoms and registered scans are, it asks for more than a short training gives.
"""

from collections.abc import Mapping

import numpy as np
from scipy import ndimage

from medgen.generation.gates.law import check_level, outside
from medgen.generation.gates.seam import CannotJudgeError, Context, Judge, Seen, Verdict

ON = False
_AXES = "xyz"


def measure(seen: Seen) -> Mapping[str, float]:
    """Of each label the centroid in mm: from the grid's centre, and (``from_all``) from that of all labels together.

    Swapped labels, and structures on the wrong side, show in the second.
    """
    scores: dict[str, float] = {}
    if seen.label is None:
        return scores
    middle = (np.array(seen.label.shape) - 1) / 2
    there = [i for i in range(1, len(seen.names)) if (seen.label == i).any()]
    centres = {i: _centre(seen.label == i, middle, seen.spacing_mm) for i in there}
    whole = _centre(seen.label > 0, middle, seen.spacing_mm) if len(seen.names) > 2 and len(there) > 1 else None
    for i, centre in centres.items():
        scores |= {f"{seen.names[i]}.{axis}": round(float(v), 3) for axis, v in zip(_AXES, centre, strict=True)}
        if whole is not None:
            off = zip(_AXES, centre - whole, strict=True)
            scores |= {f"{seen.names[i]}.{axis}_from_all": round(float(v), 3) for axis, v in off}
    return scores


def build(context: Context, *, level: float = 0.001) -> Judge:
    """Reject labels that lie where no case of the cohort has them.

    Args:
        context: the cohort's laws.
        level: chance of rejecting a real case, at most about.
    """
    if len(context.names) < 2:
        raise CannotJudgeError("the model draws no labels")
    context.need_laws()

    def judge(seen: Seen) -> Verdict:
        scores = measure(seen)
        return Verdict(scores, outside(scores, context.laws, level))

    return judge


def check(*, level: float) -> None:
    """Refuse a level that is none."""
    check_level("position", level)


def _centre(mask: np.ndarray, middle: np.ndarray, spacing_mm: tuple[float, float, float]) -> np.ndarray:
    centre: np.ndarray = (np.array(ndimage.center_of_mass(mask)) - middle) * np.array(spacing_mm)
    return centre
