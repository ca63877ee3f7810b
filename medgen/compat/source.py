"""Reading weight files: tensors only, whatever they are wrapped in. Nothing is unpickled beyond tensors."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from medgen.errors import InputError
from medgen.models.weights import SUFFIXES, read_weights

State = dict[str, torch.Tensor]
# Other networks that lie beside the two in published folders.
_OTHERS = ("mask", "controlnet", "discriminator")
_PARALLEL = "module."


@dataclass(frozen=True)
class Source:
    """What was read.

    Attributes:
        autoencoder: its state dict, float32.
        network: the denoiser's.
        autoencoder_file: where the first came from.
        network_file: where the second came from.
        scale_factor: what the files say latents are multiplied by; None where they say nothing.
    """

    autoencoder: State
    network: State
    autoencoder_file: Path
    network_file: Path
    scale_factor: float | None


def read_source(path: Path, autoencoder: Path | None = None) -> Source:
    """Read weights.

    Args:
        path: a file with both networks, a file with the denoiser, or a folder with one file of each (in it or in
            its ``models``).
        autoencoder: the file with the autoencoder, where ``path`` does not hold it.

    Raises:
        InputError: nothing there, not a weight file, or not exactly one of each network.
    """
    if path.is_dir():
        network_file, found = _in_folder(path, autoencoder is None)
        autoencoder_file = autoencoder or found
    else:
        network_file, autoencoder_file = path, autoencoder or path
    assert autoencoder_file is not None
    raw = read_weights(network_file)
    network = _one(raw, "network", network_file)
    other = raw if autoencoder_file == network_file else read_weights(autoencoder_file)
    codec = _one(other, "autoencoder", autoencoder_file)
    return Source(codec, network, autoencoder_file, network_file, _scale(raw, network_file))


def _in_folder(folder: Path, both: bool) -> tuple[Path, Path | None]:
    """The denoiser's file and, where ``both``, the autoencoder's."""
    files = [p for f in (folder, folder / "models") if f.is_dir() for p in sorted(f.iterdir()) if p.suffix in SUFFIXES]
    files = [p for p in files if not any(word in p.name.lower() for word in _OTHERS)]
    codecs = [p for p in files if "autoencoder" in p.name.lower() or "vae" in p.name.lower()]
    networks = [p for p in files if p not in codecs and ("diff" in p.name.lower() or "unet" in p.name.lower())]
    if len(networks) != 1 or (both and len(codecs) != 1):
        names = ", ".join(p.name for p in files) or "none"
        raise InputError(
            f"{folder} must hold one autoencoder file and one diffusion file (weight files in it: {names}); "
            "give the diffusion file itself, and the other with --autoencoder"
        )
    return networks[0], codecs[0] if both else None


def _one(raw: Mapping[str, Any], what: str, path: Path) -> State:
    """The one state dict of a kind in a file."""
    found = {name: state for name, state in _states(raw).items() if _kind(state) == what}
    if len(found) == 1:
        return next(iter(found.values()))
    word = {"autoencoder": "an autoencoder", "network": "a diffusion UNet"}[what]
    if found:
        raise InputError(f"{path} holds {word} more than once ({', '.join(found)}); save the one you want by itself")
    hint = "; give its file with --autoencoder" if what == "autoencoder" else ""
    raise InputError(f"{path} does not hold the weights of {word}{hint}")


def _states(raw: Mapping[str, Any]) -> dict[str, State]:
    """State dicts in a file, by the name they are wrapped in."""
    if raw and all(isinstance(v, torch.Tensor) for v in raw.values()) and any(v.ndim > 1 for v in raw.values()):
        return {"": _clean(raw)}
    nested = {k: v for k, v in raw.items() if isinstance(v, Mapping) and v}
    return {str(k): _clean(v) for k, v in nested.items() if all(isinstance(t, torch.Tensor) for t in v.values())}


def _clean(state: Mapping[str, torch.Tensor]) -> State:
    parallel = all(k.startswith(_PARALLEL) for k in state)  # saved from a DataParallel wrapper
    cut = len(_PARALLEL) if parallel else 0
    return {k[cut:]: t.float() if t.is_floating_point() else t for k, t in state.items()}


def _kind(state: State) -> str:
    if any(k.startswith("encoder.blocks.") for k in state):
        return "autoencoder"
    return "network" if any(k.startswith("down_blocks.") for k in state) else ""


def _scale(raw: Mapping[str, Any], path: Path) -> float | None:
    value = raw.get("scale_factor")
    if value is None:
        return None
    number = float(value) if isinstance(value, (int, float)) or getattr(value, "numel", int)() == 1 else 0.0
    if not 0 < number < float("inf"):
        raise InputError(f"{path} has a scale_factor that is not a positive number; give one with --scale-factor")
    return number
