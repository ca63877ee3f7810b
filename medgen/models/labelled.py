"""The label's way into a codec and out of it, which is the same for every codec that takes its embedding and logits."""

from collections.abc import Mapping

import torch
from torch import nn

from medgen.models.codec import IMAGE, LABELS, UNLABELLED, Decoded, Serves


def joined(table: nn.Embedding | None, image: torch.Tensor, label: torch.Tensor | None) -> torch.Tensor:
    """The embedding of label ids (B, X, Y, Z) as channels beside the image; the image alone without a table.

    The table's last entry stands for "no label here": for ids below 0, and everywhere where ``label`` is None.
    """
    if table is None:
        return image
    ids = torch.full_like(image[:, 0], -1) if label is None else label
    ids = torch.where(ids < 0, table.num_embeddings - 1, ids).long()
    return torch.cat([image, table(ids).movedim(-1, 1).to(image.dtype)], dim=1)


def parted(out: torch.Tensor, image_channels: int, labels: int) -> Decoded:
    """A decoder's output (B, C + L, X, Y, Z) as image and label logits."""
    return Decoded(out[:, :image_channels], out[:, image_channels:] if labels else None)


def table_rows(table: nn.Embedding | None, labels: int) -> Mapping[str, Serves]:
    """What the rows of the table ``label_embedding`` serve; nothing without one."""
    return {} if table is None else {"label_embedding.weight": (0, (*range(labels), UNLABELLED))}


def inputs(image_channels: int, table: nn.Embedding | None) -> tuple[int, ...]:
    """What the channels that :func:`joined` gives serve."""
    return (IMAGE,) * image_channels + (LABELS,) * (0 if table is None else table.embedding_dim)


def outputs(image_channels: int, labels: int) -> tuple[int, ...]:
    """What the channels that :func:`parted` takes serve."""
    return (IMAGE,) * image_channels + tuple(range(labels))
