"""Which conditions a training step may see: what makes a network able to leave any of them open."""

import torch

from medgen.models.condition import Condition


def dropped(cond: Condition, drop_all: float, drop_each: float, random: torch.Generator) -> Condition:
    """Hide conditions at random: all of a row (Ho & Salimans 2022, arXiv:2207.12598), and each on its own.

    Where a row has a text, everything else is hidden with the chance ``drop_all`` too: a text is often asked for
    alone, and columns dropped one by one would hardly ever leave it so.

    A mask goes with "all of a row", and on its own with the chance ``drop_each``.

    Args:
        cond: of a batch.
        drop_all: chance of each row.
        drop_each: chance of each entry.
        random: on the CPU; drawn from once more only where there are texts, and once more where there are masks.
    """
    whole = torch.rand(len(cond), 1, generator=random) >= drop_all
    keep = whole & (torch.rand(cond.present.shape, generator=random) >= drop_each)
    if cond.mask is not None:
        cond = cond.unmasked(~whole[:, 0] | (torch.rand(len(cond), generator=random) < drop_each))
    if cond.token_column is None:
        return cond.masked(keep.to(cond.present.device))
    alone = torch.rand(len(cond), 1, generator=random) < drop_all
    columns = torch.arange(cond.present.shape[1], device=cond.present.device)
    is_text = (cond.token_column[..., None] == columns).any(dim=1)  # (B, K)
    others = alone.to(is_text.device) & is_text.any(dim=1, keepdim=True) & ~is_text
    return cond.masked(keep.to(is_text.device) & ~others)
