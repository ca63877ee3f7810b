"""Models known in closed form: x0 given the condition is Gaussian, each cell on its own."""

import torch

from medgen.cohort.joint import Joint
from medgen.cohort.schema import Covariate, Schema, with_ranges
from medgen.models.condition import Condition, ConditionEncoder
from medgen.models.seam import Prediction, expand
from medgen.steering.context import Context, Known

ROWS = [{"a": float(i % 5), "ball_ml": 2.0 + i % 7, "sex": "FM"[i % 2]} for i in range(35)]
SCHEMA = with_ranges(
    Schema((Covariate("a"), Covariate("ball_ml", unit="ml"), Covariate("sex", "categorical", levels=("F", "M")))), ROWS
)
ENCODER = ConditionEncoder.fit(SCHEMA, ROWS)
KNOWN = Known(Joint.fit(SCHEMA, ROWS), ("background", "ball"))


def context(**given):
    """A context whose unused parts fail when they are used."""
    return Context(**{"known": KNOWN, "encoder": ENCODER, "decode": None, "voxel_ml": 0.5, "other": None, **given})


def cond_of(*rows):
    return ENCODER.encode(rows)


def cond(values, columns=("a", "b")):
    """(B, K) numbers, None where not asked."""
    present = torch.tensor([[v is not None for v in row] for row in values])
    numbers = torch.tensor([[0.0 if v is None else float(v) for v in row] for row in values])
    return Condition(columns, numbers, present)


def gaussian(moments):
    """The exact denoiser of x0 ~ N(mean, std^2), with (mean, std) = moments(cond) that broadcast over x."""

    def model(x, sigma, cond, *, taps=()):
        model.batches.append(len(x))
        mean, std = moments(cond)
        s = expand(sigma, x)
        return Prediction((std**2 * x + s**2 * mean) / (std**2 + s**2), features={"x": x} if taps else None)

    model.batches = []
    return model


def score(model, x, sigma, cond):
    return (model(x, sigma, cond).x0 - x) / expand(sigma, x) ** 2
