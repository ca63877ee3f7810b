"""Exponential moving averages of weights."""

from copy import deepcopy
from typing import TypeVar

import torch
from torch import nn

M = TypeVar("M", bound=nn.Module)

GAMMAS = {"long": 6.94, "short": 16.97}
"""Profiles: the last 10% of the training so far (sigma_rel 0.10), or the last 5% (0.05)."""


def key(name: str, profile: str) -> str:
    """Under which name a profile's average of a module is kept."""
    return name if profile == "long" else f"{name}@{profile}"


class Ema:
    """Power-function EMA (Karras et al. 2024, arXiv:2312.02696, equation 124 ff.).

    The averaging window is a fixed share of the training so far, beta_t = (1 - 1/t)^(gamma + 1), so that the same
    setting serves a short and a long training, and the random start is forgotten.

    Args:
        module: whose floating-point parameters and buffers are averaged.
        gamma: 16.97 keeps about the last 5% of training (sigma_rel 0.05), 6.94 the last 10%.
    """

    def __init__(self, module: nn.Module, gamma: float = 6.94) -> None:
        self.gamma = gamma
        self.average = {name: t.detach().float().clone() for name, t in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """Take in the weights after step ``step`` (from 1)."""
        weight = 1.0 - (1.0 - 1.0 / step) ** (self.gamma + 1)
        state = module.state_dict()
        torch._foreach_lerp_(list(self.average.values()), [state[name].float() for name in self.average], weight)

    def state(self, like: nn.Module) -> dict[str, torch.Tensor]:
        """The averaged weights in the module's types, to be loaded strictly."""
        dtypes = {name: t.dtype for name, t in like.state_dict().items()}
        return {name: t.to(dtypes[name]) for name, t in self.average.items()}

    def applied(self, module: M) -> M:
        """A copy of the module with the averaged weights, in evaluation mode."""
        copy = deepcopy(module)
        copy.load_state_dict(self.state(copy), strict=True)
        return copy.eval()
