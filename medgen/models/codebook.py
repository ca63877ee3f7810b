"""A codebook learnt by running averages, whose unused entries start again where the latents are."""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from monai.networks.layers.vector_quantizer import EMAQuantizer

ROWS = 1 << 16
"""Latent vectors compared with the codebook at once: distances of a whole volume would outgrow its decoding."""
DEAD = 0.03
"""Share of an even use below which an entry starts again."""


def nearest(latent: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    """Index of the nearest code at each position.

    Args:
        latent: (B, C, x, y, z).
        codes: (K, C).

    Returns:
        (B, x, y, z), int64.
    """
    vectors = latent.movedim(1, -1)
    with torch.autocast(latent.device.type, enabled=False):  # in bfloat16 near codes would be confused
        table = codes.float()
        norms = table.square().sum(dim=1)
        found = [
            torch.addmm(norms, rows.float(), table.t(), alpha=-2.0).argmin(dim=1)
            for rows in vectors.reshape(-1, codes.shape[1]).split(ROWS)
        ]
    return torch.cat(found).reshape(vectors.shape[:-1])


def embed(indices: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    """Codes (K, C) at indices (B, x, y, z): (B, C, x, y, z)."""
    return F.embedding(indices, codes).movedim(-1, 1)


def straight_through(latent: torch.Tensor, embedded: torch.Tensor) -> torch.Tensor:
    """The code's value with the latent's gradient (van den Oord et al. 2017, arXiv:1711.00937, section 3.2)."""
    # Written so that the value is the code to the bit.
    return embedded.to(latent.dtype).detach() + (latent - latent.detach())


def perplexity(indices: torch.Tensor, entries: int) -> torch.Tensor:
    """Exponential of the entropy of the indices in use: 1 for a single one, ``entries`` for all alike."""
    share = _counts(indices.flatten(), entries) / indices.numel()
    return torch.exp(-(share * (share + 1e-12).log()).sum())


@torch.no_grad()
def learn(book: EMAQuantizer, latent: torch.Tensor, indices: torch.Tensor) -> None:
    """Move each code towards the mean of the latents it was chosen for, in place of a loss on the codebook.

    Running sums of counts and vectors (ibid., appendix A.1). An entry used by less than a share :data:`DEAD` of an
    even use starts again at one of the batch's latents, drawn as k-means++ draws centres (Arthur & Vassilvitskii 2007)
    but at even steps of the summed squared distance and not at random: a repeated training repeats it.
    """
    vectors = latent.movedim(1, -1).reshape(-1, latent.shape[1]).float()
    flat = indices.flatten()
    counts = _counts(flat, book.num_embeddings)
    sums = torch.zeros_like(book.ema_w).index_add_(0, flat, vectors)
    if book.ddp_sync:
        book.distributed_synchronization(counts, sums)
    # Nothing here waits for the device to say which way to go.
    decay = book.decay * book.ema_cluster_size.any().float()
    book.ema_cluster_size.mul_(decay).add_(counts * (1 - decay))
    book.ema_w.mul_(decay).add_(sums * (1 - decay))
    even = book.ema_cluster_size.sum() / book.num_embeddings
    dead = book.ema_cluster_size < DEAD * even
    # As if in use by a fifth of an even share: at a decay of 0.99 it has 190 steps to find latents of its own.
    start = 0.2 * even
    book.ema_w.copy_(torch.where(dead[:, None], _far(book, vectors, flat, dead) * start, book.ema_w))
    book.ema_cluster_size.copy_(torch.where(dead, start, book.ema_cluster_size))
    book.embedding.weight.copy_(book.ema_w / book.ema_cluster_size.clamp(min=book.epsilon)[:, None])


def _far(book: EMAQuantizer, vectors: torch.Tensor, flat: torch.Tensor, dead: torch.Tensor) -> torch.Tensor:
    """A latent (K, C) for each dead entry; the rows of the others mean nothing."""
    far = (vectors - book.embedding.weight[flat]).square().sum(dim=1).double()
    mass = (far + far.mean() * 1e-3 + 1e-30).cumsum(dim=0)
    turn = dead.cumsum(dim=0).double() - 0.5
    chosen = vectors[torch.searchsorted(mass, turn * (mass[-1] / dead.sum().clamp(min=1))).clamp(0, len(vectors) - 1)]
    if book.ddp_sync and dist.is_available() and dist.is_initialized():
        dist.broadcast(chosen, 0)  # each process has other latents, and all must go on with one codebook
    return chosen


def _counts(indices: torch.Tensor, entries: int) -> torch.Tensor:
    """How often each entry is chosen, (K,) float32."""
    ones = torch.ones_like(indices, dtype=torch.float32)
    return torch.zeros(entries, device=indices.device).index_add_(0, indices, ones)
