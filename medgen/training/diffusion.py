"""Training a latent diffusion model."""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from medgen.diffusion.process import Process
from medgen.models.condition import Condition, crop_box
from medgen.sampling.noise import generator
from medgen.store.latent_rows import Index, LatentRows
from medgen.store.latents import LatentStatistics
from medgen.store.patches import Batch
from medgen.training import ema
from medgen.training.dropout import dropped
from medgen.training.ema import Ema
from medgen.training.memorisation import Memorisation, fixed_draw
from medgen.training.optimiser import adamw

BANDS = ("low", "mid", "high")
LEVELS_A_BAND = 3
_PROBED = 200  # steps among which one of the other extent is looked for
# Of a device's memory, for latents; what does not fit is read from disk, batch by batch.
TRAINING_SHARE, HELD_OUT_SHARE = 0.3, 0.05


@dataclass(frozen=True)
class LatentSet:
    """Encodings of cases with their conditions.

    Attributes:
        rows: N encodings.
        cond: conditions of the N rows, without the masks, which are the rows' own.
    """

    rows: LatentRows
    cond: Condition

    def __len__(self) -> int:
        return len(self.rows)

    def conditions(self, at: Index) -> Condition:
        """Conditions of some rows, with their masks."""
        return replace(self.cond.rows(at), mask=self.rows.masks(at))


@dataclass(frozen=True)
class Crops:
    """Latent patches mixed with whole latents (Patch Diffusion; Wang et al. 2023, arXiv:2304.12526).

    Attributes:
        patch: extents of a patch in latents.
        full_share: chance of a step on whole latents.
    """

    patch: tuple[int, int, int]
    full_share: float


class DiffusionTask:
    """Denoising of standardised latents, with covariates dropped at random.

    A fresh draw of each posterior is standardised at every step: the stored mean and logvar are the data, never one
    sample of them.

    Args:
        network: predicts for the process; on the device.
        process: how data becomes noise.
        train: the training rows.
        statistics: dataset statistics.
        held_out: validation rows, or None.
        batch: latents a step.
        learning_rate: of AdamW.
        drop_all: chance of training a row without any covariate (for classifier-free guidance).
        drop_each: chance of dropping each covariate on its own.
        seed: of the experiment.
        rank: of this process in a distributed training.
        crops: patches, where the network takes crops.
        average: whose figures count: a profile of :mod:`medgen.training.ema`, or "auto" for the one whose loss on
            held-out latents is lower at that validation.
        draw: renders sample panels from the averaged network, or None.
        samples: draws standardised latents from the averaged network for the memorisation curve, or None.
        memorisation: what they are measured by.
    """

    def __init__(
        self,
        network: torch.nn.Module,
        process: Process,
        train: LatentSet,
        statistics: LatentStatistics,
        held_out: LatentSet | None,
        *,
        batch: int,
        learning_rate: float,
        drop_all: float,
        drop_each: float,
        seed: int,
        rank: int = 0,
        crops: Crops | None = None,
        average: str = "auto",
        draw: Callable[[torch.nn.Module], np.ndarray] | None = None,
        samples: Callable[[torch.nn.Module], torch.Tensor] | None = None,
        memorisation: Memorisation | None = None,
    ) -> None:
        self.network, self.process, self.statistics, self.train = network, process, statistics, train
        self.device, self.held_out, self.seed, self.batch = train.rows.device, held_out, seed, batch
        self.draw, self.samples, self.memorisation, self.average = draw, samples, memorisation, average
        self.drop_all, self.drop_each, self.crops = drop_all, drop_each, crops
        self.key: tuple[int, ...] = (seed, rank) if rank else (seed,)
        self.extent = train.rows.extent
        extents = [self.extent, *([crops.patch] if crops else [])]
        self.whole, *cropped = train.rows.samplers(extents, batch, seed=seed, rank=rank)
        self.cropped = cropped[0] if cropped else None
        self.chosen = "long" if average == "auto" else average
        self.modules: Mapping[str, torch.nn.Module] = {"network": network}
        self.optimisers: Mapping[str, torch.optim.Optimizer] = {
            "network": adamw(network.parameters(), learning_rate, weight_decay=1e-2, device=self.device)
        }

    def step(self, step: int, share: float) -> Iterator[tuple[torch.Tensor, str, Mapping[str, torch.Tensor]]]:
        """One batch of whole latents, or of crops."""
        batch = self._batch(step)
        mean, logvar, weight, mask = self.train.rows.named(batch.arrays)
        random = generator("train", *self.key[:1], step, *self.key[1:])
        # Layers draw from torch's own stream (dropout does): a resumed training repeats that too.
        torch.manual_seed(generator("layers", *self.key[:1], step, *self.key[1:]).initial_seed())
        draw, noise = torch.randn(2, *mean.shape, generator=random).to(self.device)
        x0 = self.statistics.standardise(mean + torch.exp(0.5 * logvar) * draw)
        cond = self.train.cond.rows(torch.from_numpy(batch.cases).to(self.device))
        size = tuple(int(n) for n in mean.shape[2:])
        if size != self.extent:
            boxes = [crop_box(start, size, self.extent) for start in batch.starts.tolist()]
            cond = cond.crop(torch.stack(boxes).to(self.device))
        cond = dropped(replace(cond, mask=mask), self.drop_all, self.drop_each, random)
        # One uniform number shared out over the batch (Kingma et al. 2021, arXiv:2107.00630, appendix I.1): every
        # batch sees the whole range of times, which steadies the gradient.
        uniform = (torch.rand(1, generator=random) + torch.arange(len(cond)) / len(cond)) % 1.0
        loss = self.process.loss(self.network, x0, cond, noise, uniform, weight=weight).mean()
        yield loss, "network", {"loss": loss}

    def _batch(self, step: int) -> Batch:
        if self.cropped is None or self.crops is None:
            return self.whole(step)
        return (self.whole if self._is_whole(step, self.crops) else self.cropped)(step)

    def _is_whole(self, step: int, crops: Crops) -> bool:
        # All processes crop in the same steps, so that none waits for another.
        return float(torch.rand(1, generator=generator("whole", self.seed, step))) < crops.full_share

    def probes(self, step: int) -> Sequence[int]:
        """See :class:`medgen.training.loop.Varied`: a step on whole latents and one on crops."""
        crops = self.crops
        if crops is None:
            return [step]
        whole = self._is_whole(step, crops)
        other = (s for s in range(step + 1, step + _PROBED) if self._is_whole(s, crops) != whole)
        return [step, *itertools.islice(other, 1)]

    @torch.no_grad()
    def validate(self, averages: Mapping[str, Ema]) -> Mapping[str, float]:
        """Loss on held-out latents with fixed noise, over fixed noise levels, and what samples have of copies.

        Returns:
            ``loss_long`` and ``loss_short`` of each average; of the chosen one ``loss`` and its three bands ``low``,
            ``mid`` and ``high``: thirds of the noise levels that training draws; and the figures of
            :class:`medgen.training.memorisation.Memorisation`.
        """
        figures: dict[str, float] = {}
        profiles = [p for p in ema.GAMMAS if ema.key("network", p) in averages]
        if self.held_out is not None:
            bands = {p: self._bands(self._averaged(averages, p), self.held_out) for p in profiles}
            figures = {f"loss_{p}": float(np.mean(list(found.values()))) for p, found in bands.items()}
            self.chosen = choice(self.average, figures)
            figures = {"loss": figures[f"loss_{self.chosen}"], **bands[self.chosen], **figures}
        if self.samples is not None and self.memorisation is not None:
            figures |= self.memorisation.measure(self.samples(self._averaged(averages, self.chosen)))
        return figures

    def _bands(self, network: torch.nn.Module, held_out: LatentSet) -> dict[str, float]:
        levels = len(BANDS) * LEVELS_A_BAND
        losses: list[list[torch.Tensor]] = [[] for _ in range(levels)]
        for first in range(0, len(held_out), self.batch):
            at = range(first, min(first + self.batch, len(held_out)))
            rows = held_out.rows.at(at)
            x0 = fixed_draw(rows, at, self.statistics)
            cond = replace(held_out.cond.rows(at), mask=rows.mask)
            for level in range(levels):
                noise = torch.randn(x0.shape, generator=generator("validate", level, first)).to(self.device)
                uniform = torch.full((len(at),), (level + 0.5) / levels)
                losses[level].append(self.process.loss(network, x0, cond, noise, uniform, weight=rows.weight))
        means = np.array([float(torch.cat(rows).mean()) for rows in losses])
        return {band: float(np.mean(part)) for band, part in zip(BANDS, np.split(means, 3), strict=True)}

    def panel(self, averages: Mapping[str, Ema]) -> np.ndarray | None:
        """Samples on fixed seeds, of the average that the last validation chose."""
        return self.draw(self._averaged(averages, self.chosen)) if self.draw else None

    def _averaged(self, averages: Mapping[str, Ema], profile: str) -> torch.nn.Module:
        return averages[ema.key("network", profile)].applied(self.network)


def choice(average: str, figures: Mapping[str, float]) -> str:
    """The profile that counts: the one named, or of ``auto`` the one of the lower loss, the long one without any."""
    losses = {profile: figures[f"loss_{profile}"] for profile in ema.GAMMAS if f"loss_{profile}" in figures}
    if average != "auto":
        return average
    return min(losses, key=losses.__getitem__) if losses else "long"
