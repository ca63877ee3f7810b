"""When a training has diverged, and where it goes back to."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch

_WINDOW = 100
_ENOUGH = 20
_RECENT = 5
_SUSTAINED = 10.0
_AT_ONCE = 100.0
_CALM = 2.0


class DivergedError(Exception):
    """A step whose update must not be applied; caught by the loop."""


@dataclass
class Watch:
    """The running level of the loss, and how often the training went back. Kept in the checkpoint.

    A loss has exploded where the median of the last 5 steps is above 10 times that of the last 100, or where it is
    above 100 times the largest of them. One odd batch alone is neither: with clipped gradients it does no harm, and a
    patch of tissue among patches of air is often ten times as hard.

    Attributes:
        losses: of the last steps, the first that each step yields.
        rollbacks: how often the training went back.
        good: the step that it would go back to.
    """

    losses: list[float] = field(default_factory=list)
    rollbacks: int = 0
    good: int = 0

    @property
    def rate(self) -> float:
        """Factor on the learning rate: half for each time it went back."""
        return float(0.5**self.rollbacks)

    def exploded(self, loss: float) -> bool:
        """Whether a finite loss is far above its running level."""
        if len(self.losses) < _ENOUGH or (level := median(self.losses)) <= 0:
            return False
        recent = [*self.losses[1 - _RECENT :], loss]
        return loss > _AT_ONCE * max(self.losses) or median(recent) > _SUSTAINED * level

    def add(self, loss: float) -> None:
        """Take in the loss of a step that was applied."""
        self.losses = [*self.losses, loss][-_WINDOW:]

    @property
    def calm(self) -> bool:
        """Whether the state is worth going back to: the last losses are not above twice their running level."""
        return len(self.losses) < _ENOUGH or median(self.losses[-_RECENT:]) <= _CALM * max(median(self.losses), 0.0)

    def to_json(self) -> dict[str, Any]:
        """As plain JSON; floats survive to the last bit."""
        return {"losses": self.losses, "rollbacks": self.rollbacks, "good": self.good}

    @staticmethod
    def from_json(raw: Mapping[str, Any]) -> "Watch":
        """From what :meth:`to_json` gave."""
        return Watch(list(raw["losses"]), int(raw["rollbacks"]), int(raw["good"]))


def good_path(folder: Path, step: int) -> Path:
    """Where the state after ``step`` steps is kept to go back to."""
    return folder / f"good-{step:08d}.safetensors"


def drop_goods(folder: Path, keep: Sequence[int]) -> None:
    """Remove the states that no checkpoint names any more."""
    kept = {good_path(folder, step) for step in keep}
    for path in folder.glob("good-*.safetensors"):
        if path not in kept:
            path.unlink(missing_ok=True)


def judged(watch: Watch, loss: torch.Tensor, norm: torch.Tensor, *, leads: bool) -> float:
    """The loss of a step as a number; one wait for the device.

    Raises:
        DivergedError: the loss or the gradient is not finite, or the loss that leads a step has exploded.
    """
    value, size = (float(v) for v in torch.stack([loss.detach().float(), norm.detach().float()]).tolist())
    if not (math.isfinite(value) and math.isfinite(size)) or (leads and watch.exploded(value)):
        raise DivergedError(f"loss {value:.3g}, gradient {size:.3g}")
    return value
