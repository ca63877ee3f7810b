"""Checkpoints in one safetensors file: weights, averages, optimiser state. Nothing is pickled."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from medgen.errors import InputError, reason
from medgen.files import atomic
from medgen.training.ema import Ema

NAME = "checkpoint.safetensors"


def save(
    path: Path,
    modules: Mapping[str, nn.Module],
    averages: Mapping[str, Ema],
    optimisers: Mapping[str, torch.optim.Optimizer],
    progress: Mapping[str, Any],
) -> None:
    """Write everything a training needs to go on as if it had not stopped, atomically."""
    tensors: dict[str, torch.Tensor] = {}
    for name, module in modules.items():
        tensors |= {f"module/{name}/{key}": t for key, t in module.state_dict().items()}
    for name, average in averages.items():
        tensors |= {f"average/{name}/{key}": t for key, t in average.average.items()}
    for name, optimiser in optimisers.items():
        for index, state in optimiser.state_dict()["state"].items():
            tensors |= {f"optimiser/{name}/{index}/{key}": torch.as_tensor(v) for key, v in state.items()}
    whole = {key: t.detach().cpu().contiguous() for key, t in tensors.items()}
    with atomic(path) as temporary:
        save_file(whole, temporary, metadata={"progress": json.dumps(progress)})


def load(
    path: Path,
    modules: Mapping[str, nn.Module],
    averages: Mapping[str, Ema],
    optimisers: Mapping[str, torch.optim.Optimizer],
) -> dict[str, Any]:
    """Restore what :func:`save` wrote; returns its progress.

    Raises:
        InputError: the file is damaged or belongs to another network.
    """
    try:
        with safe_open(path, framework="pt") as file:
            progress: dict[str, Any] = json.loads(file.metadata()["progress"])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
        for name, module in modules.items():
            module.load_state_dict(_below(tensors, f"module/{name}/"), strict=True)
        for name, average in averages.items():
            kept = _below(tensors, f"average/{name}/")
            for key, t in average.average.items():
                t.copy_(kept[key])
        for name, optimiser in optimisers.items():
            states: dict[int, dict[str, torch.Tensor]] = {}
            for key, t in _below(tensors, f"optimiser/{name}/").items():
                index, field = key.split("/")
                states.setdefault(int(index), {})[field] = t
            optimiser.load_state_dict({"state": states, "param_groups": optimiser.state_dict()["param_groups"]})
            _lay_out(optimiser)
    except (SafetensorError, KeyError, RuntimeError, ValueError, json.JSONDecodeError) as error:
        raise InputError(
            f"{path} is not a checkpoint of this network ({reason(error)}); remove it to start again"
        ) from None
    return progress


def _lay_out(optimiser: torch.optim.Optimizer) -> None:
    """Give each state its weight's layout in memory, which a fused kernel takes for granted.

    Files hold tensors in one order; a weight with channels last has another.
    """
    for parameter, state in optimiser.state.items():
        for key, value in state.items():
            if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                state[key] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def _below(tensors: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {key.removeprefix(prefix): t for key, t in tensors.items() if key.startswith(prefix)}


def load_average(path: Path, name: str, like: nn.Module) -> dict[str, torch.Tensor]:
    """The averaged weights of one module of a checkpoint, in the module's types.

    Raises:
        InputError: the file is missing, damaged or belongs to another network.
    """
    expected = like.state_dict()
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(f"average/{name}/{key}").to(t.dtype) for key, t in expected.items()}
    except (SafetensorError, FileNotFoundError) as error:
        raise InputError(f"{path} is missing or damaged ({str(error)[:120]}); run the training again") from None
