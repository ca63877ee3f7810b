"""Training a latent diffusion model."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from medgen.diffusion.process import Process
from medgen.models.condition import Condition, crop_box
from medgen.sampling.noise import generator
from medgen.store.latents import LatentStatistics
from medgen.store.patches import Batch, Kind, PatchSampler
from medgen.training import ema
from medgen.training.dropout import dropped
from medgen.training.ema import Ema
from medgen.training.memorisation import Memorisation, fixed_draw
from medgen.training.optimiser import adamw

BANDS = ("low", "mid", "high")
LEVELS_A_BAND = 3


@dataclass(frozen=True)
class LatentSet:
    """Encodings of cases, on the device.

    Attributes:
        mean: (N, C, X, Y, Z) posterior means.
        logvar: their log-variances.
        cond: conditions of the N rows.
        weight: (N, 1, X, Y, Z) how much each latent counts in the loss, 0 for padding; None where all count.
    """

    mean: torch.Tensor
    logvar: torch.Tensor
    cond: Condition
    weight: torch.Tensor | None = None


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
        self.network, self.process, self.statistics, self.cond = network, process, statistics, train.cond
        self.device, self.held_out, self.seed, self.batch = train.mean.device, held_out, seed, batch
        self.draw, self.samples, self.memorisation, self.average = draw, samples, memorisation, average
        self.drop_all, self.drop_each, self.crops = drop_all, drop_each, crops
        self.key: tuple[int, ...] = (seed, rank) if rank else (seed,)
        arrays = [train.mean, train.logvar, *([] if train.weight is None else [train.weight])]
        self.extent = tuple(int(n) for n in train.mean.shape[2:])

        def cropping(patch: Sequence[int]) -> PatchSampler:
            kinds: list[Kind] = ["latent"] * len(arrays)
            return PatchSampler(arrays, patch, batch, seed=seed, rank=rank, kinds=kinds)

        self.whole = cropping(self.extent)
        self.cropped = cropping(crops.patch) if crops else None
        self.chosen = "long" if average == "auto" else average
        self.modules: Mapping[str, torch.nn.Module] = {"network": network}
        self.optimisers: Mapping[str, torch.optim.Optimizer] = {
            "network": adamw(network.parameters(), learning_rate, weight_decay=1e-2, device=self.device)
        }

    def step(self, step: int, share: float) -> Iterator[tuple[torch.Tensor, str, Mapping[str, torch.Tensor]]]:
        """One batch of whole latents, or of crops."""
        batch = self._batch(step)
        mean, logvar, *weight = batch.arrays
        random = generator("train", *self.key[:1], step, *self.key[1:])
        # Layers draw from torch's own stream (dropout does): a resumed training repeats that too.
        torch.manual_seed(generator("layers", *self.key[:1], step, *self.key[1:]).initial_seed())
        draw, noise = torch.randn(2, *mean.shape, generator=random).to(self.device)
        x0 = self.statistics.standardise(mean + torch.exp(0.5 * logvar) * draw)
        cond = self._dropped(self.cond.rows(torch.from_numpy(batch.cases).to(self.device)), random)
        size = tuple(int(n) for n in mean.shape[2:])
        if size != self.extent:
            boxes = [crop_box(start, size, self.extent) for start in batch.starts.tolist()]
            cond = cond.crop(torch.stack(boxes).to(self.device))
        # One uniform number shared out over the batch (Kingma et al. 2021, arXiv:2107.00630, appendix I.1): every
        # batch sees the whole range of times, which steadies the gradient.
        uniform = (torch.rand(1, generator=random) + torch.arange(len(cond)) / len(cond)) % 1.0
        loss = self.process.loss(self.network, x0, cond, noise, uniform, weight=weight[0] if weight else None).mean()
        yield loss, "network", {"loss": loss}

    def _batch(self, step: int) -> Batch:
        if self.cropped is None or self.crops is None:
            return self.whole(step)
        # All processes crop in the same steps, so that none waits for another.
        whole = float(torch.rand(1, generator=generator("whole", self.seed, step))) < self.crops.full_share
        return (self.whole if whole else self.cropped)(step)

    def _dropped(self, cond: Condition, random: torch.Generator) -> Condition:
        return dropped(cond, self.drop_all, self.drop_each, random)

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
        x0 = fixed_draw(held_out.mean, held_out.logvar, self.statistics)
        levels = len(BANDS) * LEVELS_A_BAND
        losses = []
        for level in range(levels):
            noise = torch.randn(x0.shape, generator=generator("validate", level)).to(self.device)
            rows = [
                self.process.loss(
                    network,
                    x0[at],
                    held_out.cond.rows(at),
                    noise[at],
                    torch.full((len(x0[at]),), (level + 0.5) / levels),
                    weight=None if held_out.weight is None else held_out.weight[at],
                )
                for at in (slice(i, i + self.batch) for i in range(0, len(x0), self.batch))
            ]
            losses.append(float(torch.cat(rows).mean()))
        return {band: float(np.mean(part)) for band, part in zip(BANDS, np.split(np.array(losses), 3), strict=True)}

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
