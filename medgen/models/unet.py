"""MONAI's DiffusionModelUNet behind the ``Network`` seam."""

from collections.abc import Sequence

import torch
from monai.networks.nets import DiffusionModelUNet
from monai.networks.nets.diffusion_model_unet import DiffusionUNetResnetBlock, SpatialTransformer
from torch import nn

from medgen.cohort.schema import Schema
from medgen.errors import InputError
from medgen.models.checkpointing import checkpoint_blocks
from medgen.models.condition import Condition
from medgen.models.embedding import CovariateEmbedding
from medgen.models.mask import MaskInput, MaskStem

_COORDINATES = 9


class ConditionedUNet(nn.Module):
    """Latent, time and covariates -> prediction of the same shape as the latent.

    Each covariate is a token for the cross-attention (Rombach et al. 2022, arXiv:2112.10752), and their summary is
    added to the timestep embedding. MONAI adds ``class_embedding(class_labels)`` there, and so the class table is
    replaced by an identity that takes the summary.
    """

    def __init__(
        self,
        latent_channels: int,
        schema: Schema,
        channels: tuple[int, ...],
        attention: tuple[bool, ...],
        res_blocks: int,
        norm_groups: int,
        head_channels: int,
        token_width: int,
        mask: MaskInput | None = None,
    ) -> None:
        super().__init__()
        self.mask = MaskStem(mask) if mask else None
        self.unet = DiffusionModelUNet(
            spatial_dims=3,
            in_channels=latent_channels + _COORDINATES + (self.mask.width if self.mask else 0),
            out_channels=latent_channels,
            num_res_blocks=res_blocks,
            channels=channels,
            attention_levels=attention,
            norm_num_groups=norm_groups,
            num_head_channels=head_channels,
            with_conditioning=True,
            cross_attention_dim=token_width,
            num_class_embeds=1,
            use_flash_attention=True,
        )
        self.unet.class_embedding = nn.Identity()  # type: ignore[assignment]
        self.covariates = CovariateEmbedding(schema, token_width, 4 * channels[0])
        self.factor = 2 ** (len(channels) - 1)

    def forward(self, x: torch.Tensor, time: torch.Tensor, cond: Condition) -> torch.Tensor:
        """Predict for latents (B, C, X, Y, Z) at times (B,) in [0, 1]."""
        assert all(n % self.factor == 0 for n in x.shape[2:]), (
            f"latent {tuple(x.shape)} is not a multiple of {self.factor}"
        )
        tokens, summary = self.covariates(cond)
        # MONAI's sinusoidal table spans timesteps of 0 to 1000.
        beside = [] if self.mask is None else [self.mask(cond.mask, x).to(x.dtype)]
        x = torch.cat([x, coordinates(x, cond.box).to(x.dtype), *beside], dim=1)
        return self.unet(x, 1000.0 * time, context=tokens, class_labels=summary)


def coordinates(x: torch.Tensor, box: torch.Tensor | None = None) -> torch.Tensor:
    """Where each latent lies, (B, 9, X, Y, Z): along each axis u from -1 to 1, cos(pi u) and cos(2 pi u).

    A convolution sees its place only in the padding at the borders. In pure noise there is nothing else to tell it,
    and that is where the network must place the anatomy that was asked for.

    Args:
        x: (B, C, X, Y, Z).
        box: (B, 3, 2) places of the first and the last latent where ``x`` is a crop (see
            :func:`medgen.models.condition.crop_box`): its channels are those that the whole field has there.
    """
    axes = []
    for axis, extent in enumerate(x.shape[2:]):
        u = torch.linspace(-1.0, 1.0, extent, device=x.device)[None]
        if box is not None:
            low, high = box[:, axis, :1], box[:, axis, 1:]
            u = low + (u + 1.0) / 2.0 * (high - low)
        shape = [-1, 1, 1, 1]
        shape[1 + axis] = extent
        axes += [
            wave.reshape(shape).expand(x.shape[0], *x.shape[2:])
            for wave in (u, (torch.pi * u).cos(), (2 * torch.pi * u).cos())
        ]
    return torch.stack(axes, dim=1)


def factor(*, channels: Sequence[int] = (32, 64, 96)) -> int:
    """The multiple that each latent axis must have."""
    return int(2 ** (len(channels) - 1))


def build(
    latent_channels: int,
    schema: Schema,
    mask: MaskInput | None = None,
    *,
    channels: Sequence[int] = (32, 64, 96),
    attention: Sequence[bool] = (False, False, True),
    res_blocks: int = 1,
    norm_groups: int = 16,
    head_channels: int = 32,
    token_width: int = 64,
    checkpointing: bool = False,
) -> ConditionedUNet:
    """Build the network.

    Args:
        latent_channels: C of the latents.
        schema: the covariates it is conditioned on.
        mask: the masks it follows; None where it follows none.
        channels: width of each level, multiples of ``norm_groups``.
        attention: which levels attend (to themselves and to the covariates).
        res_blocks: residual blocks a level.
        norm_groups: groups of each GroupNorm.
        head_channels: width of an attention head.
        token_width: width of a covariate's token.
        checkpointing: compute activations again in the backward pass: less memory, a third more time.

    Raises:
        InputError: widths that do not fit each other.
    """
    if len(channels) != len(attention):
        raise InputError(
            f"diffusion.network_options: channels {list(channels)} and attention {list(attention)} differ in length"
        )
    if any(c % norm_groups for c in channels):
        raise InputError(
            f"diffusion.network_options: channels {list(channels)} must be multiples of norm_groups {norm_groups}"
        )
    network = ConditionedUNet(
        latent_channels,
        schema,
        tuple(channels),
        tuple(attention),
        res_blocks,
        norm_groups,
        head_channels,
        token_width,
        mask,
    )
    if checkpointing:
        checkpoint_blocks(network.unet, DiffusionUNetResnetBlock, SpatialTransformer)
    return network
