"""Data whose diffusion is known in closed form: a Gaussian of given mean and spread."""

import torch

from medgen.models.condition import Condition
from medgen.models.seam import Prediction, expand

MEAN, STD = 0.7, 0.5


def no_condition(batch):
    return Condition((), torch.zeros(batch, 0), torch.zeros(batch, 0, dtype=torch.bool))


def exact_model(x, sigma, cond, *, taps=()):
    """E[x0 | x0 + sigma noise = x] for x0 ~ N(MEAN, STD^2)."""
    s = expand(sigma, x)
    return Prediction((STD**2 * x + s**2 * MEAN) / (STD**2 + s**2))


def exact_path(x, sigma_from, sigma_to):
    """Where the probability-flow ODE takes x: deviations from the mean scale with the marginal's spread."""
    scale = ((STD**2 + sigma_to**2) / (STD**2 + sigma_from**2)) ** 0.5
    return MEAN + (x - MEAN) * scale
