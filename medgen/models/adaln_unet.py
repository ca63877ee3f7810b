"""A denoiser for small latents: a convolutional U-Net whose norms carry time and covariates.

Residual blocks are modulated by adaptive layer norm (Peebles & Xie 2023, arXiv:2212.09748: adaLN-Zero), which reaches
every voxel of every block where cross-attention reaches only the levels that have it. Norms are taken over channels
alone and channels lie last in memory, extents are halved by Haar transforms, and attention stands at the last level
only, over all its voxels and the covariates' tokens together (Hoogeboom et al. 2023, arXiv:2301.11093, put their
capacity at the lowest resolution for the same reason: there it is cheap).
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn

from medgen.cohort.schema import Schema
from medgen.errors import InputError
from medgen.models.checkpointing import checkpoint_blocks
from medgen.models.condition import Condition
from medgen.models.embedding import CovariateEmbedding
from medgen.models.mask import MaskInput, MaskStem
from medgen.models.unet import coordinates
from medgen.models.wavelet import Analysis, Synthesis, channels_last

_COORDINATES = 9
_FREQUENCIES = 64


def _norm(x: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """Layer norm over channels of (B, C, X, Y, Z), then scale and shift (B, C) of each row."""
    last = x.movedim(1, -1)
    last = F.layer_norm(last, last.shape[-1:])
    return (last * (1 + scale[:, None, None, None]) + shift[:, None, None, None]).movedim(-1, 1)


class ModulatedBlock(nn.Module):
    """Residual block of two convolutions; each norm has its scale and shift, the sum its gate, from the embedding."""

    def __init__(self, channels: int, embedding: int, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.modulation = nn.Linear(embedding, 5 * channels)
        self.conv1 = nn.Conv3d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv3d(channels, channels, 3, padding=1)
        _no_modulation(self.modulation)

    def forward(self, x: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
        """(B, C, X, Y, Z), (B, E) to (B, C, X, Y, Z)."""
        scale1, shift1, scale2, shift2, gate = self.modulation(embedding).to(x.dtype).chunk(5, dim=1)
        h = self.conv1(F.silu(_norm(x, scale1, shift1)))
        h = self.conv2(F.dropout(F.silu(_norm(h, scale2, shift2)), self.dropout, self.training))
        return x + gate[:, :, None, None, None] * h


class JointAttention(nn.Module):
    """Attention of all voxels over all voxels and the covariates' tokens (Esser et al. 2024, arXiv:2403.03206).

    Queries and keys are normalised (Dehghani et al. 2023, arXiv:2302.05442), which bounds the logits in bfloat16.
    """

    def __init__(self, channels: int, heads: int, token_width: int, embedding: int) -> None:
        super().__init__()
        self.heads = heads
        self.modulation = nn.Linear(embedding, 3 * channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.token_kv = nn.Linear(token_width, 2 * channels)
        self.out = nn.Linear(channels, channels)
        _no_modulation(self.modulation)

    def forward(self, x: torch.Tensor, tokens: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
        """(B, C, X, Y, Z), (B, T, D), (B, E) to (B, C, X, Y, Z)."""
        scale, shift, gate = self.modulation(embedding).to(x.dtype).chunk(3, dim=1)
        h = _norm(x, scale, shift).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(h).chunk(3, dim=-1)
        token_k, token_v = self.token_kv(tokens.to(h.dtype)).chunk(2, dim=-1)
        k, v = torch.cat([k, token_k], dim=1), torch.cat([v, token_v], dim=1)
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (q, k, v))
        q, k = (F.rms_norm(t.float(), t.shape[-1:]).to(v.dtype) for t in (q, k))
        h = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return x + gate[:, :, None, None, None] * self.out(h).transpose(1, 2).reshape(x.shape)


def _no_modulation(layer: nn.Linear) -> None:
    """adaLN-Zero: a block starts as the identity."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)


class Level(nn.Module):
    """Blocks of one resolution, each followed by attention where there are heads."""

    def __init__(
        self, channels: int, blocks: int, heads: int, token_width: int, embedding: int, dropout: float
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(ModulatedBlock(channels, embedding, dropout) for _ in range(blocks))
        self.attention = nn.ModuleList(
            JointAttention(channels, heads, token_width, embedding) for _ in range(blocks if heads else 0)
        )

    def forward(self, x: torch.Tensor, tokens: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
        """Run the blocks."""
        for i, block in enumerate(self.blocks):
            x = block(x, embedding)
            if self.attention:
                x = self.attention[i](x, tokens, embedding)
        return x


class AdaLNUNet(nn.Module):
    """Latent, time and covariates -> prediction of the same shape as the latent; see the module's text."""

    def __init__(
        self,
        latent_channels: int,
        schema: Schema,
        channels: tuple[int, ...],
        blocks: int,
        middle_blocks: int,
        heads: int,
        token_width: int,
        embedding: int,
        dropout: float = 0.0,
        mask: MaskInput | None = None,
    ) -> None:
        super().__init__()
        self.factor = 2 ** (len(channels) - 1)
        self.covariates = CovariateEmbedding(schema, token_width, embedding)
        self.time = nn.Sequential(nn.Linear(2 * _FREQUENCIES, embedding), nn.SiLU(), nn.Linear(embedding, embedding))
        self.mask = MaskStem(mask) if mask else None
        entering = latent_channels + _COORDINATES + (self.mask.width if self.mask else 0)
        self.enter = nn.Conv3d(entering, channels[0], 3, padding=1)
        upper = [(width, blocks, 0, token_width, embedding, dropout) for width in channels[:-1]]
        self.down = nn.ModuleList(Level(*level) for level in upper)
        self.reduce = nn.ModuleList(Analysis(a, b) for a, b in pairwise(channels))
        self.middle = Level(channels[-1], middle_blocks, heads, token_width, embedding, dropout)
        self.enlarge = nn.ModuleList(Synthesis(b, a) for a, b in pairwise(channels))
        # Skips are added, not joined: the sum keeps the width, and with it the cost, of a level.
        self.up = nn.ModuleList(Level(*level) for level in upper)
        self.last_modulation = nn.Linear(embedding, 2 * channels[0])
        self.leave = nn.Conv3d(channels[0], latent_channels, 3, padding=1)
        _no_modulation(self.last_modulation)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)  # type: ignore[arg-type]
        self.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]

    def forward(self, x: torch.Tensor, time: torch.Tensor, cond: Condition) -> torch.Tensor:
        """Predict for latents (B, C, X, Y, Z) at times (B,) in [0, 1]."""
        assert all(n % self.factor == 0 for n in x.shape[2:]), (
            f"latent {tuple(x.shape)} is not a multiple of {self.factor}"
        )
        tokens, summary = self.covariates(cond)
        embedding = F.silu(self.time(_waves(time)) + summary)
        beside = [] if self.mask is None else [self.mask(cond.mask, x).to(x.dtype)]
        h = self.enter(channels_last(torch.cat([x, coordinates(x, cond.box).to(x.dtype), *beside], dim=1)))
        skips = []
        for level, reduce in zip(self.down, self.reduce, strict=True):
            h = level(h, tokens, embedding)
            skips.append(h)
            h = reduce(h)
        h = self.middle(h, tokens, embedding)
        for level, enlarge in zip(reversed(self.up), reversed(self.enlarge), strict=True):
            h = level(enlarge(h) + skips.pop(), tokens, embedding)
        scale, shift = self.last_modulation(embedding).to(h.dtype).chunk(2, dim=1)
        return self.leave(F.silu(_norm(h, scale, shift))).contiguous()


def _waves(time_B: torch.Tensor) -> torch.Tensor:
    """Sine and cosine of a time in [0, 1] at frequencies from 1 to 1000 radians, (B, 2 F)."""
    rates = torch.exp(torch.linspace(0.0, math.log(1000.0), _FREQUENCIES, device=time_B.device))
    angles = time_B.float()[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def factor(*, channels: Sequence[int] = (48, 96)) -> int:
    """The multiple that each latent axis must have."""
    return int(2 ** (len(channels) - 1))


def build(
    latent_channels: int,
    schema: Schema,
    mask: MaskInput | None = None,
    *,
    channels: Sequence[int] = (48, 96),
    blocks: int = 1,
    middle_blocks: int = 3,
    heads: int = 4,
    token_width: int = 64,
    embedding: int = 256,
    dropout: float = 0.0,
    checkpointing: bool = False,
) -> AdaLNUNet:
    """Build the network.

    Args:
        latent_channels: C of the latents.
        schema: the covariates it is conditioned on.
        mask: the masks it follows; None where it follows none.
        channels: width of each level; each but the first halves the extents.
        blocks: residual blocks of each level but the last, on the way down and again on the way up.
        middle_blocks: residual blocks, each with attention, of the last level.
        heads: attention heads of the last level, which divide its width; 0 for no attention.
        token_width: width of a covariate's token.
        embedding: width of the embedding of time and covariates.
        dropout: share of a block's inner activations set to 0 in training, against memorising a small cohort.
        checkpointing: compute activations again in the backward pass: less memory, a third more time.

    Raises:
        InputError: widths that do not fit each other.
    """
    if not channels or min(*channels, blocks + 1, middle_blocks, token_width, embedding) < 1 or heads < 0:
        raise InputError("diffusion.network_options: widths and middle_blocks must be 1 or more, blocks and heads 0")
    if not 0 <= dropout < 1:
        raise InputError(f"diffusion.network_options: dropout {dropout} is not in [0, 1)")
    if heads and channels[-1] % heads:
        raise InputError(f"diffusion.network_options: {heads} heads do not divide the last width {channels[-1]}")
    network = AdaLNUNet(
        latent_channels, schema, tuple(channels), blocks, middle_blocks, heads, token_width, embedding, dropout, mask
    )
    if checkpointing:
        checkpoint_blocks(network, ModulatedBlock, JointAttention)
    return network
