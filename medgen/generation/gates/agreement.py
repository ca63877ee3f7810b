"""A second opinion: a segmenter that was trained on real cases finds the label that was drawn. Off unless named."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medgen.errors import InputError
from medgen.files import sha256_file
from medgen.generation.gates.seam import CannotJudgeError, Context, Judge, Seen, Verdict
from medgen.segment.segmenter import INDEX, Segmenter

ON = False


def build(context: Context, *, segmenter: Path = Path(), min_dice: float = 0.7) -> Judge:
    """Reject pairs whose label the segmenter does not find in the image.

    Args:
        context: the model.
        segmenter: folder of a segmenter for the same channels and labels (:mod:`medgen.segment`).
        min_dice: least Dice of every label that is there.
    """
    if len(context.names) < 2:
        raise CannotJudgeError("the model draws no labels")
    trained = Segmenter.load(segmenter)
    fits = trained.architecture.labels == len(context.names)
    if not fits or trained.architecture.image_channels != context.image_channels:
        raise InputError(f"gate 'agreement': {segmenter} is a segmenter of other channels or labels than the model's")

    def judge(seen: Seen) -> Verdict:
        assert seen.label is not None, "the model draws labels"
        found = zip(seen.names[1:], trained.dice(seen.clipped(), seen.label), strict=True)
        scores = {name: round(dice, 4) for name, dice in found if not math.isnan(dice)}
        faults = {
            name: f"the segmenter finds {name} with Dice {dice:.3f}, {min_dice:g} is the least"
            for name, dice in scores.items()
            if dice < min_dice
        }
        return Verdict(scores, faults)

    return judge


def check(*, segmenter: Path, min_dice: float) -> None:
    """Refuse a folder that is no segmenter's."""
    if not (Path(segmenter) / INDEX).is_file():
        raise InputError(f"gate 'agreement': option segmenter '{segmenter}' is not the folder of a trained segmenter")


def recorded(*, segmenter: Path, min_dice: float) -> Mapping[str, Any]:
    """The segmenter by its SHA-256."""
    return {"segmenter": sha256_file(Path(segmenter) / INDEX), "min_dice": min_dice}
