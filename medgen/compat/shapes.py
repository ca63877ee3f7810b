"""The structure of a published network, read from the names and shapes of its weights.

What shapes do not tell (groups of the norms, widths of the heads, epsilons) comes from the bundle's configuration.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch

from medgen.errors import InputError

T = TypeVar("T")
State = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class AutoencoderShape:
    """Structure of an AutoencoderKL; one entry a level in the tuples.

    Attributes:
        image_channels: of the image.
        latent_channels: of the latent.
        channels: width of each level.
        res_blocks: residual blocks of each level.
        attention: which levels attend.
        encoder_attention: attention behind the encoder's last level.
        decoder_attention: attention before the decoder's first level.
        projected: a linear layer behind each attention that is applied (MONAI Generative's never is).
    """

    image_channels: int
    latent_channels: int
    channels: tuple[int, ...]
    res_blocks: tuple[int, ...]
    attention: tuple[bool, ...]
    encoder_attention: bool
    decoder_attention: bool
    projected: bool


@dataclass(frozen=True)
class UNetShape:
    """Structure of a DiffusionModelUNet; one entry a level in the tuples.

    Attributes:
        in_channels: of the first convolution.
        out_channels: of the last.
        channels: width of each level.
        res_blocks: residual blocks of each level.
        attention: which levels attend.
        updown: residual blocks between levels.
        context: width of a token of the cross-attention, 0 without one.
        layers: transformer blocks at each cross-attention, 0 without one.
        classes: size of the class table, 0 without one.
        regions: has inputs for body regions.
        spacing: has an input for the voxel size.
        projected: a linear layer behind each attention that is applied.
    """

    in_channels: int
    out_channels: int
    channels: tuple[int, ...]
    res_blocks: tuple[int, ...]
    attention: tuple[bool, ...]
    updown: bool
    context: int
    layers: int
    classes: int
    regions: bool
    spacing: bool
    projected: bool


def autoencoder_shape(state: State, path: Path) -> AutoencoderShape:
    """Structure of an autoencoder's state dict, of MONAI Generative, MONAI core or MAISI.

    Raises:
        InputError: the weights are not such a network's, or not a 3D one's.
    """
    return _read(lambda: _autoencoder(state), "autoencoder", path)


def unet_shape(state: State, path: Path) -> UNetShape:
    """Structure of a denoiser's state dict, of MONAI Generative, MONAI core or MAISI.

    Raises:
        InputError: the weights are not such a network's, or not a 3D one's.
    """
    return _read(lambda: _unet(state), "diffusion UNet", path)


def _read(read: Callable[[], T], what: str, path: Path) -> T:
    try:
        return read()
    except KeyError as error:
        raise InputError(f"{path} is not a whole 3D {what}: it lacks {error.args[0]}; download it again") from None


def _autoencoder(state: State) -> AutoencoderShape:
    encoder, decoder = _blocks(state, "encoder"), _blocks(state, "decoder")
    levels = _split(encoder[1:-2])
    deepest = "".join(_letter(b) for b in levels[-1])
    middle = deepest.endswith("RAR")  # an attending level ends in A, one that does not has no A
    if middle:
        levels[-1] = levels[-1][:-3]
    widths = [[_get(b, "conv1").shape[0] for b in level if _letter(b) == "R"] for level in levels]
    if not all(widths):
        raise KeyError("residual blocks of the encoder")
    attention = tuple(any(_letter(b) == "A" for b in level) for level in levels)
    own = len(widths[-1]) if attention[-1] else 0
    return AutoencoderShape(
        image_channels=_get(encoder[0], "").shape[1],
        latent_channels=_find(state, "quant_conv_mu.conv.weight").shape[0],
        channels=tuple(w[-1] for w in widths),
        res_blocks=tuple(len(w) for w in widths),
        attention=attention,
        encoder_attention=middle,
        decoder_attention=sum(_letter(b) == "A" for b in _split(decoder[1:-2])[0]) > own,
        projected=any(".out_proj." in k for k in state),
    )


def _blocks(state: State, half: str) -> list[State]:
    """Weights of each block of the encoder or the decoder, in order."""
    found: dict[int, dict[str, torch.Tensor]] = {}
    for key, tensor in state.items():
        match = re.fullmatch(rf"{half}\.blocks\.(\d+)\.(.+)", key)
        if match:
            found.setdefault(int(match[1]), {})[match[2]] = tensor
    if len(found) < 4:
        raise KeyError(f"{half}.blocks")
    return [found[i] for i in sorted(found)]


def _letter(block: State) -> str:
    """R for a residual block, A for attention, S for a change of size."""
    if any(k.startswith("conv1.") for k in block):
        return "R"
    return "A" if any("to_q." in k or "qkv." in k for k in block) else "S"


def _split(blocks: list[State]) -> list[list[State]]:
    levels: list[list[State]] = [[]]
    for block in blocks:
        if _letter(block) == "S":
            levels.append([])
        else:
            levels[-1].append(block)
    return levels


def _get(block: State, start: str) -> torch.Tensor:
    """The weight of a block whose name begins like that, however deep the layer is wrapped."""
    for key, tensor in block.items():
        if key.endswith("weight") and (key.startswith(start) or not start):
            return _three(tensor, key)
    raise KeyError(start)


def _find(state: State, key: str) -> torch.Tensor:
    return _three(state[key], key)


def _three(tensor: torch.Tensor, key: str) -> torch.Tensor:
    if tensor.ndim != 5:
        raise KeyError(f"a 3D convolution at {key}")
    return tensor


def _unet(state: State) -> UNetShape:
    depth = 1 + max((int(k.split(".")[1]) for k in state if k.startswith("down_blocks.")), default=-1)
    channels, res_blocks, attention = [], [], []
    for i in range(depth):
        count = len({k.split(".")[3] for k in state if k.startswith(f"down_blocks.{i}.resnets.")})
        channels.append(_find(state, f"down_blocks.{i}.resnets.0.conv1.conv.weight").shape[0])
        res_blocks.append(count)
        attention.append(any(k.startswith(f"down_blocks.{i}.attentions.") for k in state))
    blocks = "middle_block.attention.transformer_blocks."
    layers = len({k.split(".")[3] for k in state if k.startswith(blocks)})
    return UNetShape(
        in_channels=_find(state, "conv_in.conv.weight").shape[1],
        out_channels=_find(state, "out.2.conv.weight").shape[0],
        channels=tuple(channels),
        res_blocks=tuple(res_blocks),
        attention=tuple(attention),
        updown="down_blocks.0.downsampler.conv1.conv.weight" in state,
        context=state[f"{blocks}0.attn2.to_k.weight"].shape[1] if layers else 0,
        layers=layers,
        classes=state["class_embedding.weight"].shape[0] if "class_embedding.weight" in state else 0,
        regions="top_region_index_layer.0.weight" in state,
        spacing="spacing_layer.0.weight" in state,
        projected=any(".out_proj." in k or ".to_out." in k for k in state),
    )
