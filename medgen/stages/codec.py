"""Stages autoencoder and quality."""

from collections.abc import Sequence

import numpy as np
import torch

from medgen.config import AutoencoderConfig
from medgen.evaluation import codec_quality
from medgen.generation.masks import check_given
from medgen.generation.model import build_codec
from medgen.models.codec import Codec
from medgen.models.perceptual import load_perceptual
from medgen.stages import quality as gate
from medgen.stages.ancestor import check_ancestor, is_frozen, start_codec
from medgen.stages.conditions import check_requests
from medgen.stages.masks import codec_labels, follows_masks
from medgen.stages.run import Run, schedule_of
from medgen.store.augment import Augmentation
from medgen.store.centres import Chances
from medgen.store.feed import patch_feed
from medgen.store.patches import PatchSampler
from medgen.training import checkpoint
from medgen.training.adversary import AdversaryOptions
from medgen.training.autoencoder import VALIDATED, AutoencoderTask, LossWeights
from medgen.training.checkpoint import load_average
from medgen.training.distributed import world
from medgen.training.ema import Ema
from medgen.training.loop import train


def _fresh_codec(run: Run) -> Codec:
    torch.manual_seed(run.config.seed)
    return build_codec(run.codec_kind(), len(run.store.channels), codec_labels(run)).to(run.device)


def autoencoder(run: Run) -> None:
    """Train the codec, from the weights of the model that ``init`` names where there is one."""
    # Refused here, and not after a long training: what later stages cannot do.
    check_requests(run)
    gate.thresholds(run)
    gate.check_sides(run)
    if follows_masks(run) and run.config.generate.masks is not None:
        check_given(run.config.generate.masks.expanduser(), run.store.label_values)
    check_ancestor(run)
    codec = start_codec(run, _fresh_codec(run))
    if is_frozen(run):
        kept = {"codec": codec}, {"codec": Ema(codec)}
        checkpoint.save(run.folder / "autoencoder" / checkpoint.NAME, *kept, {}, {"step": 0, "seconds": 0.0})
        run.progress("autoencoder", 1, 1, "the codec of the model that init names")
        return
    c, store = run.config.autoencoder, run.store
    held_out = [
        (
            np.asarray(store.image(i), dtype=np.float32),
            store.label(i) if codec.labels and store.cases[i].has_label else None,
        )
        for i in run.held_out_cases()[:VALIDATED]
    ]
    augment = c.augment.values()
    sampler = patch_feed(
        store,
        run.train_cases(),
        c.patch or store.shape,
        c.training.batch,
        seed=run.config.seed,
        device=run.device,
        rank=world(run.device).rank,
        storage=c.sampling.storage,
        resident=c.sampling.resident,
        chances=Chances(c.sampling.foreground, c.sampling.labels, c.sampling.rare),
        augmentation=Augmentation(**augment) if augment else None,
        labels=codec.labels > 0,
    )
    gate.check_adversary(c, sampler.patch)
    task = autoencoder_task(codec, sampler, held_out, c, run.config.seed)
    train(task, run.folder / "autoencoder", schedule_of(c.training), run.device, run.stage_progress("autoencoder"))


def autoencoder_task(
    codec: Codec,
    sampler: PatchSampler,
    held_out: Sequence[tuple[np.ndarray, np.ndarray | None]],
    config: AutoencoderConfig,
    seed: int,
) -> AutoencoderTask:
    """The training task that a config section describes."""
    weights = config.losses.model_dump(exclude={"perceptual_weights"})
    path = config.losses.perceptual_weights
    return AutoencoderTask(
        codec,
        sampler,
        held_out,
        weights=LossWeights(**weights),
        adversary=AdversaryOptions(**config.adversary.model_dump()),
        perceptual=load_perceptual(path).to(sampler.device) if path else None,
        learning_rate=config.training.learning_rate,
        seed=seed,
    )


def quality(run: Run) -> None:
    """Measure what the codec keeps of held-out cases, beside its weights."""
    codec = trained_codec(run)
    figures = codec_quality.measure(run.store, codec, run.device, run.config.autoencoder.accept.sizes_ml)
    codec_quality.write(run.folder / "autoencoder", figures, run.store, codec, run.device)
    said = f"PSNR {figures['psnr_db']} dB, SSIM {figures['ssim']}"
    if not codec.image_channels:
        said = "Dice " + ", ".join(f"{name} {value}" for name, value in figures.get("dice", {}).items())
    run.progress("quality", 1, 1, said)


def trained_codec(run: Run) -> Codec:
    """The codec with its averaged weights."""
    codec = _fresh_codec(run)
    codec.load_state_dict(load_average(run.folder / "autoencoder" / checkpoint.NAME, "codec", codec))
    return codec.eval().requires_grad_(False)
