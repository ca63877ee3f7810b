"""Classifier-free guidance (Ho & Salimans 2022, arXiv:2207.12598)."""

from collections.abc import Sequence

import torch

from medgen.models.condition import Condition
from medgen.models.seam import Model, Prediction


def wrap(model: Model, *, scale: float = 1.0) -> Model:
    """Extrapolate from the unconditional to the conditional estimate: x0 = x0(null) + scale (x0(cond) - x0(null)).

    Args:
        model: the model to steer.
        scale: 1 is the model itself (one pass a call), 0 the unconditional model, above 1 follows the condition
            harder at the price of diversity. Both passes run as one batch.
    """
    if scale == 1.0:
        return model

    def guided(x: torch.Tensor, sigma: torch.Tensor, cond: Condition, *, taps: Sequence[str] = ()) -> Prediction:
        both = Condition.cat([cond, cond.null()])
        out = model(torch.cat([x, x]), torch.cat([sigma, sigma]), both, taps=taps)
        asked, free = out.x0.chunk(2)
        features = {name: f.chunk(2)[0] for name, f in out.features.items()} if out.features else None
        return Prediction(free + scale * (asked - free), features=features)

    return guided
