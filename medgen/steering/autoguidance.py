"""Autoguidance: a model guided away from a weaker one (Karras et al. 2024, arXiv:2406.02507)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from medgen.errors import InputError
from medgen.models.condition import Condition
from medgen.models.seam import Model, Prediction
from medgen.steering.context import Context, Known
from medgen.steering.passes import check_interval, within


def wrap(
    model: Model, *, context: Context, weak: Path = Path(), scale: float = 1.0, interval: Sequence[float] = ()
) -> Model:
    """Extrapolate from a weak model's estimate to the model's own: x0 = weak + scale (x0 - weak), same condition.

    Both err in the same directions, the weak one further: what is pushed away from is the error, not the diversity.

    Args:
        model: the model to steer.
        context: opens the second model.
        weak: folder of the weaker model: a shorter training or a smaller network on the same codec and the same
            latents, conditioned on the same columns.
        scale: 1 is the model itself (one pass a call), 1.5 to 3 are usual.
        interval: [low, high]: guide only where low < sigma <= high.
    """
    if scale == 1.0:
        return model
    other = context.other(Path(weak))

    def guided(x: torch.Tensor, sigma: torch.Tensor, cond: Condition, *, taps: Sequence[str] = ()) -> Prediction:
        out, worse = model(x, sigma, cond, taps=taps), other(x, sigma, cond).x0
        return Prediction(worse + scale * (out.x0 - worse), features=out.features)

    return within(interval, guided, model)


def check(known: Known | None, *, weak: Path | str, interval: Sequence[float], **_: Any) -> None:
    """Check the options' values.

    Raises:
        InputError: no weak model, or an interval out of bounds.
    """
    check_interval("autoguidance", interval)
    if not isinstance(weak, (str, Path)) or Path(weak) == Path():
        raise InputError("steering 'autoguidance' needs 'weak', the folder of a second, weaker model")
    if not (Path(weak) / "model.json").is_file():
        raise InputError(f"steering 'autoguidance': {weak} is not a model folder; give the folder of a weaker model")
