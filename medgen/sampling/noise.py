"""Noise streams: every sample owns its noise, whatever batch, shard or attempt it is drawn in.

A row is keyed by (seed, index, attempt) and each step of it has its own generator, so that a sampler which asks for
noise at some steps only sees the same numbers. Numbers are drawn on the CPU: the same on every device.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from medgen.models.seam import Noise


@dataclass(frozen=True)
class Key:
    """What a sample is a pure function of, beside the model and the request.

    Attributes:
        seed: of the dataset.
        index: of the sample.
        attempt: number of the draw.
        part: what of the sample is drawn, where it is drawn in several parts that must not share their noise.
    """

    seed: int
    index: int
    attempt: int = 0
    part: str = ""


def generator(*parts: int | str) -> torch.Generator:
    """A CPU generator seeded by the SHA-256 of its key."""
    value = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(value[:8], "big", signed=True))


def streams(keys: Sequence[Key], shape: Sequence[int], device: torch.device | str = "cpu") -> Noise:
    """Noise for a batch: ``noise(step)`` has shape (len(keys), *shape), row b from the stream of ``keys[b]``."""

    def noise(step: int) -> torch.Tensor:
        rows = [torch.randn(tuple(shape), generator=generator(*_name(k), step)) for k in keys]
        return torch.stack(rows).to(device)

    return noise


def _name(key: Key) -> tuple[int | str, ...]:
    return ("noise", key.seed, key.index, key.attempt, *([key.part] if key.part else []))
