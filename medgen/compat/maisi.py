"""MAISI: the VAE and UNet of MONAI core's ``apps.generation.maisi`` (Guo et al. 2024, arXiv:2409.11169).

Two generations are published. ``maisi3d-ddpm`` is told the body regions of the volume's top and bottom and the voxel
size; eps prediction, scaled-linear betas from 0.0015 to 0.0195, sampled by 1000 ancestral steps. ``maisi3d-rflow`` is
told modality and voxel size; rectified flow in MONAI's direction (data - noise), 30 Euler steps with times shifted by
the latent's size. Which one a file holds is read from its weights, or from the configuration.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medgen.cohort.schema import Covariate, Schema, Value
from medgen.compat.bundle import Declared, agree, per_level, read_bundle, told
from medgen.compat.imported import Imported, latent_grid, uniform_joint
from medgen.compat.options import codec_options, groups_fit, heads_fit, vp_options
from medgen.compat.originals import load_strictly, maisi_autoencoder, maisi_unet
from medgen.compat.shapes import UNetShape, autoencoder_shape, unet_shape
from medgen.compat.source import Source, State
from medgen.compat.verify import difference, random_input, verified_codec
from medgen.errors import InputError
from medgen.models import maisi_unet as network
from medgen.models import published_kl
from medgen.models.condition import Condition
from medgen.prepare.grid import GeometryRecord, Grid
from medgen.prepare.intensity import IntensityRecord

# The published classes; 0 is "unknown".
MODALITIES = {"ct": 1, "ct_wo_contrast": 2, "ct_contrast": 3, "mri": 8, "mri_t1": 9, "mri_t2": 10, "mri_flair": 11}
MODALITIES |= {"mri_pd": 12, "mri_dwi": 13, "mri_adc": 14, "mri_ssfp": 15, "mri_mra": 16}
_CHANNELS = {"mri_t1": "T1w", "mri_t2": "T2w", "mri_flair": "FLAIR", "mri_pd": "PDw"}
_RANGES = {"ct": (-1000.0, 1000.0), "mri": (0.0, 1000.0)}
_BASE_LATENTS = 32**3
FLOW_STEPS, DDPM_STEPS = 30, 1000


def convert(
    source: Source,
    *,
    config: Path | None = None,
    shape: Sequence[int] = (256, 256, 256),
    spacing_mm: Sequence[float] = (1.5, 1.5, 2.0),
    modality: Sequence[str] = ("ct",),
    scale_factor: float = 0.0,
) -> Imported:
    """Convert.

    Args:
        source: the two networks' weights.
        config: ``config_maisi3d-ddpm.json`` or ``-rflow.json``; without it, what shapes do not tell is as published.
        shape: voxels of the model's grid.
        spacing_mm: their size, which the network is told too.
        modality: what can be asked for, of a network that is told it; all CT or all MRI.
        scale_factor: latents are multiplied by it; 0 takes the file's.

    Raises:
        InputError: weights of another layout, a configuration that contradicts them, no scale factor, or outputs that
            differ from the original networks'.
    """
    declared = read_bundle(config)
    codec = autoencoder_shape(source.autoencoder, source.autoencoder_file)
    unet = unet_shape(source.network, source.network_file)
    if unet.context or unet.in_channels != unet.out_channels or unet.out_channels != codec.latent_channels:
        raise InputError(
            f"{source.network_file} and {source.autoencoder_file} are not a MAISI model: the UNet takes "
            f"{unet.in_channels} channels and makes {unet.out_channels}, the autoencoder decodes "
            f"{codec.latent_channels}, and {'a' if unet.context else 'no'} context is read; give another --layout"
        )
    scale = scale_factor or source.scale_factor
    if scale is None:
        raise InputError(f"{source.network_file} holds no scale_factor; give the published one with --scale-factor")
    if any(not 0 < s < float("inf") for s in spacing_mm):
        raise InputError(f"--spacing {' '.join(map(str, spacing_mm))} must be positive; give voxel sizes in mm")
    kind = _modality_kind(modality, unet, source.network_file)
    codec_own, codec_original = codec_options(codec, declared, source.autoencoder_file, "maisi")
    flow = _is_flow(declared, unet)
    unet_own, unet_original = _unet_options(unet, declared, source.network_file, spacing_mm, modality, flow)
    stride = published_kl.stride(channels=codec.channels)
    extents = latent_grid(shape, stride, network.factor(channels=unet.channels))
    schema = _schema(unet, modality)
    codec_state, codec_differs = _codec(codec_own, codec_original, source.autoencoder, source.autoencoder_file)
    unet_state, unet_differs = _unet(unet_own, unet_original, schema, source.network, source.network_file)
    grid = Grid((int(shape[0]), int(shape[1]), int(shape[2])), np.diag([*map(float, spacing_mm), 1.0]))
    low, high = _RANGES[kind]
    return Imported(
        name="maisi_rflow" if flow else "maisi_ddpm",
        channels=(_channel(kind, modality),),
        shape=grid.shape,
        latent_shape=(codec.latent_channels, *extents),
        codec=("published_kl", codec_own),
        network=("maisi_unet", unet_own),
        process=("flow", _flow_options(declared, extents)) if flow else ("vp", vp_options(declared, 0.0015, 0.0195)),
        sampling=_sampling(flow),
        schema=schema,
        joint=uniform_joint(schema, _top_above_bottom),
        scale_factor=scale,
        geometry=GeometryRecord(grid, grid, np.eye(4)),
        intensity=(IntensityRecord(lo=low, hi=high, integer=True, borrowed=True),),
        codec_state=codec_state,
        network_state=unet_state,
        differences={"autoencoder": codec_differs, "UNet": unet_differs},
        notes=_notes(unet, kind),
    )


def _modality_kind(modality: Sequence[str], unet: UNetShape, path: Path) -> str:
    """Whether all modalities are "ct" or all are "mri"."""
    unknown = [m for m in modality if m not in MODALITIES]
    kinds = {m.split("_")[0] for m in modality}
    if unknown or not modality:
        raise InputError(f"--modality is one or more of {', '.join(MODALITIES)}, not '{', '.join(unknown)}'")
    if len(kinds) > 1:
        raise InputError("--modality names CT and MRI, which are written in different units; import one model of each")
    if not unet.classes and tuple(modality) != ("ct",):
        raise InputError(f"{path} is told no modality: it makes CT only; leave --modality out")
    if unet.classes and max(MODALITIES[m] for m in modality) >= unet.classes:
        raise InputError(f"{path} knows {unet.classes} modality classes, too few for {', '.join(modality)}")
    return kinds.pop()


def _channel(kind: str, modality: Sequence[str]) -> str:
    if kind == "ct":
        return "CT"
    return _CHANNELS.get(modality[0], "MR") if len(modality) == 1 else "MR"


def _is_flow(declared: Declared, unet: UNetShape) -> bool:
    """Whether the UNet was trained as a rectified flow: as the configuration says, else by the published pairing."""
    target = told(declared, "scheduler", "_target_", "")
    return "RFlow" in target if target else not unet.regions


def _flow_options(declared: Declared, extents: Sequence[int]) -> dict[str, Any]:
    """MONAI's shift of sampling times: the side of the latent over that of 32 cubed; its scale enters training only."""
    if not told(declared, "scheduler", "use_timestep_transform", True):
        return {}
    base = told(declared, "scheduler", "base_img_size_numel", _BASE_LATENTS)
    return {"shift": float((np.prod(extents) / base) ** (1 / 3))}


def _sampling(flow: bool) -> dict[str, Any]:
    if flow:
        return {"sampler": "euler", "options": {}, "steps": FLOW_STEPS, "guidance": 1.0}
    return {"sampler": "ancestral", "options": {}, "steps": DDPM_STEPS, "guidance": 1.0}


def _schema(unet: UNetShape, modality: Sequence[str]) -> Schema:
    columns = []
    if unet.regions:
        columns += [Covariate(name, "categorical", levels=network.REGIONS) for name in network.REGION_COLUMNS]
    if unet.classes:
        columns.append(Covariate(network.MODALITY_COLUMN, "categorical", levels=tuple(modality)))
    return Schema(tuple(columns))


def _top_above_bottom(row: Mapping[str, Value]) -> bool:
    top, bottom = (row.get(name) for name in network.REGION_COLUMNS)
    return top is None or bottom is None or network.REGIONS.index(str(top)) <= network.REGIONS.index(str(bottom))


def _notes(unet: UNetShape, kind: str) -> tuple[str, ...]:
    notes = ["What is not asked for is drawn evenly over its levels, for the source publishes no joint distribution."]
    if unet.spacing:
        notes.append("The network is told the voxel size; for another grid or voxel size import the weights again.")
    if unet.regions:
        notes.append("`top_region` and `bottom_region` are where the volume ends above and below.")
        notes.append("The model has no unconditional part: guidance other than 1 is refused.")
    unit = "Hounsfield units from -1000 to 1000" if kind == "ct" else "0 to 1000 in no physical unit"
    return (*notes, f"Intensities are written as {unit}.")


def _unet_options(
    shape: UNetShape,
    declared: Declared,
    path: Path,
    spacing_mm: Sequence[float],
    modality: Sequence[str],
    flow: bool,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Options of our network and of the original."""
    original: dict[str, Any] = {
        "in_channels": shape.in_channels,
        "out_channels": shape.out_channels,
        "num_channels": shape.channels,
        "num_res_blocks": shape.res_blocks,
        "attention_levels": shape.attention,
        "resblock_updown": shape.updown,
        "num_class_embeds": shape.classes or None,
        "include_top_region_index_input": shape.regions,
        "include_bottom_region_index_input": shape.regions,
        "include_spacing_input": shape.spacing,
    }
    agree(declared, "network", {**original, "with_conditioning": False}, path)
    groups = told(declared, "network", "norm_num_groups", 32)
    groups_fit(shape.channels, groups, path)
    published = [32 if a else 0 for a in (*shape.attention[:-1], True)]
    heads = heads_fit(per_level(declared, "num_head_channels", published, path), shape, path)
    own = {
        "norm_num_groups": groups,
        "norm_eps": float(told(declared, "network", "norm_eps", 1e-6)),
        "num_head_channels": heads,
        "include_fc": shape.projected,
    }
    options = {
        "channels": list(shape.channels),
        "attention": list(shape.attention),
        "res_blocks": list(shape.res_blocks),
        "head_channels": list(heads),
        "norm_groups": groups,
        "norm_eps": own["norm_eps"],
        "updown": shape.updown,
        "include_fc": shape.projected,
        "regions": shape.regions,
        "spacing_mm": [float(s) for s in spacing_mm] if shape.spacing else [],
        "classes": shape.classes,
        "codes": [MODALITIES[m] for m in modality] if shape.classes else [],
        "negate": flow,
    }
    return options, {**original, **own}


def _codec(
    options: Mapping[str, Any], original_options: Mapping[str, Any], state: State, path: Path
) -> tuple[State, float]:
    # One split and float32 norms: MAISI splits convolutions and halves norms to save memory.
    plain = {"num_splits": 1, "norm_float16": False, "include_fc": options["include_fc"]}
    original = maisi_autoencoder({**original_options, **plain}, state, path)
    return verified_codec(original, original_options["in_channels"], options, state, path)


def _unet(
    options: Mapping[str, Any], original_options: Mapping[str, Any], schema: Schema, state: State, path: Path
) -> tuple[State, float]:
    """Weights, and the difference to the original called as MAISI's own inference script calls it."""
    original = maisi_unet(original_options, state, path)
    with torch.device("meta"):
        ours = network.build(original_options["out_channels"], schema, **options)
    load_strictly(ours, {f"unet.{key}": t for key, t in state.items()}, path)
    extent = 2 * ours.factor
    x = random_input(2, original_options["out_channels"], extent, extent, extent)
    steps = torch.tensor([980, 20])
    values, inputs = torch.zeros(2, len(schema.covariates)), {}
    if options["regions"]:
        values[:, 0], values[:, 1] = torch.tensor([0.0, 2.0]), torch.tensor([1.0, 3.0])
        for k, key in enumerate(("top_region_index_tensor", "bottom_region_index_tensor")):
            inputs[key] = 1e2 * torch.eye(len(network.REGIONS))[values[:, k].long()]
    if options["spacing_mm"]:
        inputs["spacing_tensor"] = 1e2 * torch.tensor([options["spacing_mm"]] * 2)
    if options["classes"]:
        inputs["class_labels"] = torch.tensor([options["codes"][0]] * 2)
    with torch.no_grad():
        expected = original(x, steps, **inputs)
        found = ours(x, steps / 1000.0, Condition(schema.names, values, torch.ones_like(values, dtype=torch.bool)))
    # MONAI's rectified flow runs from data to noise as v = data - noise, and ours the other way.
    return ours.state_dict(), difference(-expected if options["negate"] else expected, found, "UNet", path)
