"""Volumes exactly as asked: gradient guidance by the volume of labels that the model's own codec decodes."""

import difflib
from collections.abc import Sequence
from typing import Any

import torch

from medgen.cohort.schema import volume_column
from medgen.errors import InputError
from medgen.models.condition import Condition
from medgen.models.seam import Model
from medgen.steering.context import Context, Known
from medgen.steering.gradient import Measure, guide
from medgen.steering.passes import check_interval


def wrap(
    model: Model,
    *,
    context: Context,
    labels: Sequence[str] = (),
    tolerance: float = 0.02,
    scale: float = 1.0,
    through: bool = False,
    repeats: int = 1,
    interval: Sequence[float] = (0.0, 2.0),
) -> Model:
    """Move x0 so that decoded label volumes come to those that the request holds.

    Every guided call decodes (and differentiates the decoder) ``repeats`` times, which costs more than the network.

    Args:
        model: the model to steer.
        context: decodes, and knows what was asked.
        labels: whose ``<label>_ml`` to hold, by name; all that the model is conditioned on by default.
        tolerance: how near, in standard deviations of the column over the cohort.
        scale: of the move, 1 is all of it.
        through: differentiate through the denoiser too: slower, and moves along what the denoiser leaves open.
        repeats: moves a call.
        interval: [low, high] in noise levels; above them shapes are not yet there to be measured.

    Raises:
        InputError: an affine registration gave each case a voxel volume of its own.
    """
    if context.voxel_ml is None:
        raise InputError("steering 'volume_gradient' cannot know volumes where a registration scaled each case")
    volumes = context.known.volumes
    chosen = list(labels) or list(volumes)
    measure = volume_loss(context, {name: volumes[name] for name in chosen}, tolerance)
    return guide(model, measure, scale=scale, through=through, newton=True, repeats=repeats, interval=interval)


def volume_loss(context: Context, ids: dict[str, int], tolerance: float) -> Measure:
    """Half the squared difference of decoded and asked volumes, in units of the tolerance, summed over labels.

    The volume is that of the label map, the largest logit of each voxel; its gradient is that of the softmax, which
    the map itself has not (a straight-through estimate).

    Args:
        context: decodes, and knows what was asked.
        ids: label name -> id.
        tolerance: in standard deviations of each column.
    """
    columns = [volume_column(name) for name in ids]
    channels = list(ids.values())
    scale = [context.encoder.scale[context.encoder.schema.names.index(name)] * tolerance for name in columns]
    voxel_ml = context.voxel_ml
    assert voxel_ml is not None

    def loss(x0: torch.Tensor, cond: Condition) -> torch.Tensor:
        asked, present = context.asked(cond, columns)
        if not bool(present.any()):
            return x0.new_zeros(x0.shape[0])
        logits = context.decode(x0).label_logits
        assert logits is not None
        soft = logits.float().softmax(dim=1)[:, channels].flatten(2).sum(2) * voxel_ml
        largest = logits.detach().argmax(dim=1, keepdim=True)
        ids_1C111 = torch.tensor(channels, device=largest.device).reshape(1, -1, 1, 1, 1)
        hard = (largest == ids_1C111).flatten(2).sum(2) * voxel_ml
        volume = soft + (hard - soft).detach()
        error = torch.where(present, (volume - asked) / asked.new_tensor(scale), torch.zeros_like(asked))
        return 0.5 * error.square().sum(dim=1)

    return loss


def check(
    known: Known | None,
    *,
    labels: Sequence[str],
    tolerance: float,
    repeats: int,
    interval: Sequence[float],
    **_: Any,
) -> None:
    """Check the options' values.

    Raises:
        InputError: a value out of bounds, or a label whose volume the model is not conditioned on.
    """
    check_interval("volume_gradient", interval)
    if tolerance <= 0 or repeats < 1:
        raise InputError("steering 'volume_gradient' needs a tolerance above 0 and at least 1 repeat")
    if known is None:
        return
    have = ", ".join(known.volumes) or "none"
    if not known.volumes:
        raise InputError("steering 'volume_gradient' needs a label whose <label>_ml is among the model's covariates")
    for name in labels:
        if name not in known.volumes:
            near = difflib.get_close_matches(str(name), list(known.volumes), n=1)
            hint = f"; did you mean '{near[0]}'?" if near else ""
            raise InputError(f"steering 'volume_gradient' cannot ask for the volume of '{name}' (it can: {have}){hint}")
