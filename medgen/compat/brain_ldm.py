"""The brain LDM of MONAI Generative: an AutoencoderKL and a UNet with hybrid conditioning.

Pinaya et al. 2022, arXiv:2209.07162.

The published bundle: 160 x 224 x 160 voxels of 1 mm, latents of 3 x 20 x 28 x 20; gender, age, ventricular and brain
volume, each in [0, 1], both as constant channels and as one token of context; eps prediction over 1000 timesteps with
scaled-linear betas from 0.0015 to 0.0205, sampled by DDIM at timesteps 980, 960, ..., 0; no latent scale.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medgen.cohort.schema import Covariate, Schema
from medgen.compat.bundle import Declared, agree, per_level, read_bundle, told
from medgen.compat.imported import Imported, latent_grid, uniform_joint
from medgen.compat.options import codec_options, groups_fit, heads_fit, vp_options
from medgen.compat.originals import generative_autoencoder, generative_unet, load_strictly
from medgen.compat.rename import renamed
from medgen.compat.shapes import UNetShape, autoencoder_shape, unet_shape
from medgen.compat.source import Source, State
from medgen.compat.verify import difference, random_input, verified_codec
from medgen.errors import InputError
from medgen.models import hybrid_unet, published_kl
from medgen.models.condition import Condition
from medgen.prepare.grid import GeometryRecord, Grid
from medgen.prepare.intensity import IntensityRecord

SHAPE = (160, 224, 160)
# The bundle's words and a suffix: a column `age` of 0.3 would be read as years, and a `gender` of 0 as a sex.
COLUMNS = ("gender_01", "age_01", "ventricular_vol_01", "brain_vol_01")
STEPS = 50
# The bundle's own writer: it cuts 5, 5 and 5 voxels off the low ends and 5, 5 and 15 off the high ones, and calls
# what is left a grid that runs from right to left.
_CUT_LOW, _CUT_HIGH = (5, 5, 0), (5, 5, 15)
_WRITTEN = np.array([[-1.0, 0, 0, 96.48149872], [0, 1.0, 0, -141.47715759], [0, 0, 1.0, -156.55375671], [0, 0, 0, 1.0]])
_NOTES = (
    "`gender_01` has the levels 0 and 1 of the source, which does not say which is which (UK Biobank codes 0 female, "
    "1 male); the other three are scaled to [0, 1] over the source's training cases, whose ranges it does not give.",
    "The source publishes no joint distribution: what is not asked for is drawn evenly over [0, 1], each by itself.",
    "The model has no unconditional part: guidance other than 1 is refused.",
    "The source trained on 31,740 T1-weighted scans of UK Biobank, rigidly registered to MNI space, 1 mm. "
    "Intensities are written as 0 to 255.",
)


def convert(
    source: Source,
    *,
    config: Path | None = None,
    shape: Sequence[int] = SHAPE,
    scale_factor: float = 0.0,
) -> Imported:
    """Convert.

    Args:
        source: the two networks' weights.
        config: the bundle's ``inference.json``; without it, what shapes do not tell is as published.
        shape: voxels of the model's grid.
        scale_factor: latents are multiplied by it; 0 takes the file's, or 1.

    Raises:
        InputError: weights of another layout, a configuration that contradicts them, or outputs that differ from the
            original networks'.
    """
    declared = read_bundle(config)
    codec = autoencoder_shape(source.autoencoder, source.autoencoder_file)
    unet = unet_shape(source.network, source.network_file)
    if unet.context != len(COLUMNS) or unet.in_channels != unet.out_channels + len(COLUMNS):
        raise InputError(
            f"{source.network_file} is not a brain LDM: its UNet takes {unet.in_channels} channels and tokens of "
            f"{unet.context}, where {unet.out_channels} + {len(COLUMNS)} and {len(COLUMNS)} were expected; "
            "give another --layout"
        )
    if unet.out_channels != codec.latent_channels:
        raise InputError(
            f"{source.network_file} makes latents of {unet.out_channels} channels, but {source.autoencoder_file} "
            f"decodes {codec.latent_channels}; give two files of one model"
        )
    schema = _schema()
    codec_own, codec_original = codec_options(codec, declared, source.autoencoder_file)
    unet_own, unet_original = _unet_options(unet, declared, source.network_file)
    stride = published_kl.stride(channels=codec.channels)
    extents = latent_grid(shape, stride, hybrid_unet.factor(channels=unet.channels))
    codec_state, codec_differs = _codec(codec_own, codec_original, source.autoencoder, source.autoencoder_file)
    unet_state, unet_differs = _unet(unet_own, unet_original, schema, source.network, source.network_file)
    grid = (int(shape[0]), int(shape[1]), int(shape[2]))
    return Imported(
        name="brain_ldm",
        channels=("T1w",),
        shape=grid,
        latent_shape=(codec.latent_channels, *extents),
        codec=("published_kl", codec_own),
        network=("hybrid_unet", unet_own),
        process=("vp", vp_options(declared, 0.0015, 0.0205)),
        sampling={"sampler": "euler", "options": {}, "steps": STEPS, "guidance": 1.0},
        schema=schema,
        joint=uniform_joint(schema),
        scale_factor=scale_factor or source.scale_factor or 1.0,
        geometry=_geometry(grid),
        intensity=(IntensityRecord(lo=0.0, hi=255.0, integer=True, borrowed=True),),
        codec_state=codec_state,
        network_state=unet_state,
        differences={"autoencoder": codec_differs, "UNet": unet_differs},
        notes=_NOTES,
    )


def _schema() -> Schema:
    numbers = (Covariate(name, "continuous", minimum=0.0, maximum=1.0) for name in COLUMNS[1:])
    return Schema((Covariate(COLUMNS[0], "categorical", levels=("0", "1")), *numbers))


def _geometry(shape: tuple[int, int, int]) -> GeometryRecord:
    """The bundle's grid and cut in RAS+; for another shape the same directions about the world's origin."""
    if shape != SHAPE:
        affine = np.diag([-1.0, 1.0, 1.0, 1.0])
        affine[:3, 3] = -affine[:3, :3] @ (np.array(shape) - 1) / 2
        grid = Grid(shape, affine)
        return GeometryRecord(grid.ras(), grid, np.eye(4))
    low, high = np.array(_CUT_LOW), np.array(_CUT_HIGH)
    affine = _WRITTEN.copy()
    affine[:3, 3] -= affine[:3, :3] @ low
    x, y, z = (int(n) for n in np.array(shape) - low - high)
    return GeometryRecord(Grid((x, y, z), _WRITTEN).ras(), Grid(shape, affine), np.eye(4))


def _unet_options(shape: UNetShape, declared: Declared, path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Options of our network and of the original."""
    original: dict[str, Any] = {
        "in_channels": shape.in_channels,
        "out_channels": shape.out_channels,
        "num_channels": shape.channels,
        "num_res_blocks": shape.res_blocks,
        "attention_levels": shape.attention,
        "resblock_updown": shape.updown,
        "with_conditioning": True,
        "transformer_num_layers": shape.layers,
        "cross_attention_dim": shape.context,
        "num_class_embeds": None,
    }
    agree(declared, "network", {**original, "channels": shape.channels}, path)
    groups = told(declared, "network", "norm_num_groups", 32)
    groups_fit(shape.channels, groups, path)
    # As published: one head a level, as wide as the level.
    one_head = [c if a else 0 for c, a in zip(shape.channels, shape.attention, strict=True)]
    heads = heads_fit(per_level(declared, "num_head_channels", one_head, path), shape, path)
    own = {
        "norm_num_groups": groups,
        "norm_eps": float(told(declared, "network", "norm_eps", 1e-6)),
        "num_head_channels": heads,
        "upcast_attention": told(declared, "network", "upcast_attention", True),
    }
    options = {
        "channels": list(shape.channels),
        "attention": list(shape.attention),
        "res_blocks": list(shape.res_blocks),
        "head_channels": list(heads),
        "norm_groups": groups,
        "norm_eps": own["norm_eps"],
        "updown": shape.updown,
        "transformer_layers": shape.layers,
        "upcast": own["upcast_attention"],
    }
    return options, {**original, **own}


def _codec(
    options: Mapping[str, Any], original_options: Mapping[str, Any], state: State, path: Path
) -> tuple[State, float]:
    original = generative_autoencoder(original_options, state, path)
    return verified_codec(original, original_options["in_channels"], options, renamed(state), path)


def _unet(
    options: Mapping[str, Any], original_options: Mapping[str, Any], schema: Schema, state: State, path: Path
) -> tuple[State, float]:
    original = generative_unet(original_options, state, path)
    with torch.device("meta"):
        ours = hybrid_unet.build(original_options["out_channels"], schema, **options)
    load_strictly(ours, {f"unet.{key}": t for key, t in renamed(state).items()}, path)
    extent = 2 * ours.factor
    x = random_input(2, original_options["out_channels"], extent, extent, extent)
    values = torch.tensor([[0.0, 0.1, 0.2, 0.4], [1.0, 0.7, 0.6, 0.5]])
    steps = torch.tensor([980, 20])
    with torch.no_grad():
        channels = values[:, :, None, None, None].expand(-1, -1, extent, extent, extent)
        expected = original(torch.cat([x, channels], dim=1), timesteps=steps, context=values[:, None])
        cond = Condition(schema.names, values, torch.ones_like(values, dtype=torch.bool))
        found = ours(x, steps / 1000.0, cond)
    return ours.state_dict(), difference(expected, found, "UNet", path)
