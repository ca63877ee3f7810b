"""Image and label that belong together: intensities in a label, just inside its boundary and across it.

Off unless named: it holds draws against scans, and a codec or a short training that blurs fails it with every draw.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import ndimage

from medgen.generation.gates.cloud import Cloud
from medgen.generation.gates.law import check_level, outside, slack
from medgen.generation.gates.seam import CannotJudgeError, Context, Judge, Seen, Verdict

ON = False
_LEAST_VOXELS = 20
_MARGIN = 2
# Where the shell outside a label is looked at: what lies on one side of a structure is not what lies on the other.
_SIDES = {"right": (0, 1), "left": (0, -1), "front": (1, 1), "back": (1, -1), "above": (2, 1), "below": (2, -1)}


def measure(seen: Seen) -> Mapping[str, float]:
    """Of each channel and label: mean and spread inside, and differences of means around the boundary.

    ``rim`` is the shell just inside the boundary less what lies deeper: a label whose outline is imprinted in the
    image shows here. ``edge`` is that shell less the one just outside, and each side (``right``, ``left``, ...) the
    voxels that follow the label in that direction less the label: a label that lies beside its structure loses them.
    """
    scores: dict[str, float] = {}
    if seen.label is None:
        return scores
    image = seen.clipped()
    boxes = ndimage.find_objects(seen.label.astype(np.int32), max_label=len(seen.names) - 1)
    for i, (name, box) in enumerate(zip(seen.names[1:], boxes, strict=True), start=1):
        if box is None:
            continue
        around = tuple(slice(max(s.start - _MARGIN, 0), s.stop + _MARGIN) for s in box)
        parts = _parts(seen.label[around] == i)
        for channel, values in zip(seen.channels, image, strict=True):
            if channel is not None:
                figures = _figures({key: values[around][mask] for key, mask in parts.items()})
                scores |= {f"{channel}.{name}.{key}": round(value, 5) for key, value in figures.items()}
    return scores


def learn(rows: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """How the figures of each channel and label go together over real cases."""
    groups: dict[str, list[str]] = {}
    for name in sorted({name for row in rows for name in row}):
        groups.setdefault(name.rpartition(".")[0], []).append(name)
    # Together they may leave out 1% of real cases.
    clouds = {pair: Cloud.of(names, rows, kept=1 - 0.01 / len(groups)) for pair, names in groups.items()}
    return {"clouds": {pair: cloud.to_json() for pair, cloud in clouds.items() if cloud is not None}}


def build(context: Context, *, level: float = 0.001) -> Judge:
    """Reject pairs whose intensities around the label's boundary are unlike any case's of the cohort.

    Args:
        context: what was learnt of the cohort.
        level: chance of rejecting a real case, at most about; heavy tails of the cohort raise it to no more than 1%.
    """
    if len(context.names) < 2:
        raise CannotJudgeError("the model draws no labels")
    context.need_laws()
    laws = {name: law for name, law in context.laws.items() if name.rpartition(".")[2] not in _SIDES}
    clouds = {pair: Cloud.from_json(raw) for pair, raw in context.figures.get("clouds", {}).items()}

    def judge(seen: Seen) -> Verdict:
        measured = measure(seen)
        scores = {name: value for name, value in measured.items() if name.rpartition(".")[2] not in _SIDES}
        faults = outside(scores, laws, level)
        for pair, cloud in clouds.items():
            far, bound = cloud.distance(measured), cloud.bound(level / len(clouds))
            if far is None:
                continue
            scores[f"{pair}.unlike"] = round(far, 4)
            if far > bound + slack(bound):
                faults[f"{pair}.unlike"] = (
                    f"intensities in and around {pair} lie {far:.1f} standard deviations from the cohort's, "
                    f"whose own lie within {bound:.1f}"
                )
        return Verdict(scores, faults)

    return judge


def check(*, level: float) -> None:
    """Refuse a level that is none."""
    check_level("consistency", level)


def _parts(inside: np.ndarray) -> dict[str, np.ndarray]:
    deep = ndimage.binary_erosion(inside, border_value=1)
    parts = {"inside": inside, "deep": deep, "rim": inside & ~deep, "out": ndimage.binary_dilation(inside) & ~inside}
    for side, (axis, step) in _SIDES.items():
        moved = np.roll(inside, step, axis)
        edge = [slice(None)] * 3
        edge[axis] = slice(0, 1) if step > 0 else slice(-1, None)
        moved[tuple(edge)] = False  # what left the box on the other side
        parts[side] = moved & ~inside
    return parts


def _figures(values: Mapping[str, np.ndarray]) -> dict[str, float]:
    mean = {key: float(v.mean(dtype=np.float64)) for key, v in values.items() if v.size >= _LEAST_VOXELS}
    figures: dict[str, float] = {}
    if "inside" in mean:
        figures |= {"mean": mean["inside"], "std": float(values["inside"].std(dtype=np.float64))}
        figures |= {side: mean[side] - mean["inside"] for side in _SIDES if side in mean}
    if "rim" in mean and "deep" in mean:
        figures["rim"] = mean["rim"] - mean["deep"]
    if "rim" in mean and "out" in mean:
        figures["edge"] = mean["rim"] - mean["out"]
    return figures
