"""The brain LDM's network: MONAI's DiffusionModelUNet told its covariates twice, as channels and as context.

Pinaya et al. 2022, arXiv:2209.07162, section 2.2: the K covariates are K constant channels beside the latent, and one
token of K numbers for the cross-attention. Made by ``medgen model import``.
"""

from collections.abc import Sequence

import torch
from monai.networks.nets import DiffusionModelUNet
from torch import nn

from medgen.cohort.schema import Schema
from medgen.errors import InputError
from medgen.models.condition import Condition

_NEAR = 1e-3


class HybridUNet(nn.Module):
    """Latent, time and K covariates -> prediction of the same shape as the latent.

    The covariates reach the network as numbers as they are: the model's condition encoder must neither centre nor
    scale them. There is no null: the published models were trained with all covariates in every step.
    """

    def __init__(self, unet: DiffusionModelUNet, columns: tuple[str, ...], levels: int) -> None:
        super().__init__()
        self.unet = unet
        self.columns = self.without_null = columns
        self.factor = 2 ** (levels - 1)

    def forward(self, x: torch.Tensor, time: torch.Tensor, cond: Condition) -> torch.Tensor:
        """Predict for latents (B, C, X, Y, Z) at times (B,) in [0, 1].

        Raises:
            InputError: a covariate is missing, as it is in the unconditional pass of guidance.
        """
        # Costs are counted on tensors without values, which are of another type.
        if type(cond.present) is torch.Tensor and not bool(cond.present.all()):
            raise InputError(NO_NULL.format(columns=", ".join(self.columns)))
        values = cond.values.to(x.dtype)
        channels = values[:, :, None, None, None].expand(-1, -1, *x.shape[2:])
        return self.unet(torch.cat([x, channels], dim=1), timesteps(time), context=values[:, None])


NO_NULL = (
    "this published model was trained with all of {columns} in every step and has no unconditional part; "
    "use guidance 1 and ask for every covariate"
)


def timesteps(time: torch.Tensor) -> torch.Tensor:
    """Times in [0, 1] as timesteps of 0 to 1000, whole where they are meant to be.

    980 / 1000 * 1000 is 980.00006 in float32, and the fastest wave of the timestep embedding would show it.
    """
    t = 1000.0 * time
    return torch.where((t - t.round()).abs() < _NEAR, t.round(), t)


def factor(*, channels: Sequence[int] = (256, 512, 768)) -> int:
    """The multiple that each latent axis must have."""
    return int(2 ** (len(channels) - 1))


def build(
    latent_channels: int,
    schema: Schema,
    *,
    channels: Sequence[int] = (256, 512, 768),
    attention: Sequence[bool] = (False, True, True),
    res_blocks: Sequence[int] = (2, 2, 2),
    head_channels: Sequence[int] = (0, 512, 768),
    norm_groups: int = 32,
    norm_eps: float = 1e-6,
    updown: bool = True,
    transformer_layers: int = 1,
    upcast: bool = True,
) -> HybridUNet:
    """Build the network; the defaults are the brain LDM's.

    Args:
        latent_channels: C of the latents.
        schema: the K covariates.
        channels: width of each level.
        attention: which levels attend, to themselves and to the covariates.
        res_blocks: residual blocks of each level.
        head_channels: width of an attention head on each level; not read where a level does not attend.
        norm_groups: groups of each GroupNorm.
        norm_eps: epsilon of each GroupNorm.
        updown: residual blocks between levels in place of plain convolutions.
        transformer_layers: transformer blocks at each attention.
        upcast: attention scores in float32.

    Raises:
        InputError: no covariate, or widths that do not fit each other.
    """
    levels = len(channels)
    if not schema.covariates:
        raise InputError("models 'hybrid_unet' needs at least one covariate; the model folder names none")
    if not levels == len(attention) == len(res_blocks) == len(head_channels) or any(c % norm_groups for c in channels):
        raise InputError(
            f"models 'hybrid_unet': channels {list(channels)}, attention, res_blocks and head_channels need one entry "
            f"a level each, and channels must be multiples of norm_groups {norm_groups}"
        )
    unet = DiffusionModelUNet(
        spatial_dims=3,
        in_channels=latent_channels + len(schema.covariates),
        out_channels=latent_channels,
        num_res_blocks=tuple(res_blocks),
        channels=tuple(channels),
        attention_levels=tuple(attention),
        norm_num_groups=norm_groups,
        norm_eps=norm_eps,
        resblock_updown=updown,
        num_head_channels=tuple(head_channels),
        with_conditioning=True,
        transformer_num_layers=transformer_layers,
        cross_attention_dim=len(schema.covariates),
        upcast_attention=upcast,
        include_fc=True,  # the transformer's output projection, which the original applies
    )
    return HybridUNet(unet, schema.names, levels)
