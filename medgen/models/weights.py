"""Reading foreign weight files without running what they hold."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from medgen.errors import InputError

SUFFIXES = (".pt", ".pth", ".ckpt", ".safetensors")


def read_weights(path: Path) -> Mapping[str, Any]:
    """The mapping that a weight file holds.

    Raises:
        InputError: missing, damaged, or a pickle that holds more than tensors.
    """
    if not path.is_file():
        raise InputError(f"{path} does not exist; give the weight file that you downloaded")
    if path.suffix not in SUFFIXES:
        raise InputError(f"{path} is not a weight file; give one of {', '.join(SUFFIXES)}")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        raw = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, RuntimeError, EOFError, ValueError, KeyError, UnicodeDecodeError):
        raise InputError(
            f"{path} is damaged or no state dict and cannot be read as weights; download it again"
        ) from None
    except Exception as error:
        if type(error).__name__ != "UnpicklingError":  # its module is one that medgen never imports
            raise
        raise InputError(
            f"{path} holds more than tensors and is not opened, for it could run code; "
            "save its state_dict() alone, where you trust it"
        ) from None
    if not isinstance(raw, Mapping):
        raise InputError(f"{path} holds a {type(raw).__name__}, not a state dict; save the network's state_dict()")
    return raw
