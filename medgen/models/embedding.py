"""Covariates as tokens: one token a column, with a learned null for each."""

import math

import torch
from torch import nn

from medgen.cohort.schema import Covariate, Schema
from medgen.models.condition import Condition

_OCTAVES = (0.5, 1.0, 2.0)


def _mlp(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """Two layers that keep their input's variance.

    torch's default shrinks it three-fold a layer; through the layers between a covariate and the network's blocks
    that leaves a hundredth, and conditions are learnt late.
    """
    first, second = nn.Linear(inputs, hidden), nn.Linear(hidden, outputs)
    for layer in (first, second):
        nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
        nn.init.zeros_(layer.bias)
    nn.init.normal_(second.weight, std=1.7 * hidden**-0.5)  # 1.7: what SiLU takes from unit variance
    return nn.Sequential(first, nn.SiLU(), second)


class _Numeric(nn.Module):
    """A standardised number (or an angle) -> token, through a few slow Fourier features.

    Slow ones only: a cohort of tens of cases must not be told apart by its digits.
    """

    def __init__(self, width: int, period: float | None) -> None:
        super().__init__()
        self.period = period
        features = 2 if period else 1 + 2 * len(_OCTAVES)
        self.mlp = _mlp(features, width, width)

    def forward(self, value_B: torch.Tensor) -> torch.Tensor:
        if self.period:
            angle = value_B * (2 * math.pi / self.period)
            return self.mlp(torch.stack([angle.sin(), angle.cos()], dim=1))
        waves = [f(value_B * octave) for octave in _OCTAVES for f in (torch.sin, torch.cos)]
        return self.mlp(torch.stack([value_B, *waves], dim=1))


class _Levels(nn.Module):
    """A level's index -> token."""

    def __init__(self, width: int, count: int) -> None:
        super().__init__()
        self.table = nn.Embedding(max(count, 1), width)

    def forward(self, value_B: torch.Tensor) -> torch.Tensor:
        return self.table(value_B.long().clamp(0, self.table.num_embeddings - 1))


class CovariateEmbedding(nn.Module):
    """Condition -> tokens (B, K, D) for cross-attention and their summary (B, E) for the timestep embedding.

    Args:
        schema: the K columns.
        token_width: D.
        summary_width: E.
    """

    def __init__(self, schema: Schema, token_width: int, summary_width: int) -> None:
        super().__init__()
        self.columns = schema.names
        self.embed = nn.ModuleList(self._column(c, token_width) for c in schema.covariates)
        self.null = nn.Parameter(torch.randn(len(schema.covariates), token_width) * 0.02)
        self.name = nn.Parameter(torch.randn(len(schema.covariates), token_width) * 0.02)
        self.summary = _mlp(max(1, len(schema.covariates)) * token_width, summary_width, summary_width)

    @staticmethod
    def _column(c: Covariate, width: int) -> nn.Module:
        return (
            _Numeric(width, c.period if c.kind == "periodic" else None)
            if c.is_numeric
            else _Levels(width, len(c.levels))
        )

    def forward(self, cond: Condition) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens (B, K, D) and summary (B, E)."""
        assert cond.columns == self.columns, f"condition asks {cond.columns}, the model knows {self.columns}"
        batch = len(cond)
        if not self.columns:  # an unconditional model: one constant token keeps the cross-attention defined
            zero = self.null.new_zeros(batch, 1, self.null.shape[1])
            return zero, self.summary(zero.flatten(1))
        tokens = torch.stack([embed(cond.values[:, k]) for k, embed in enumerate(self.embed)], dim=1)
        tokens = torch.where(cond.present[..., None], tokens, self.null.expand_as(tokens)) + self.name
        return tokens, self.summary(tokens.flatten(1))
