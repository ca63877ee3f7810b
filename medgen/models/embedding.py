"""Covariates as tokens: one token a column, with a learned null for each."""

import math

import torch
from torch import nn

from medgen.cohort.schema import Covariate, Schema
from medgen.models.condition import Condition

_OCTAVES = (0.5, 1.0, 2.0)
_ORDER = 1.5  # evenly filled levels from -1.5 to 1.5 have about unit variance


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

    def __init__(self, width: int, period: float | None, octaves: tuple[float, ...] = _OCTAVES) -> None:
        super().__init__()
        self.period, self.octaves = period, octaves
        features = 2 if period else 1 + 2 * len(octaves)
        self.mlp = _mlp(features, width, width)

    def forward(self, value_B: torch.Tensor) -> torch.Tensor:
        if self.period:
            angle = value_B * (2 * math.pi / self.period)
            return self.mlp(torch.stack([angle.sin(), angle.cos()], dim=1))
        waves = [f(value_B * octave) for octave in self.octaves for f in (torch.sin, torch.cos)]
        return self.mlp(torch.stack([value_B, *waves], dim=1))


class _Levels(nn.Module):
    """A level's index -> token."""

    def __init__(self, width: int, count: int) -> None:
        super().__init__()
        self.table = nn.Embedding(max(count, 1), width)

    def forward(self, value_B: torch.Tensor) -> torch.Tensor:
        return self.table(value_B.long().clamp(0, self.table.num_embeddings - 1))


class _Ordinal(nn.Module):
    """A level's index -> token: its place in the order as a number, and a small offset of its own.

    Neighbours start out alike, so that a level with few cases learns from those beside it; the offset leaves room for
    steps that are not even.
    """

    def __init__(self, width: int, count: int) -> None:
        super().__init__()
        self.count = max(count, 1)
        self.place = _Numeric(width, None, octaves=(0.5,))
        self.offset = nn.Embedding(self.count, width)
        nn.init.normal_(self.offset.weight, std=0.02)

    def forward(self, value_B: torch.Tensor) -> torch.Tensor:
        place = _ORDER * (2.0 * value_B / max(self.count - 1, 1) - 1.0)
        return self.place(place) + self.offset(value_B.long().clamp(0, self.count - 1))


class _Text(nn.Module):
    """A frozen encoder's states (B, T, D_e) -> tokens (B, T, D)."""

    def __init__(self, width: int, states_width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(states_width, elementwise_affine=False)  # encoders differ in scale by tens
        self.project = nn.Linear(states_width, width)
        nn.init.normal_(self.project.weight, std=states_width**-0.5)
        nn.init.zeros_(self.project.bias)

    def forward(self, states_BTD: torch.Tensor) -> torch.Tensor:
        return self.project(self.norm(states_BTD.to(self.project.weight.dtype)))


class CovariateEmbedding(nn.Module):
    """Condition -> tokens (B, T, D) for cross-attention and their summary (B, E) for the timestep embedding.

    A column is one token; a text column is as many as are read of a text, with the column's null where a text has no
    token (so that the network needs no mask, and a text's neighbours in the batch change nothing). The summary sees
    K tokens: of a text their mean.

    Args:
        schema: the K columns.
        token_width: D.
        summary_width: E.
    """

    def __init__(self, schema: Schema, token_width: int, summary_width: int) -> None:
        super().__init__()
        self.columns = schema.names
        self.places = tuple(c.tokens if c.is_text else 0 for c in schema.covariates)
        self.embed = nn.ModuleList(self._column(c, token_width) for c in schema.covariates)
        self.null = nn.Parameter(torch.randn(len(schema.covariates), token_width) * 0.02)
        self.name = nn.Parameter(torch.randn(len(schema.covariates), token_width) * 0.02)
        self.summary = _mlp(max(1, len(schema.covariates)) * token_width, summary_width, summary_width)

    @staticmethod
    def _column(c: Covariate, width: int) -> nn.Module:
        if c.is_text:
            return _Text(width, c.width)
        if c.kind == "ordinal":
            return _Ordinal(width, len(c.levels))
        if c.is_numeric:
            return _Numeric(width, c.period if c.kind == "periodic" else None)
        return _Levels(width, len(c.levels))

    def forward(self, cond: Condition) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens (B, T, D) and summary (B, E); T is K where no column is a text."""
        assert cond.columns == self.columns, f"condition asks {cond.columns}, the model knows {self.columns}"
        batch = len(cond)
        if not self.columns:  # an unconditional model: one constant token keeps the cross-attention defined
            zero = self.null.new_zeros(batch, 1, self.null.shape[1])
            return zero, self.summary(zero.flatten(1))
        if not any(self.places):
            tokens = torch.stack([embed(cond.values[:, k]) for k, embed in enumerate(self.embed)], dim=1)
            tokens = torch.where(cond.present[..., None], tokens, self.null.expand_as(tokens)) + self.name
            return tokens, self.summary(tokens.flatten(1))
        whole, means = [], []
        for k, embed in enumerate(self.embed):
            if self.places[k]:
                own, mean = self._text(cond, k, embed)
            else:
                own = torch.where(cond.present[:, k, None], embed(cond.values[:, k]), self.null[k])[:, None]
                mean = own[:, 0]
            whole.append(own + self.name[k])
            means.append(mean + self.name[k])
        return torch.cat(whole, dim=1), self.summary(torch.cat(means, dim=1))

    def _text(self, cond: Condition, k: int, embed: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens (B, T_k, D) of text column k, and their mean (B, D); the column's null where nothing is asked."""
        null = self.null[k]
        if cond.tokens is None or cond.token_column is None:
            own = null.expand(len(cond), self.places[k], -1)
            return own, own[:, 0]
        start = sum(self.places[:k])
        part = slice(start, start + self.places[k])
        there = ((cond.token_column[:, part] == k) & cond.present[:, k, None])[..., None]
        tokens = torch.where(there, embed(cond.tokens[:, part]), null)
        count = there.sum(dim=1)
        mean = (tokens * there).sum(dim=1) / count.clamp(min=1)
        return tokens, torch.where(count > 0, mean, null)
