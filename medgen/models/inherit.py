"""Networks that start from another's weights, where label sets and covariates may differ.

What both know is copied; what the other never saw starts fresh. A row that stays the same means the same: labels go
by name, covariates by name, kind, unit and period, and a covariate's centre and scale go with its embedding.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import nn

from medgen.cohort.schema import Covariate, volume_column
from medgen.errors import InputError
from medgen.models.codec import LABELS, Codec
from medgen.models.condition import ConditionEncoder
from medgen.models.embedding import CovariateEmbedding


def same_labels(theirs: Sequence[str], ours: Sequence[str]) -> dict[int, int]:
    """Our label id -> their id, for names that agree but for case and punctuation; ids are places in the lists."""
    known = {volume_column(name): i for i, name in enumerate(theirs)}
    return {i: known[volume_column(name)] for i, name in enumerate(ours) if volume_column(name) in known}


def same_columns(theirs: ConditionEncoder, ours: ConditionEncoder) -> dict[int, int]:
    """Our column -> their column, for covariates that mean the same."""
    known = {c.name: (k, c) for k, c in enumerate(theirs.schema.covariates)}
    reads_alike = theirs.text is not None and ours.text is not None and theirs.text.files == ours.text.files
    found = {}
    for k, c in enumerate(ours.schema.covariates):
        if c.name in known and _alike(known[c.name][1], c) and (reads_alike or not c.is_text):
            found[k] = known[c.name][0]
    return found


def _alike(a: Covariate, b: Covariate) -> bool:
    units = not a.unit or not b.unit or a.unit == b.unit
    # An ordinal's levels are places on a scale: with other levels the same place is another thing.
    scale = a.levels == b.levels if a.kind == "ordinal" else True
    read = (a.tokens, a.width) == (b.tokens, b.width)
    return a.kind == b.kind and a.period == b.period and units and scale and read


def inherit_encoder(ours: ConditionEncoder, theirs: ConditionEncoder) -> ConditionEncoder:
    """Our encoder with their centre and scale for the same columns: a copied embedding then sees what it knows."""
    centre, scale = list(ours.centre), list(ours.scale)
    for k, old in same_columns(theirs, ours).items():
        centre[k], scale[k] = theirs.centre[old], theirs.scale[old]
    return replace(ours, centre=tuple(centre), scale=tuple(scale))


def codec_state(theirs: Codec, ours: Codec, labels: Mapping[int, int]) -> dict[str, torch.Tensor]:
    """Weights for our codec out of theirs, of the same kind, options and image channels.

    Where theirs knows no labels, the encoder's weights for them start at zero: it codes an image as theirs does.

    Args:
        theirs: trained.
        ours: fresh.
        labels: our label id -> theirs, see :func:`same_labels`.

    Raises:
        InputError: the codec's kind does not say which weights serve which label, and label sets differ.
    """
    known, state = _beside(theirs, ours), {}
    alike = theirs.labels == ours.labels and all(a == b for a, b in labels.items()) and len(labels) == ours.labels
    old_rows, new_rows = ({}, {}) if alike else (_rows(theirs), _rows(ours))
    for name, fresh in ours.state_dict().items():
        if name not in known:
            state[name] = fresh
        elif name not in new_rows:
            state[name] = _whole(name, known[name], fresh)
        else:
            axis, serves = new_rows[name]
            before = old_rows[name][1]
            weight = fresh.clone()
            for role in set(serves):
                into = torch.tensor([r for r, s in enumerate(serves) if s == role], device=fresh.device)
                partner = labels.get(role) if role >= 0 else role
                rows = [r for r, s in enumerate(before) if s == partner]
                out_of = torch.tensor(rows, dtype=torch.long, device=fresh.device)
                if len(into) == len(out_of):
                    weight.index_copy_(axis, into, known[name].index_select(axis, out_of).to(weight.dtype))
                elif role == LABELS and not len(out_of):
                    weight.index_fill_(axis, into, 0.0)
            state[name] = weight
    return state


def _beside(theirs: nn.Module, ours: nn.Module) -> dict[str, torch.Tensor]:
    """Their weights on our device."""
    devices = {t.device for t in ours.state_dict().values()}
    assert len(devices) == 1, f"a network on {len(devices)} devices"
    device = devices.pop()
    return {name: t.to(device) for name, t in theirs.state_dict().items()}


def _rows(codec: Codec) -> Mapping[str, tuple[int, tuple[int, ...]]]:
    try:
        return codec.label_rows()
    except NotImplementedError:
        raise InputError(
            "init: this kind of codec can start only from a model with the same labels; take another codec kind"
        ) from None


def _whole(name: str, known: torch.Tensor, fresh: torch.Tensor) -> torch.Tensor:
    if known.shape != fresh.shape:
        shapes = f"{list(known.shape)}, not {list(fresh.shape)}"
        raise InputError(f"init: the model's weight {name} has shape {shapes}; this network cannot start from it")
    return known.to(fresh.dtype)


def network_state(
    theirs: nn.Module, ours: nn.Module, before: ConditionEncoder, after: ConditionEncoder
) -> dict[str, torch.Tensor]:
    """Weights for our denoiser out of theirs, of the same kind, options and latent.

    A new column enters the summary with zero weights, so that it changes nothing before it is learnt. A column that
    is gone leaves there what it said when it was not asked for.

    Args:
        theirs: trained, for the columns of ``before``.
        ours: fresh, for the columns of ``after``.
        before: their condition encoder.
        after: ours.

    Raises:
        InputError: weights outside of the covariates' embedding differ in shape.
    """
    known, state = _beside(theirs, ours), ours.state_dict()
    embeddings = dict(_embeddings(theirs))
    inside: set[str] = set()
    for prefix, embedding in _embeddings(ours):
        partner = embeddings[prefix]
        part = _embedding_state(partner, embedding, before, after)
        inside |= {f"{prefix}{name}" for name in part}
        state |= {f"{prefix}{name}": value for name, value in part.items()}
    for name, fresh in state.items():
        if name not in inside:
            state[name] = _whole(name, known[name], fresh)
    return state


def _embeddings(network: nn.Module) -> list[tuple[str, CovariateEmbedding]]:
    found = [(name, m) for name, m in network.named_modules() if isinstance(m, CovariateEmbedding)]
    return [(f"{name}." if name else "", module) for name, module in found]


def _embedding_state(
    theirs: CovariateEmbedding, ours: CovariateEmbedding, before: ConditionEncoder, after: ConditionEncoder
) -> dict[str, torch.Tensor]:
    known, state = _beside(theirs, ours), {k: v.clone() for k, v in ours.state_dict().items()}
    columns = same_columns(before, after)
    by_column = {"null", "name"}
    for name, fresh in state.items():
        if name.startswith("embed."):
            _, place, rest = name.split(".", 2)
            k = int(place)
            if k not in columns:
                continue
            old = known[f"embed.{columns[k]}.{rest}"]
            if rest == "table.weight":
                levels = before.schema.covariates[columns[k]].levels
                for row, level in enumerate(after.schema.covariates[k].levels):
                    if level in levels:
                        fresh[row] = old[levels.index(level)]
            else:
                state[name] = _whole(name, old, fresh)
        elif name in by_column:
            for k, old_k in columns.items():
                fresh[k] = known[name][old_k]
        elif not name.startswith("summary.0."):
            state[name] = _whole(name, known[name], fresh)
    weight, bias = _summary(known, columns, len(before.schema.names), len(after.schema.names))
    return {**state, "summary.0.weight": weight, "summary.0.bias": bias}


def _summary(
    known: Mapping[str, torch.Tensor], columns: Mapping[int, int], count: int, wanted: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """First layer of the summary, (E, K D): its blocks by column. Without columns it has one block, for zeros."""
    blocks = known["summary.0.weight"].unflatten(1, (max(1, count), -1))  # E, K, D
    weight = blocks.new_zeros(blocks.shape[0], max(1, wanted), blocks.shape[2])
    for k, old in columns.items():
        weight[:, k] = blocks[:, old]
    gone = [k for k in range(count) if k not in columns.values()]
    silent = known["null"] + known["name"]
    bias = known["summary.0.bias"] + sum(
        (blocks[:, k] @ silent[k] for k in gone), torch.zeros_like(known["summary.0.bias"])
    )
    return weight.flatten(1), bias
