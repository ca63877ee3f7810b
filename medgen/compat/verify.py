"""Whether two networks say the same of the same input."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from medgen.compat.originals import load_strictly
from medgen.compat.source import State
from medgen.errors import InputError
from medgen.models import published_kl
from medgen.models.published_kl import PublishedKL

TOLERANCE = 1e-5


def difference(original: torch.Tensor, ours: torch.Tensor, what: str, path: Path) -> float:
    """Largest difference, in units of the original's largest output where that is above 1.

    Args:
        original: output of the network that the weights were trained in.
        ours: of medgen's.
        what: the network, for the message.
        path: its weights.

    Raises:
        InputError: above :data:`TOLERANCE`, or not finite.
    """
    assert original.shape == ours.shape, f"{tuple(original.shape)} against {tuple(ours.shape)}"
    if not bool(torch.isfinite(original).all()):
        raise InputError(f"{path}: the {what} gives values that are not finite; the weights are damaged")
    found = float((original - ours).abs().max()) / max(1.0, float(original.abs().max()))
    if not found <= TOLERANCE:
        raise InputError(
            f"{path}: the original {what} and medgen's differ by {found:.1e} on the same input, where {TOLERANCE:g} is "
            "allowed, so nothing was written; give the layout and --config that belong to these weights"
        )
    return found


def random_input(*shape: int) -> torch.Tensor:
    """The same standard normal numbers each time."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def codec_difference(original: Any, ours: PublishedKL, path: Path) -> float:
    """Of posterior and decoded image, on random images in [0, 1]."""
    # Two latents along each axis: attention over a single one would hide every mistake in it.
    image = random_input(1, ours.image_channels, *[2 * ours.stride] * 3).sigmoid()
    with torch.no_grad():
        mean, deviation = original.encode(image)
        posterior = ours.encode(2.0 * image - 1.0, None)
        decoded = original.decode(mean)
        pairs = (
            (mean, posterior.mean),
            (deviation, (0.5 * posterior.logvar).exp()),
            (decoded, (ours.decode(mean).image + 1.0) / 2.0),
        )
    return max(difference(a, b, "autoencoder", path) for a, b in pairs)


def verified_codec(
    original: Any, image_channels: int, options: Mapping[str, Any], state: State, path: Path
) -> tuple[State, float]:
    """Our codec's weights from a file's, by our names, and its difference to the original.

    Args:
        original: the network that the weights were trained in, with them.
        image_channels: C.
        options: of :func:`medgen.models.published_kl.build`.
        state: the file's weights, renamed where the layout is older than ours.
        path: of the file.
    """
    with torch.device("meta"):
        ours = published_kl.build(image_channels, 0, **options)
    load_strictly(ours, {f"net.{key}": t for key, t in state.items()}, path)
    return ours.state_dict(), codec_difference(original, ours, path)
