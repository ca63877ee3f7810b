"""What the layouts share: options of codec, process and heads, from shapes and a bundle's configuration."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from medgen.compat.bundle import Declared, agree, told
from medgen.compat.shapes import AutoencoderShape, UNetShape
from medgen.errors import InputError

_SCHEDULES = {
    "scaled_linear": "scaled_linear",
    "scaled_linear_beta": "scaled_linear",
    "linear": "linear",
    "linear_beta": "linear",
}
_PREDICTIONS = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}


def vp_options(declared: Declared, beta_start: float, beta_end: float) -> dict[str, Any]:
    """Options of the process ``vp``, sampled at the timesteps that MONAI Generative visits: 980, 960, ..., 0 for 50.

    MONAI 1.6 visits 999, 979, ..., 0, where the published models were never sampled.

    Args:
        declared: the configuration.
        beta_start: as published, where the configuration says nothing.
        beta_end: likewise.

    Raises:
        InputError: a schedule or prediction that is not known.
    """
    schedule = told(declared, "scheduler", "beta_schedule", told(declared, "scheduler", "schedule", "scaled_linear"))
    prediction = told(declared, "scheduler", "prediction_type", "epsilon")
    if schedule not in _SCHEDULES or prediction not in _PREDICTIONS:
        raise InputError(f"{declared.path}: the schedule '{schedule}' with '{prediction}' is not known; mend it")
    return {
        "schedule": _SCHEDULES[schedule],
        "beta_start": told(declared, "scheduler", "beta_start", beta_start),
        "beta_end": told(declared, "scheduler", "beta_end", beta_end),
        "timesteps": told(declared, "scheduler", "num_train_timesteps", 1000),
        "prediction": _PREDICTIONS[prediction],
        "min_snr": 0.0,
        "spacing": "leading",
    }


def codec_options(
    shape: AutoencoderShape, declared: Declared, path: Path, variant: str = "monai"
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Options of the codec ``published_kl`` and of the original network.

    Raises:
        InputError: the configuration contradicts the weights, or something that is not supported.
    """
    original = {
        "in_channels": shape.image_channels,
        "out_channels": shape.image_channels,
        "num_channels": shape.channels,
        "latent_channels": shape.latent_channels,
        "num_res_blocks": shape.res_blocks,
        "attention_levels": shape.attention,
        "with_encoder_nonlocal_attn": shape.encoder_attention,
        "with_decoder_nonlocal_attn": shape.decoder_attention,
        "use_convtranspose": False,
    }
    core = {"channels": shape.channels}  # MONAI core's word for num_channels
    agree(declared, "autoencoder", {**original, **core}, path)
    groups = told(declared, "autoencoder", "norm_num_groups", 32)
    epsilon = float(told(declared, "autoencoder", "norm_eps", 1e-6))
    groups_fit(shape.channels, groups, path)
    options = {
        "variant": variant,
        "channels": list(shape.channels),
        "latent_channels": shape.latent_channels,
        "res_blocks": list(shape.res_blocks),
        "attention": list(shape.attention),
        "encoder_attention": shape.encoder_attention,
        "decoder_attention": shape.decoder_attention,
        "include_fc": shape.projected,
        "norm_groups": groups,
        "norm_eps": epsilon,
    }
    return options, {**original, "norm_num_groups": groups, "norm_eps": epsilon}


def groups_fit(channels: Sequence[int], groups: int, path: Path) -> None:
    """Stop where the norms' groups do not divide the widths.

    Raises:
        InputError: names the widths and --config.
    """
    if groups < 1 or any(c % groups for c in channels):
        raise InputError(
            f"{path} has widths {list(channels)}, which {groups} groups of the norms do not divide; "
            "give the configuration that says norm_num_groups with --config"
        )


def heads_fit(heads: tuple[int, ...], shape: UNetShape, path: Path) -> tuple[int, ...]:
    """Widths of the heads, checked; the deepest level always attends, in the middle block.

    Raises:
        InputError: a width that does not divide its level.
    """
    attends = (*shape.attention[:-1], True)
    if any(a and (h < 1 or c % h) for h, c, a in zip(heads, shape.channels, attends, strict=True)):
        raise InputError(
            f"{path} has widths {list(shape.channels)}, which heads of {list(heads)} do not divide; "
            "give the configuration that says num_head_channels with --config"
        )
    return heads
