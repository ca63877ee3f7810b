"""The networks that published weights were trained in, to be run beside ours at import.

They are built on the meta device, without memory, and take the file's tensors as their own.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from medgen.compat.source import State
from medgen.errors import InputError


def load_strictly(module: nn.Module, state: State, path: Path) -> nn.Module:
    """Give a module the tensors of a file: every name and shape must be there, and no other.

    Raises:
        InputError: names the first tensor that is missing, left over or of another shape.
    """
    expected = {key: tuple(t.shape) for key, t in module.state_dict().items()}
    missing, extra = [k for k in expected if k not in state], [k for k in state if k not in expected]
    for names, word in ((missing, "lacks"), (extra, "has also")):
        if names:
            more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
            raise InputError(
                f"{path} {word} {names[0]}{more}, which does not fit the network that its other weights make; "
                "give the published file as it is, or the layout and --config that belong to it"
            )
    for key, shape in expected.items():
        if tuple(state[key].shape) != shape:
            raise InputError(
                f"{path} has {key} of shape {list(state[key].shape)}, where its other weights make it {list(shape)}; "
                "give the layout and --config that belong to it"
            )
    module.load_state_dict(state, strict=True, assign=True)
    return module.eval().requires_grad_(False)


def generative_autoencoder(options: Mapping[str, Any], state: State, path: Path) -> nn.Module:
    """MONAI Generative's AutoencoderKL with the weights of a file."""
    from generative.networks.nets import AutoencoderKL

    with torch.device("meta"):
        net = AutoencoderKL(spatial_dims=3, **options)
    return load_strictly(net, state, path)


def generative_unet(options: Mapping[str, Any], state: State, path: Path) -> nn.Module:
    """MONAI Generative's DiffusionModelUNet with the weights of a file."""
    from generative.networks.nets import DiffusionModelUNet

    with torch.device("meta"):
        net = DiffusionModelUNet(spatial_dims=3, **options)
    return load_strictly(net, state, path)


def maisi_autoencoder(options: Mapping[str, Any], state: State, path: Path) -> nn.Module:
    """MONAI's AutoencoderKlMaisi with the weights of a file."""
    from monai.apps.generation.maisi.networks.autoencoderkl_maisi import AutoencoderKlMaisi

    with torch.device("meta"):
        net = AutoencoderKlMaisi(spatial_dims=3, save_mem=False, **options)
    return load_strictly(net, state, path)


def maisi_unet(options: Mapping[str, Any], state: State, path: Path) -> nn.Module:
    """MONAI's DiffusionModelUNetMaisi with the weights of a file."""
    from monai.apps.generation.maisi.networks.diffusion_model_unet_maisi import DiffusionModelUNetMaisi

    with torch.device("meta"):
        net = DiffusionModelUNetMaisi(spatial_dims=3, **options)
    return load_strictly(net, state, path)
