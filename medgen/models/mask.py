"""A label map as a condition: its way into a denoiser of latents.

A latent stands for ``stride`` ** 3 voxels. Their label ids are laid beside each other as channels (a space-to-depth
layout), so that a mask has the latents' extents, is cropped as they are, and loses nothing of the voxels' own edges.
The denoiser reads it beside the noisy latent, as Konz et al. (2024, arXiv:2402.05210) and the image models of MAISI's
family (Guo et al. 2024, arXiv:2409.11169) read theirs at the image's resolution.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

UNKNOWN = -1
_FEW = 16


@dataclass(frozen=True)
class MaskInput:
    """What a denoiser must know of the masks it follows.

    Attributes:
        labels: label ids with background.
        stride: voxels per latent along each axis.
    """

    labels: int
    stride: int

    @property
    def cells(self) -> int:
        """Voxels of a latent."""
        return self.stride**3


def to_cells(ids: torch.Tensor, stride: int) -> torch.Tensor:
    """Label ids (B, X, Y, Z), -1 where unknown, to (B, stride ** 3, X / stride, Y / stride, Z / stride) int16."""
    b, x, y, z = ids.shape
    s = stride
    assert x % s == y % s == z % s == 0, f"a mask of {(x, y, z)} voxels is not a multiple of the stride {s}"
    parts = ids.to(torch.int16).reshape(b, x // s, s, y // s, s, z // s, s)
    return parts.permute(0, 2, 4, 6, 1, 3, 5).reshape(b, s**3, x // s, y // s, z // s).contiguous()


def from_cells(cells: torch.Tensor) -> torch.Tensor:
    """The inverse of :func:`to_cells`: label ids (B, X, Y, Z)."""
    b, count, x, y, z = cells.shape
    s = round(count ** (1 / 3))
    parts = cells.reshape(b, s, s, s, x, y, z).permute(0, 4, 1, 5, 2, 6, 3)
    return parts.reshape(b, x * s, y * s, z * s)


class MaskStem(nn.Module):
    """A mask's cells -> channels beside the noisy latent.

    Every id is embedded where it stands, the cells of a latent are mapped to ``width`` channels, and two convolutions
    tell each latent what lies around it. An id of -1 has an embedding of its own: a mask that is unknown in part, or
    as a whole, is a mask like any other.

    Args:
        mask: of what.
        width: channels that come out.
        embedding: channels of an id.
    """

    def __init__(self, mask: MaskInput, width: int = 32, embedding: int = 4) -> None:
        super().__init__()
        self.mask, self.width = mask, width
        self.table = nn.Embedding(mask.labels + 1, embedding)
        self.patch = nn.Linear(mask.cells * embedding, width, bias=False)
        self.bias = nn.Parameter(torch.zeros(width))
        self.conv1 = nn.Conv3d(width, width, 3, padding=1)
        self.conv2 = nn.Conv3d(width, width, 3, padding=1)

    def forward(self, cells: torch.Tensor | None, like: torch.Tensor) -> torch.Tensor:
        """Cells (B, stride ** 3, x, y, z), None for a mask that is unknown, to (B, width, x, y, z).

        Args:
            cells: label ids.
            like: (B, C, x, y, z) whose batch, extents and type the result has.
        """
        if cells is None:
            shape = (like.shape[0], self.mask.cells, *like.shape[2:])
            cells = torch.full(shape, UNKNOWN, dtype=torch.int16, device=like.device)
        ids = torch.where(cells < 0, self.mask.labels, cells).movedim(1, -1)  # (B, x, y, z, S)
        weight = self.patch.weight.unflatten(1, (self.mask.cells, -1))  # (W, S, E)
        if self.mask.labels < _FEW and like.device.type == "cpu":
            # The same product in another order; a table's gradient is a scatter, which a CPU is slow at. On an
            # accelerator the scatter is quick, and the one-hot cells of many labels would fill its memory.
            one_hot = ids[..., None] == torch.arange(self.mask.labels + 1, device=ids.device, dtype=ids.dtype)
            joint = torch.einsum("wse,ie->siw", weight, self.table.weight).flatten(0, 1)
            h = one_hot.flatten(-2).to(like.dtype) @ joint.to(like.dtype)
        else:
            h = self.table(ids.long()).flatten(-2).to(like.dtype) @ weight.flatten(1).T.to(like.dtype)
        h = h.movedim(-1, 1) + self.bias.to(h.dtype)[:, None, None, None]
        h = h + self.conv1(F.silu(h))
        return h + self.conv2(F.silu(h))
