"""Which weights of a training are kept: the averaged ones of the best validation before memorisation sets in.

They are a file of their own beside the checkpoint, ``weights.safetensors``, written atomically; its metadata says of
which step and which average they are and what was measured of them.
"""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from medgen.errors import InputError
from medgen.files import atomic
from medgen.training import ema
from medgen.training.ema import Ema

NAME = "weights.safetensors"


class BestKeeper:
    """Keeps the best validation's weights of one module.

    A validation is better than another where its samples are no copies and the other's are, else where fewer of its
    samples are copies, else (both without) where its loss is lower. Without held-out cases, or where that is asked
    for, the last weights are kept.

    Args:
        folder: of the training.
        name: of the module.
        module: gives the types of the weights.
        profile: which average is to be kept, from a validation's figures.
        best: False keeps the last.
    """

    def __init__(
        self, folder: Path, name: str, module: nn.Module, profile: Callable[[Mapping[str, float]], str], *, best: bool
    ) -> None:
        self.path, self.name, self.module, self.profile, self.best = folder / NAME, name, module, profile, best
        self.score: list[float] | None = None

    def starts(self, step: int) -> None:
        """Forget what was kept of later steps: they will be seen again, and the best of them kept again."""
        said = read_kept(self.path) if self.path.exists() else None
        self.score = said["score"] if said is not None and said["step"] <= step else None

    def see(self, step: int, averages: Mapping[str, Ema], figures: Mapping[str, float], *, last: bool) -> bool:
        """See :class:`medgen.training.loop.Keeper`."""
        judged = self.best and "loss" in figures
        if not judged and not last:
            return False
        copies = figures.get("copies", 0.0) if figures.get("memorised", 0.0) > 0 else 0.0
        # Among those that copy, the loss decides nothing before the copies do.
        loss = figures["loss"] if judged else 0.0
        worst = math.inf if math.isnan(loss) else loss
        score = [figures.get("memorised", 0.0), copies, worst] if judged else [0.0, 0.0, 0.0]
        if judged and self.score is not None and score >= self.score:
            return False
        self.score, profile = score, self.profile(figures)
        said = {"step": step, "average": profile, "score": score, "figures": dict(figures)}
        state = averages[ema.key(self.name, profile)].state(self.module)
        with atomic(self.path) as temporary:
            weights = {key: t.detach().cpu().contiguous() for key, t in state.items()}
            save_file(weights, temporary, metadata={"kept": json.dumps(said)})
        return True


def read_kept(path: Path) -> dict[str, Any]:
    """What a file of kept weights says of itself: step, average, score, figures.

    Raises:
        InputError: missing or damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            said: dict[str, Any] = json.loads(file.metadata()["kept"])
    except (SafetensorError, OSError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise InputError(f"{path} is missing or damaged ({str(error)[:120]}); run the training again") from None
    return said


def load_kept(path: Path, like: nn.Module) -> dict[str, torch.Tensor]:
    """The kept weights for a module such as ``like``.

    Raises:
        InputError: missing, damaged, or of another network.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key).to(t.dtype) for key, t in like.state_dict().items()}
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is missing or damaged ({str(error)[:120]}); run the training again") from None
