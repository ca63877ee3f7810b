"""MAISI's network: MONAI's DiffusionModelUNetMaisi, told body region, modality and voxel size.

Guo et al. 2024, arXiv:2409.11169. Made by ``medgen model import``. The voxel size is an option and no covariate: it is
the model's grid, and what is written to the header must be what the network was told.
"""

from collections.abc import Sequence

import torch
from monai.apps.generation.maisi.networks.diffusion_model_unet_maisi import DiffusionModelUNetMaisi
from torch import nn

from medgen.cohort.schema import Schema
from medgen.errors import InputError
from medgen.models.condition import Condition
from medgen.models.hybrid_unet import NO_NULL, timesteps

REGION_COLUMNS = ("top_region", "bottom_region")
REGIONS = ("head", "chest", "abdomen", "pelvis")
MODALITY_COLUMN = "modality"
# The published models take regions as one-hot vectors and voxel sizes in mm, both times 100.
_SCALE = 100.0
_UNKNOWN = 0


class MaisiUNet(nn.Module):
    """Latent, time and conditions -> prediction of the same shape as the latent.

    A missing modality is the published class 0, "unknown"; a missing body region has no such class.
    """

    def __init__(
        self,
        unet: DiffusionModelUNetMaisi,
        columns: tuple[str, ...],
        levels: int,
        spacing_mm: tuple[float, ...],
        codes: tuple[int, ...],
        negate: bool,
    ) -> None:
        super().__init__()
        self.unet = unet
        self.columns, self.codes, self.spacing_mm, self.negate = columns, codes, spacing_mm, negate
        self.without_null = REGION_COLUMNS if unet.include_top_region_index_input else ()
        self.factor = 2 ** (levels - 1)

    def forward(self, x: torch.Tensor, time: torch.Tensor, cond: Condition) -> torch.Tensor:
        """Predict for latents (B, C, X, Y, Z) at times (B,) in [0, 1].

        Raises:
            InputError: a body region is missing, as it is in the unconditional pass of guidance.
        """
        told: dict[str, torch.Tensor] = {}
        if self.unet.include_top_region_index_input:
            for key, name in zip(("top", "bottom"), REGION_COLUMNS, strict=True):
                k = self.columns.index(name)
                # Costs are counted on tensors without values, which are of another type.
                if type(cond.present) is torch.Tensor and not bool(cond.present[:, k].all()):
                    raise InputError(NO_NULL.format(columns=" and ".join(REGION_COLUMNS)))
                onehot = nn.functional.one_hot(cond.values[:, k].long(), len(REGIONS))
                told[f"{key}_region_index_tensor"] = _SCALE * onehot.to(x.dtype)
        if self.unet.include_spacing_input:
            told["spacing_tensor"] = _SCALE * x.new_tensor(self.spacing_mm).expand(x.shape[0], 3)
        if self.unet.num_class_embeds is not None:
            k = self.columns.index(MODALITY_COLUMN)
            codes = torch.tensor(self.codes, device=x.device)[cond.values[:, k].long().clamp(0, len(self.codes) - 1)]
            told["class_labels"] = torch.where(cond.present[:, k], codes, _UNKNOWN)
        out = self.unet(x, timesteps(time), **told)
        return -out if self.negate else out


def factor(*, channels: Sequence[int] = (64, 128, 256, 512)) -> int:
    """The multiple that each latent axis must have."""
    return int(2 ** (len(channels) - 1))


def build(
    latent_channels: int,
    schema: Schema,
    *,
    channels: Sequence[int] = (64, 128, 256, 512),
    attention: Sequence[bool] = (False, False, True, True),
    res_blocks: Sequence[int] = (2, 2, 2, 2),
    head_channels: Sequence[int] = (0, 0, 32, 32),
    norm_groups: int = 32,
    norm_eps: float = 1e-6,
    updown: bool = True,
    include_fc: bool = True,
    regions: bool = False,
    spacing_mm: Sequence[float] = (),
    classes: int = 0,
    codes: Sequence[int] = (),
    negate: bool = False,
) -> MaisiUNet:
    """Build the network.

    Args:
        latent_channels: C of the latents.
        schema: ``top_region`` and ``bottom_region`` where ``regions``, ``modality`` where ``classes``.
        channels: width of each level.
        attention: which levels attend to themselves.
        res_blocks: residual blocks of each level.
        head_channels: width of an attention head on each level; not read where a level does not attend.
        norm_groups: groups of each GroupNorm.
        norm_eps: epsilon of each GroupNorm.
        updown: residual blocks between levels in place of plain convolutions.
        include_fc: a linear layer behind each attention.
        regions: told the body regions of the volume's top and bottom.
        spacing_mm: voxel size that the network is told; empty for a network that is not.
        classes: size of the modality table, 0 for none.
        codes: the published class of each level of ``modality``.
        negate: the network was trained to predict data - noise (MONAI's rectified flow), where the process wants
            noise - data.

    Raises:
        InputError: a column that is not in the schema, or widths that do not fit each other.
    """
    levels = len(channels)
    if not levels == len(attention) == len(res_blocks) == len(head_channels) or any(c % norm_groups for c in channels):
        raise InputError(
            f"models 'maisi_unet': channels {list(channels)}, attention, res_blocks and head_channels need one entry "
            f"a level each, and channels must be multiples of norm_groups {norm_groups}"
        )
    wanted = (*(REGION_COLUMNS if regions else ()), *((MODALITY_COLUMN,) if classes else ()))
    if set(wanted) != set(schema.names):
        raise InputError(
            f"models 'maisi_unet' with these options is told {', '.join(wanted) or 'no covariate'}, "
            f"but the covariates are {', '.join(schema.names) or 'none'}"
        )
    if classes and (len(codes) != len(schema[MODALITY_COLUMN].levels) or any(not 0 <= c < classes for c in codes)):
        raise InputError(f"models 'maisi_unet' needs one code below {classes} for each level of modality")
    unet = DiffusionModelUNetMaisi(
        spatial_dims=3,
        in_channels=latent_channels,
        out_channels=latent_channels,
        num_res_blocks=tuple(res_blocks),
        num_channels=tuple(channels),
        attention_levels=tuple(attention),
        norm_num_groups=norm_groups,
        norm_eps=norm_eps,
        resblock_updown=updown,
        num_head_channels=tuple(head_channels),
        num_class_embeds=classes or None,
        include_fc=include_fc,
        use_flash_attention=torch.cuda.is_available(),  # MONAI's network refuses it elsewhere
        include_top_region_index_input=regions,
        include_bottom_region_index_input=regions,
        include_spacing_input=bool(spacing_mm),
    )
    return MaisiUNet(unet, schema.names, levels, tuple(spacing_mm), tuple(codes), negate)
