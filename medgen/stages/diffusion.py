"""Stage diffusion."""

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch

from medgen.cohort.case import numbered
from medgen.cohort.schema import Value
from medgen.generation.model import build_network
from medgen.models import tiling
from medgen.models.condition import ConditionEncoder
from medgen.models.mask import from_cells
from medgen.prepare import padding
from medgen.registry import resolve
from medgen.sampling.noise import Key, streams
from medgen.stages.ancestor import start_network
from medgen.stages.codec import trained_codec
from medgen.stages.conditions import derived_row, fit_encoder
from medgen.stages.masks import mask_input
from medgen.stages.run import Run, schedule_of
from medgen.store.latent_rows import LatentRows
from medgen.store.latents import Latents
from medgen.training import ema
from medgen.training.diffusion import HELD_OUT_SHARE, TRAINING_SHARE, Crops, DiffusionTask, LatentSet, choice
from medgen.training.distributed import world
from medgen.training.keep import NAME, BestKeeper, read_kept
from medgen.training.loop import train
from medgen.training.memorisation import Memorisation
from medgen.training.pictures import rows_of_slices

_PANEL_SEEDS = 3


def diffusion(run: Run) -> None:
    """Train the diffusion model on the latents."""
    c, device, folder = run.config.diffusion, run.device, run.folder / "diffusion"
    stored = Latents(run.folder / "latents")
    encoder, cases = fit_encoder(run)
    training, held_rows = stored.rows(run.train_cases()), stored.rows(run.held_out_cases(), mirrored=False)
    weight = None
    if c.mask_padding and stored.reached is not None:
        # What enough training cases show is known; held-out cases are judged by the same.
        known = padding.known(stored.reached[stored.rows(run.train_cases(), mirrored=False)])
        weight = padding.weights(stored.reached, known)
    train_set = latent_set(run, stored, encoder, cases, training, weight, TRAINING_SHARE)
    held_out = latent_set(run, stored, encoder, cases, held_rows, weight, HELD_OUT_SHARE) if held_rows else None
    if encoder.states is not None and encoder.states.cut:
        remark = f"{encoder.states.cut} texts are longer than covariates.text_tokens and were cut"
        run.progress("diffusion", 0, 1, remark)
    process = resolve("diffusion", c.process, "build")(**c.process_options)
    codec = trained_codec(run)
    torch.manual_seed(run.config.seed)
    fresh = build_network(run.network_kind(), train_set.rows.channels, encoder.schema, mask_input(run)).to(device)
    network = start_network(run, fresh, encoder)
    m = c.memorisation
    # Always the same solver: which weights are kept must not depend on how samples are drawn later.
    sampler = resolve("sampling", "heun", "sample")
    # What new patients would ask for; without held-out cases, what the training cases have.
    asked = held_out or train_set

    @torch.no_grad()
    def samples(averaged: torch.nn.Module, n: int, steps: int) -> torch.Tensor:
        """Standardised latents on fixed seeds, in batches as large as the training's."""
        drawn = []
        for first in range(0, n, c.training.batch):
            keys = [Key(0, i) for i in range(first, min(first + c.training.batch, n))]
            cond = asked.conditions([key.index % len(asked) for key in keys])
            shape = (len(keys), train_set.rows.channels, *train_set.rows.extent)
            noise = streams(keys, shape[1:], device)
            drawn.append(process.sample(process.as_model(averaged), shape, cond, sampler, noise, steps=steps))
        return torch.cat(drawn)

    @torch.no_grad()
    def draw(averaged: torch.nn.Module) -> np.ndarray:
        n = min(_PANEL_SEEDS, len(asked))
        x, mask = samples(averaged, n, 8), asked.conditions(range(n)).mask
        out = tiling.decode(codec, stored.statistics.restore(x), tile=run.config.generate.tile)
        images = out.image.float().clamp(-1, 1).cpu().numpy()
        ids = None if out.label_logits is None else out.label_logits.argmax(dim=1).cpu().numpy()
        if mask is not None:
            ids = from_cells(mask).clamp(min=0).cpu().numpy()
        return rows_of_slices([(images[b], None if ids is None else ids[b]) for b in range(len(images))])

    here = world(device)
    yardstick = None
    if m.samples and here.first:
        subjects = [run.store.cases[stored.cases[r]].subject_id for r in training]
        order = numbered(subjects)
        yardstick = Memorisation(
            train_set.rows,
            stored.statistics,
            [order[subject] for subject in subjects],
            held_out.rows if held_out else None,
            m.quantile,
        )
    task = DiffusionTask(
        network,
        process,
        train_set,
        stored.statistics,
        held_out,
        batch=c.training.batch,
        learning_rate=c.training.learning_rate,
        drop_all=c.drop_all,
        drop_each=c.drop_each,
        seed=run.config.seed,
        rank=here.rank,
        crops=Crops(c.patch, c.full_share) if c.patch else None,
        average=c.ema,
        draw=draw,
        samples=partial(samples, n=m.samples, steps=m.steps) if m.samples else None,
        memorisation=yardstick,
    )
    keeper = BestKeeper(folder, "network", network, partial(choice, c.ema), best=c.keep == "best")
    schedule = schedule_of(c.training, profiles=tuple(ema.GAMMAS))
    train(task, folder, schedule, device, run.stage_progress("diffusion"), keeper=keeper if here.first else None)
    if here.first:
        said = read_kept(folder / NAME)
        run.progress("diffusion", 1, 1, f"kept the {said['average']} average of step {said['step']}")


def latent_set(
    run: Run,
    stored: Latents,
    encoder: ConditionEncoder,
    cases: Sequence[dict[str, Value]],
    rows: Sequence[int],
    weight: np.ndarray | None,
    share: float,
) -> LatentSet:
    """Some rows of the stored latents with their conditions.

    Args:
        run: the experiment.
        stored: the latents.
        encoder: of the conditions.
        cases: covariates of every prepared case.
        rows: of the latents.
        weight: of every stored latent in the loss, None where all count.
        share: of the device's memory that they may take.
    """
    values = []
    for r in rows:
        row, again = cases[stored.cases[r]], stored.volumes_ml[r]
        if again is not None:
            row = {**row, **derived_row(run, {**run.store.cases[stored.cases[r]].covariates, **again})}
        values.append(row)
    kept = LatentRows(
        stored.mean, stored.logvar, run.device, index=rows, weight=weight, masks=stored.masks, share=share
    )
    return LatentSet(kept, encoder.encode(values).to(run.device))
