"""What the wrappers share: several conditions in one batch, and steering within an interval of noise levels."""

import math
from collections.abc import Sequence

import torch

from medgen.errors import InputError
from medgen.models.condition import Condition
from medgen.models.seam import Model, Prediction, expand


def together(
    model: Model, x: torch.Tensor, sigma: torch.Tensor, conditions: Sequence[Condition], taps: Sequence[str] = ()
) -> list[Prediction]:
    """What the model says of the same noisy batch under each condition, in one call of one larger batch."""
    n = len(conditions)
    out = model(torch.cat([x] * n), torch.cat([sigma] * n), Condition.cat(conditions), taps=taps)
    features = out.features or {}
    parts = {name: f.chunk(n) for name, f in features.items()}
    return [
        Prediction(x0, features={name: f[i] for name, f in parts.items()} if parts else None)
        for i, x0 in enumerate(out.x0.chunk(n))
    ]


def within(interval: Sequence[float], steered: Model, plain: Model) -> Model:
    """``steered`` where low < sigma <= high, ``plain`` elsewhere; everywhere ``steered`` where no interval is given.

    A batch that lies on one side costs one of the two only.

    Reference:
        Kynkäänniemi et al. 2024, arXiv:2404.07724: guidance is harmful at high and needless at low noise.
    """
    if not interval:
        return steered
    low, high = interval

    def model(x: torch.Tensor, sigma: torch.Tensor, cond: Condition, *, taps: Sequence[str] = ()) -> Prediction:
        inside = (sigma > low) & (sigma <= high)
        if bool(inside.all()):
            return steered(x, sigma, cond, taps=taps)
        if not bool(inside.any()):
            return plain(x, sigma, cond, taps=taps)
        a, b = steered(x, sigma, cond, taps=taps), plain(x, sigma, cond, taps=taps)
        features = {n: torch.where(expand(inside, f), (a.features or {})[n], f) for n, f in (b.features or {}).items()}
        return Prediction(torch.where(expand(inside, a.x0), a.x0, b.x0), features=features or None)

    return model


def check_interval(kind: str, interval: Sequence[float]) -> None:
    """Refuse what is not [low, high].

    Raises:
        InputError: not two finite numbers with 0 <= low < high.
    """
    if not interval:
        return
    numbers = [v for v in interval if isinstance(v, (int, float)) and not isinstance(v, bool) and math.isfinite(v)]
    if len(numbers) != 2 or len(interval) != 2 or not 0 <= numbers[0] < numbers[1]:
        raise InputError(
            f"option 'interval' of steering '{kind}' is [low, high] in noise levels, with 0 <= low < high, "
            f"not {list(interval)}"
        )
