"""A second opinion: a segmenter that was trained on real cases finds the label that was drawn. Off unless named."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from medgen.errors import InputError
from medgen.files import sha256_file
from medgen.generation.gates.law import check_within
from medgen.generation.gates.seam import CannotJudgeError, Context, Judge, Seen, Verdict
from medgen.segment.segmenter import INDEX, Segmenter

ON = False
_ALIKE = 0.05


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
    if strange := _strange(trained, context):
        raise InputError(
            f"gate 'agreement': {segmenter} is a segmenter of {strange}; train one on the cohort that the model was "
            "trained on, prepared as it was"
        )

    def judge(seen: Seen) -> Verdict:
        if seen.label is None:  # a real case that none was drawn for
            return Verdict({})
        found = zip(seen.names[1:], trained.dice(seen.clipped(), seen.label), strict=True)
        scores = {name: round(dice, 4) for name, dice in found if not math.isnan(dice)}
        faults = {
            name: f"the segmenter finds {name} with Dice {dice:.3f}, {min_dice:g} is the least"
            for name, dice in scores.items()
            if dice < min_dice
        }
        return Verdict(scores, faults)

    return judge


def _strange(trained: Segmenter, context: Context) -> str:
    """What a segmenter was trained on otherwise than the model, in words; empty where it fits as far as is known."""
    if trained.architecture.image_channels != context.image_channels:
        return f"{trained.architecture.image_channels} image channels, where the model has {context.image_channels}"
    if trained.architecture.labels != len(context.names):
        return f"{trained.architecture.labels - 1} labels, where the model has {len(context.names) - 1}"
    for key, what, ours in (("channels", "the channels", context.channels), ("label_names", "labels", context.names)):
        theirs = trained.grid.get(key)
        if theirs and ours and tuple(theirs) != tuple(ours):
            return f"{what} {', '.join(theirs)}, where the model has {', '.join(ours)}"
    spacing = trained.grid.get("spacing_mm")
    if spacing and context.spacing_mm and not np.allclose(spacing, context.spacing_mm, rtol=_ALIKE):
        mm = [" x ".join(f"{s:g}" for s in sizes) for sizes in (spacing, context.spacing_mm)]
        return f"voxels of {mm[0]} mm, where the model has {mm[1]} mm"
    return ""


def check(*, segmenter: Path, min_dice: float) -> None:
    """Refuse a folder that is no segmenter's, and a Dice that is none."""
    check_within("agreement", "min_dice", min_dice, 0, 1)
    if not (Path(segmenter) / INDEX).is_file():
        raise InputError(f"gate 'agreement': option segmenter '{segmenter}' is not the folder of a trained segmenter")


def recorded(*, segmenter: Path, min_dice: float) -> Mapping[str, Any]:
    """The segmenter by its SHA-256."""
    return {"segmenter": sha256_file(Path(segmenter) / INDEX), "min_dice": min_dice}
