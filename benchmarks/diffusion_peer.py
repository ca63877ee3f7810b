"""MONAI's latent diffusion as the notebook generation/3d_ldm/3d_ldm_tutorial.ipynb of Project-MONAI/tutorials sets it.

Its DiffusionModelUNet (widths 32, 64, 64, attention at the last two levels, heads of 64 channels), its DDPMScheduler
(1000 steps, scaled-linear betas from 0.0015 to 0.0195, eps-prediction), its LatentDiffusionInferer with a scale factor
of 1 / std of the first batch's latents, Adam at 1e-4, batches of two, mixed precision in training and float32 in
sampling, no average of weights and no falling rate. As in MONAI's brain LDM, the covariates condition it by
cross-attention, one token that holds them all, each brought to [0, 1]. Three things differ: latents come from the codec
that both sides share, as draws of stored posteriors (which is what encoding every batch again amounts to, without its
cost); mixed precision is bfloat16; and latents whose extents are no multiples of 4 are padded and cropped by the
inferer's own means.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusion_bench import Bench, encoded, telling
from diffusion_draw import SEED, Drawn, kept
from monai.data import DataLoader, Dataset
from monai.inferers import LatentDiffusionInferer
from monai.networks.nets import DiffusionModelUNet
from monai.networks.schedulers import DDIMScheduler, DDPMScheduler
from monai.networks.schedulers.scheduler import Scheduler
from monai.utils import first, set_determinism

from medgen.config.codec import LatentsConfig
from medgen.files import digest
from medgen.models.codec import Codec
from medgen.sampling.noise import Key, streams
from medgen.store.latents import Latents
from medgen.training import checkpoint
from medgen.training.precision import autocast

FACTOR = 4
TIMESTEPS = 1000
CHECKPOINT_SECONDS = 60.0
SAMPLINGS = ("ddim_50_clipped", "ddim_50_unclipped", "ddpm_1000")


class _Posteriors:
    """In the autoencoder's place: (mean, standard deviation) joined along channels -> a draw; latents stay latents."""

    def encode_stage_2_inputs(self, x: torch.Tensor) -> torch.Tensor:
        mean, std = x.chunk(2, dim=1)
        return mean + std * torch.randn_like(mean)

    def decode_stage_2_outputs(self, z: torch.Tensor) -> torch.Tensor:
        return z


class TutorialDiffusion:
    """The tutorial's diffusion model.

    Args:
        latent_shape: (C, x, y, z).
        conditions: K covariates.
        device: where it is.
    """

    def __init__(self, latent_shape: tuple[int, ...], conditions: int, device: torch.device) -> None:
        set_determinism(42)
        self.device, self.latent_shape = device, latent_shape
        self.padded = tuple(-(-n // FACTOR) * FACTOR for n in latent_shape[1:])
        self.betas: dict[str, Any] = {"schedule": "scaled_linear_beta", "beta_start": 0.0015, "beta_end": 0.0195}
        self.posteriors = _Posteriors()
        self.scale = 1.0
        self.unet = DiffusionModelUNet(
            spatial_dims=3,
            in_channels=latent_shape[0],
            out_channels=latent_shape[0],
            num_res_blocks=1,
            channels=(32, 64, 64),
            attention_levels=(False, True, True),
            num_head_channels=(0, 64, 64),
            with_conditioning=True,
            cross_attention_dim=conditions,
        ).to(device)

    def _inferer(self) -> LatentDiffusionInferer:
        scheduler = DDPMScheduler(num_train_timesteps=TIMESTEPS, **self.betas)
        other = self.padded != tuple(self.latent_shape[1:])
        shapes = {"ldm_latent_shape": self.padded, "autoencoder_latent_shape": self.latent_shape[1:]} if other else {}
        return LatentDiffusionInferer(scheduler, scale_factor=self.scale, **shapes)

    def train(
        self,
        mean: torch.Tensor,
        logvar: torch.Tensor,
        context: torch.Tensor,
        seconds: float,
        folder: Path,
        say: Callable[[int, int, str], None],
    ) -> dict[str, float]:
        """Train for some seconds, going on from a checkpoint.

        Args:
            mean: (N, C, x, y, z) posterior means of the training cases.
            logvar: their log-variances.
            context: (N, K) covariates in [0, 1].
            seconds: of training, those before a kill counted in.
            folder: for the checkpoint.
            say: (done, total, remark).
        """
        pairs = torch.cat([mean, torch.exp(0.5 * logvar)], dim=1)
        cases = [{"latent": pair, "context": row[None]} for pair, row in zip(pairs, context, strict=True)]
        loader = DataLoader(Dataset(cases), batch_size=2, shuffle=True)
        optimiser = torch.optim.Adam(self.unet.parameters(), lr=1e-4)
        self.scale = float(1 / self.posteriors.encode_stage_2_inputs(first(loader)["latent"]).std())
        path, steps, before, epoch = folder / "checkpoint.safetensors", 0, 0.0, 0
        if path.exists():
            saved = checkpoint.load(path, {"unet": self.unet}, {}, {"adam": optimiser})
            steps, before, self.scale, epoch = saved["step"], saved["seconds"], saved["scale"], saved["epoch"]
        inferer, began, saved_at = self._inferer(), time.monotonic(), time.monotonic()
        # torch 2.13 on a CPU fills weight gradients of bfloat16 convolutions over 2 x 2 x 2 voxels with garbage.
        precision = "auto" if min(self.padded) // FACTOR > 2 else "float32"
        spent, left_out = before, 0
        self.unet.train()
        while spent < seconds:
            losses: list[float] = []
            for batch in loader:
                latents, row = (batch[key].to(self.device) for key in ("latent", "context"))
                optimiser.zero_grad(set_to_none=True)
                with autocast(self.device, precision):
                    noise = torch.randn(len(latents), self.latent_shape[0], *self.padded, device=self.device)
                    timesteps = torch.randint(0, TIMESTEPS, (len(latents),), device=self.device).long()
                    predicted = inferer(
                        inputs=latents,
                        autoencoder_model=self.posteriors,
                        diffusion_model=self.unet,
                        noise=noise,
                        timesteps=timesteps,
                        condition=row,
                    )
                    loss = F.mse_loss(predicted.float(), noise.float())
                loss.backward()
                # The tutorial's GradScaler leaves out a step whose gradients are not finite.
                gradients = [p.grad for p in self.unet.parameters() if p.grad is not None]
                if torch.stack(torch._foreach_norm(gradients)).isfinite().all():
                    optimiser.step()
                    losses.append(loss.item())
                else:
                    left_out += 1
                steps, spent = steps + 1, before + time.monotonic() - began
                if spent >= seconds or time.monotonic() - saved_at > CHECKPOINT_SECONDS:
                    progress = {"step": steps, "seconds": spent, "scale": self.scale, "epoch": epoch}
                    checkpoint.save(path, {"unet": self.unet}, {}, {"adam": optimiser}, progress)
                    saved_at = time.monotonic()
                if spent >= seconds:
                    break
            epoch += 1
            remark = f"epoch {epoch} step {steps}: loss {np.mean(losses or [np.nan]):.4f}, {left_out} steps left out"
            say(min(int(spent), int(seconds)), int(seconds), remark)
        self.unet.eval()
        return {"steps": steps, "seconds": spent, "epochs": epoch}

    @torch.no_grad()
    def sample(self, context: torch.Tensor, sampling: str, keys: list[Key]) -> torch.Tensor:
        """Latents (B, C, x, y, z) for covariates (B, K) in [0, 1], by one of ``SAMPLINGS``."""
        scheduler: Scheduler
        if sampling == "ddpm_1000":
            scheduler = DDPMScheduler(num_train_timesteps=TIMESTEPS, **self.betas)
            scheduler.set_timesteps(num_inference_steps=TIMESTEPS)
        else:
            clip = sampling == "ddim_50_clipped"
            scheduler = DDIMScheduler(num_train_timesteps=TIMESTEPS, clip_sample=clip, **self.betas)
            scheduler.set_timesteps(num_inference_steps=50)
        torch.manual_seed(keys[0].seed + keys[0].index)  # of the noise that DDPM adds
        return self._inferer().sample(
            input_noise=streams(keys, (self.latent_shape[0], *self.padded), self.device)(0),
            autoencoder_model=self.posteriors,
            diffusion_model=self.unet,
            scheduler=scheduler,
            conditioning=context[:, None].to(self.device),
            verbose=False,
        )


def contexts(bench: Bench, rows: Sequence[Mapping[str, Any]]) -> torch.Tensor:
    """Covariates (N, K) in [0, 1] by the training cases' range, levels spread evenly; the middle where missing."""
    columns = []
    for name in bench.columns:
        column = bench.store.schema[name]
        if column.is_numeric:
            values = bench.training_values(name)
            low, span = float(values.min()), float(np.ptp(values)) or 1.0
            cells = [None if (v := row.get(name)) is None else (float(v) - low) / span for row in rows]
        else:
            last = max(len(column.levels) - 1, 1)
            cells = [None if (v := row.get(name)) is None else column.levels.index(str(v)) / last for row in rows]
        columns.append([0.5 if cell is None else cell for cell in cells])
    return torch.tensor(columns, dtype=torch.float32).T.contiguous()


def tutorial(bench: Bench) -> tuple[TutorialDiffusion, Path]:
    """The tutorial's model, trained for the minutes of an arm on the shared latents, and its folder."""
    stored, minutes = Latents(encoded(bench, LatentsConfig())), bench.options.minutes
    rows = stored.rows(bench.store.indices("train"))
    mean, logvar = (torch.from_numpy(np.array(a[rows])) for a in (stored.mean, stored.logvar))
    covariates = [bench.store.cases[stored.cases[r]].covariates for r in rows]
    folder = bench.folder / "arms" / f"tutorial-{digest([minutes, bench.columns])[:8]}"
    folder.mkdir(parents=True, exist_ok=True)
    peer = TutorialDiffusion(tuple(mean.shape[1:]), len(bench.columns), bench.device)
    tell = telling("tutorial")
    made = peer.train(
        mean, logvar, contexts(bench, covariates), 60 * minutes, folder, lambda *said: tell("training", *said)
    )
    print(f"tutorial: {made['steps']:.0f} steps, {made['epochs']:.0f} epochs in {made['seconds']:.0f} s", flush=True)
    return peer, folder


def tutorial_samples(
    bench: Bench,
    peer: TutorialDiffusion,
    folder: Path,
    sampling: str,
    rows: Sequence[Mapping[str, Any]],
    codec: Codec,
) -> Drawn:
    """Samples of the tutorial's model, one a row of covariates."""
    context = contexts(bench, rows)

    def work(part: range) -> torch.Tensor:
        return peer.sample(context[part.start : part.stop], sampling, [Key(SEED, i) for i in part])

    return kept(bench, folder, sampling, SEED, context.tolist(), work, codec)
