"""Stage diffusion."""

from functools import partial

import numpy as np
import torch

from medgen.generation.model import build_network
from medgen.models.condition import Condition
from medgen.registry import resolve
from medgen.sampling.noise import Key, streams
from medgen.stages.codec import trained_codec
from medgen.stages.conditions import fit_encoder
from medgen.stages.run import Run, schedule_of
from medgen.store.latents import Latents
from medgen.training.diffusion import DiffusionTask
from medgen.training.loop import train
from medgen.training.pictures import rows_of_slices

_PANEL_SEEDS = 3


def diffusion(run: Run) -> None:
    """Train the diffusion model on the latents."""
    c, device = run.config.diffusion, run.device
    stored = Latents(run.folder / "latents")
    encoder, rows = fit_encoder(run)

    def batch(indices: list[int]) -> tuple[torch.Tensor, torch.Tensor, Condition]:
        mean, logvar = (torch.from_numpy(np.array(a[indices])).to(device) for a in (stored.mean, stored.logvar))
        return mean, logvar, encoder.encode([rows[stored.cases[r]] for r in indices]).to(device)

    mean, logvar, cond = batch(stored.rows(run.train_cases()))
    held = stored.rows(run.held_out_cases(), mirrored=False)
    held_mean, _, held_cond = batch(held) if held else (None, None, None)
    process = resolve("diffusion", c.process, "build")(**c.process_options)
    codec = trained_codec(run)
    torch.manual_seed(run.config.seed)
    network = build_network(run.network_kind(), mean.shape[1], encoder.schema).to(device)
    g = run.config.generate
    sampler = partial(resolve("sampling", g.sampler, "sample"), **g.sampler_options)

    @torch.no_grad()
    def draw(averaged: torch.nn.Module) -> np.ndarray:
        keys = [Key(0, i) for i in range(_PANEL_SEEDS)]
        asked = held_cond.rows(slice(0, _PANEL_SEEDS)) if held_cond is not None else cond.rows(slice(0, _PANEL_SEEDS))
        keys = keys[: len(asked)]
        noise = streams(keys, mean.shape[1:], device)
        shape = (len(keys), *mean.shape[1:])
        x = process.sample(process.as_model(averaged), shape, asked, sampler, noise, steps=8)
        out = codec.decode(stored.statistics.restore(x))
        images = out.image.float().clamp(-1, 1).cpu().numpy()
        ids = None if out.label_logits is None else out.label_logits.argmax(dim=1).cpu().numpy()
        return rows_of_slices([(images[b], None if ids is None else ids[b]) for b in range(len(keys))])

    task = DiffusionTask(
        network,
        process,
        mean,
        logvar,
        stored.statistics,
        cond,
        (held_mean, held_cond) if held_mean is not None and held_cond is not None else None,
        batch=c.training.batch,
        learning_rate=c.training.learning_rate,
        drop_all=c.drop_all,
        drop_each=c.drop_each,
        seed=run.config.seed,
        draw=draw,
    )
    train(task, run.folder / "diffusion", schedule_of(c.training), device, run.stage_progress("diffusion"))
