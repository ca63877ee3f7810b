"""Stages autoencoder and latents."""

import numpy as np
import torch

from medgen.generation.model import build_codec
from medgen.models.codec import Codec
from medgen.stages.conditions import check_requests
from medgen.stages.run import Run, schedule_of
from medgen.store.latents import Latents, LatentStatistics
from medgen.store.prepared import Prepared
from medgen.training.autoencoder import AutoencoderTask
from medgen.training.checkpoint import load_average
from medgen.training.loop import train


def _arrays(run: Run, indices: list[int]) -> tuple[torch.Tensor, torch.Tensor | None]:
    store = run.store
    images = torch.from_numpy(np.stack([np.asarray(store.image(i), dtype=np.float16) for i in indices]))
    labels = None
    if len(store.label_values) > 1:
        stacked = np.stack([_label(store, i) for i in indices])[:, None]
        labels = torch.from_numpy(stacked).to(run.device)
    return images.to(run.device), labels


def _label(store: Prepared, index: int) -> np.ndarray:
    if store.cases[index].has_label:
        return np.asarray(store.label(index), dtype=np.int16)
    return np.full(store.shape, -1, dtype=np.int16)


def label_count(store: Prepared) -> int:
    """Label ids with background, 0 for a cohort without labels."""
    return len(store.label_values) if len(store.label_values) > 1 else 0


def _fresh_codec(run: Run) -> Codec:
    torch.manual_seed(run.config.seed)
    return build_codec(run.codec_kind(), len(run.store.channels), label_count(run.store)).to(run.device)


def autoencoder(run: Run) -> None:
    """Train the codec."""
    check_requests(run)  # refuses here, and not after a long training, what later stages cannot do
    c = run.config.autoencoder
    images, labels = _arrays(run, run.train_cases())
    held_out = [
        (np.asarray(run.store.image(i), dtype=np.float32), run.store.label(i) if run.store.cases[i].has_label else None)
        for i in run.held_out_cases()
    ]
    task = AutoencoderTask(
        _fresh_codec(run),
        images,
        labels,
        held_out,
        patch=c.patch or run.store.shape,
        batch=c.training.batch,
        learning_rate=c.training.learning_rate,
        kl_weight=c.kl_weight,
        label_weight=c.label_weight,
        seed=run.config.seed,
    )
    train(task, run.folder / "autoencoder", schedule_of(c.training), run.device, run.stage_progress("autoencoder"))


def trained_codec(run: Run) -> Codec:
    """The codec with its averaged weights."""
    codec = _fresh_codec(run)
    codec.load_state_dict(load_average(run.folder / "autoencoder" / "checkpoint.safetensors", "codec", codec))
    return codec.eval().requires_grad_(False)


@torch.no_grad()
def latents(run: Run) -> None:
    """Encode every case, and its mirror image where asked."""
    codec, store = trained_codec(run), run.store
    means, logvars, cases, mirrored = [], [], [], []
    sides = (False, True) if run.config.latents.mirror else (False,)
    for i in range(len(store.cases)):
        image, label = _arrays(run, [i])
        for mirror in sides:
            x = image.float().flip(2) if mirror else image.float()
            ids = None if label is None else (label[:, 0].flip(1) if mirror else label[:, 0]).long()
            posterior = codec.encode(x, ids)
            means.append(posterior.mean[0].float().cpu().numpy())
            logvars.append(posterior.logvar[0].float().cpu().numpy())
            cases.append(i)
            mirrored.append(mirror)
        run.progress("latents", i + 1, len(store.cases), "cases")
    mean, logvar = np.stack(means), np.stack(logvars)
    training = set(run.train_cases())
    rows = [r for r, i in enumerate(cases) if i in training]
    statistics = LatentStatistics.measure(mean[rows], logvar[rows])
    Latents.write(run.folder / "latents", mean, logvar, cases, mirrored, statistics)
