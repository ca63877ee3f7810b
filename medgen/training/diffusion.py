"""Training a latent diffusion model."""

from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy

import numpy as np
import torch

from medgen.diffusion.process import Process
from medgen.models.condition import Condition
from medgen.sampling.noise import generator
from medgen.store.latents import LatentStatistics
from medgen.store.patches import PatchSampler
from medgen.training.ema import Ema

_VALIDATION_LEVELS = 8


class DiffusionTask:
    """Denoising of standardised latents, with covariates dropped at random.

    A fresh draw of each posterior is standardised at every step: the stored mean and logvar are the data, never one
    sample of them.

    Args:
        network: predicts for the process; on the device.
        process: how data becomes noise.
        mean: (N, C, X, Y, Z) posterior means on the device.
        logvar: their log-variances.
        statistics: dataset statistics.
        cond: conditions of the N latents, on the device.
        held_out: (mean, condition) of validation latents, standardised by this class.
        batch: latents a step.
        learning_rate: of AdamW.
        drop_all: chance of training a row without any covariate (for classifier-free guidance).
        drop_each: chance of dropping each covariate on its own.
        seed: of the experiment.
        draw: renders sample panels from the averaged network, or None.
    """

    def __init__(
        self,
        network: torch.nn.Module,
        process: Process,
        mean: torch.Tensor,
        logvar: torch.Tensor,
        statistics: LatentStatistics,
        cond: Condition,
        held_out: tuple[torch.Tensor, Condition] | None,
        *,
        batch: int,
        learning_rate: float,
        drop_all: float,
        drop_each: float,
        seed: int,
        draw: Callable[[torch.nn.Module], np.ndarray] | None = None,
    ) -> None:
        self.network, self.process, self.statistics, self.cond = network, process, statistics, cond
        self.device, self.held_out, self.draw, self.seed = mean.device, held_out, draw, seed
        self.drop_all, self.drop_each = drop_all, drop_each
        self.sampler = PatchSampler([mean, logvar], mean.shape[2:], batch, seed=seed)
        self.modules: Mapping[str, torch.nn.Module] = {"network": network}
        self.optimisers: Mapping[str, torch.optim.Optimizer] = {
            "network": torch.optim.AdamW(network.parameters(), lr=learning_rate, betas=(0.9, 0.99), weight_decay=1e-2)
        }

    def step(self, step: int) -> Iterator[tuple[torch.Tensor, str, Mapping[str, torch.Tensor]]]:
        """One batch of latents."""
        batch = self.sampler(step)
        mean, logvar = batch.arrays
        random = generator("train", self.seed, step)
        draw, noise = torch.randn(2, *mean.shape, generator=random).to(self.device)
        x0 = self.statistics.standardise(mean + torch.exp(0.5 * logvar) * draw)
        cond = self._dropped(self.cond.rows(torch.from_numpy(batch.cases).to(self.device)), random)
        # One uniform number shared out over the batch (Kingma et al. 2021, arXiv:2107.00630, appendix I.1): every
        # batch sees the whole range of times, which steadies the gradient.
        uniform = (torch.rand(1, generator=random) + torch.arange(len(cond)) / len(cond)) % 1.0
        loss = self.process.loss(self.network, x0, cond, noise, uniform).mean()
        yield loss, "network", {"loss": loss}

    def _dropped(self, cond: Condition, random: torch.Generator) -> Condition:
        whole = torch.rand(len(cond), 1, generator=random) >= self.drop_all
        each = torch.rand(cond.present.shape, generator=random) >= self.drop_each
        return cond.masked((whole & each).to(self.device))

    @torch.no_grad()
    def validate(self, averages: Mapping[str, Ema]) -> Mapping[str, float]:
        """Loss on held-out latents with fixed noise, over fixed times."""
        if self.held_out is None:
            return {}
        network = self._averaged(averages)
        mean, cond = self.held_out
        x0 = self.statistics.standardise(mean)
        losses = []
        for level in range(_VALIDATION_LEVELS):
            noise = torch.randn(x0.shape, generator=generator("validate", level)).to(self.device)
            uniform = torch.full((len(cond),), (level + 0.5) / _VALIDATION_LEVELS)
            losses.append(float(self.process.loss(network, x0, cond, noise, uniform).mean()))
        return {"loss": float(np.mean(losses))}

    def panel(self, averages: Mapping[str, Ema]) -> np.ndarray | None:
        """Samples on fixed seeds."""
        return self.draw(self._averaged(averages)) if self.draw else None

    def _averaged(self, averages: Mapping[str, Ema]) -> torch.nn.Module:
        network = deepcopy(self.network)
        network.load_state_dict(averages["network"].state(network), strict=True)
        return network.eval()
