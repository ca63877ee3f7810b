"""Our codec and MONAI's AutoencoderKL, trained for the same time on the same cases.

    python benchmarks/codec.py --data DATA/hippocampus --minutes 20 [--labels] [--json FILE]

The cohort is prepared once (at its own voxel size, or at 2 mm where it is finer and larger than 100 voxels), 20% of
its subjects are held out, and the two are trained one after the other with all cores. Ours is the codec `wavelet` with
its default options and losses; the peer is set up as MONAI's tutorial 3d_ldm sets it up (see ``codec_peer.py``). Both
code 3 latent channels at stride 4 and see images alone, unless ``--labels`` gives ours the label maps too: then their
Dice is printed, and the peer's task is the lighter one. Seconds are of training; "seconds_to_peer_psnr" is when ours
first reached, on the first four held-out cases, the peer's final PSNR on them. ``--peer-light`` gives the peer a
network of half the width, which on a CPU takes it further in the same time. Voxels per second are
medians over steps. Sharpness is the Laplacian variance of
reconstructions over that of the images.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from codec_peer import TutorialAutoencoder

from medgen.cohort.splits import split
from medgen.config import AutoencoderConfig
from medgen.files import write_json
from medgen.formats.detect import read_cohort
from medgen.measure.image import psnr_db, ssim
from medgen.measure.overlap import dice
from medgen.measure.sharpness import laplacian_variance
from medgen.models.codec import Codec
from medgen.models.wavelet import build
from medgen.prepare.options import PrepareOptions
from medgen.prepare.run import prepare_cohort
from medgen.stages.codec import autoencoder_task
from medgen.store.patches import PatchSampler
from medgen.store.prepared import Prepared
from medgen.training.autoencoder import reconstruct
from medgen.training.checkpoint import load_average
from medgen.training.loop import Schedule, train
from medgen.training.precision import device_of

WATCHED = 4
FINE_AND_LARGE = 100

Reconstruct = Callable[[np.ndarray, np.ndarray | None], tuple[np.ndarray, np.ndarray | None]]


def prepared(data: Path, folder: Path, spacing_mm: float | None, stride: int = 8) -> Prepared:
    """The cohort on one grid, with a fifth of its subjects held out."""
    cohort = split(read_cohort(data), validation=0.2, seed=0)
    store = prepare_cohort(cohort, folder, PrepareOptions(spacing_mm=spacing_mm, stride=stride), workers=2)
    if spacing_mm is None and max(store.shape) > FINE_AND_LARGE:
        store = prepare_cohort(cohort, folder, PrepareOptions(spacing_mm=2.0, stride=stride), workers=2)
    return store


def figures(store: Prepared, cases: Sequence[int], run: Reconstruct, labels: bool) -> dict[str, Any]:
    """Means over held-out cases."""
    rows, overlap = [], []
    for i in cases:
        image = np.asarray(store.image(i), dtype=np.float32)
        label = np.asarray(store.label(i)) if labels and store.cases[i].has_label else None
        out, ids = run(image, label)
        sharpness = laplacian_variance(out) / laplacian_variance(image)
        rows.append([psnr_db(out, image), ssim(out, image), float(np.abs(out - image).mean()), sharpness])
        if label is not None and ids is not None:
            overlap.append(dice(ids, label, range(1, len(store.label_values))))
    found: dict[str, Any] = dict(zip(("psnr", "ssim", "l1", "sharpness"), np.mean(rows, axis=0).tolist(), strict=True))
    found["watched_psnr"] = float(np.mean([row[0] for row in rows[:WATCHED]]))
    if overlap:
        means = np.nanmean(np.array(overlap), axis=0)
        found["dice"] = {n: float(v) for n, v in zip(store.label_names[1:], means, strict=True)}
    return found


def ours(store: Prepared, minutes: float, options: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Train and measure our codec; the training is the one of ``medgen run``."""
    config = AutoencoderConfig.model_validate(
        {"kind": "wavelet", "training": {"steps": 10**9, "minutes": minutes, "validate_every": 200}}
    )
    config = config.model_copy(update={"patch": config.patch or (32, 32, 32)})
    torch.manual_seed(0)
    labels = len(store.label_values) if options.labels else 0
    codec = build(len(store.channels), labels, latent_channels=options.latent_channels).to(device)
    train_cases, held = list(store.indices("train")), list(store.indices("val"))
    arrays = [torch.from_numpy(np.stack([np.asarray(store.image(i)) for i in train_cases])).to(device)]
    if labels:
        ids = np.stack([np.asarray(store.label(i)).astype(np.int16) for i in train_cases])[:, None]
        arrays.append(torch.from_numpy(ids).to(device))
    patch = config.patch or store.shape
    sampler = PatchSampler(arrays, patch, config.training.batch, seed=0)
    watched = [
        (np.asarray(store.image(i), dtype=np.float32), np.asarray(store.label(i)) if labels else None)
        for i in held[:WATCHED]
    ]
    t = config.training
    schedule = Schedule(t.steps, t.minutes, t.warmup, t.clip, t.precision, t.log_every, t.validate_every, 1e9)
    with tempfile.TemporaryDirectory() as folder:
        train(autoencoder_task(codec, sampler, watched, config, 0), Path(folder), schedule, device, _say("ours"))
        lines = [json.loads(line) for line in (Path(folder) / "log.jsonl").read_text().splitlines()]
        codec.load_state_dict(load_average(Path(folder) / "checkpoint.safetensors", "codec", codec))
    codec.eval()
    steps, seconds = lines[-1]["step"], max(line.get("seconds", 0.0) for line in lines)
    at = {line["step"]: line["seconds"] for line in lines if "seconds" in line}
    # The median between two log lines leaves out the validations, which the peer does not make.
    rate = median((b - a) / (at[b] - at[a]) for a, b in pairwise(sorted(at)))
    run: Reconstruct = partial(_reconstruct, codec, device)
    return {
        **figures(store, held, run, bool(labels)),
        "voxels_per_s": rate * config.training.batch * int(np.prod(sampler.patch)),
        "seconds": seconds,
        "steps": steps,
        "curve": [[at[line["step"]], line["val_psnr"]] for line in lines if "val_psnr" in line],
    }


def _reconstruct(
    codec: Codec, device: torch.device, image: np.ndarray, label: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray | None]:
    return reconstruct(codec, image, label, device)


def monai(store: Prepared, minutes: float, options: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Train and measure the tutorial's autoencoder."""
    peer = TutorialAutoencoder(options.latent_channels, device, light=options.peer_light)
    images = np.stack([np.asarray(store.image(i), dtype=np.float32) for i in store.indices("train")])
    made = peer.train(torch.from_numpy(images), 60 * minutes, _say("monai"))

    def run(image: np.ndarray, label: np.ndarray | None) -> tuple[np.ndarray, None]:
        return peer.reconstruct(image), None

    return {**figures(store, list(store.indices("val")), run, labels=False), **made}


def _say(who: str) -> Callable[[int, int, str], None]:
    last = [0.0]

    def say(done: int, total: int, remark: str) -> None:
        if time.monotonic() - last[0] > 30 or done == total:
            last[0] = time.monotonic()
            print(f"{who}: {done * 100 // total}% {remark}", flush=True)

    return say


def main() -> None:
    """Train both, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a cohort")
    parser.add_argument("--minutes", type=float, default=20.0, help="of training, each")
    parser.add_argument("--spacing", type=float, help="voxel size in mm")
    parser.add_argument("--latent-channels", type=int, default=3)
    parser.add_argument("--peer-light", action="store_true", help="the peer with widths 16, 32, 64 and no attention")
    parser.add_argument("--labels", action="store_true", help="let ours code the label maps too")
    parser.add_argument("--only", choices=("ours", "monai"))
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    device = device_of(options.device)
    with tempfile.TemporaryDirectory() as folder:
        store = prepared(options.data, Path(folder), options.spacing)
        held = len(store.indices("val"))
        print(
            f"{len(store.indices('train'))} training and {held} held-out cases of {store.shape} voxels at "
            f"{store.spacing_mm} mm; {torch.get_num_threads()} threads, {device}"
        )
        arms = {"ours": ours, "monai": monai}
        chosen = [options.only] if options.only else list(arms)
        result = {name: arms[name](store, options.minutes, options, device) for name in chosen}
    if len(result) == 2:
        target = result["monai"]["watched_psnr"]
        reached = [seconds for seconds, psnr in result["ours"]["curve"] if psnr >= target]
        result["ours"]["seconds_to_peer_psnr"] = reached[0] if reached else None
        result["monai"]["seconds_to_peer_psnr"] = result["monai"]["seconds"]
    print(f"\n{'':22}" + "".join(f"{name:>14}" for name in result))
    for key in ("psnr", "ssim", "l1", "sharpness", "voxels_per_s", "seconds_to_peer_psnr"):
        cells = [result[name].get(key) for name in result]
        print(f"{key:22}" + "".join(f"{'-' if cell is None else format(cell, '.4g'):>14}" for cell in cells))
    if "dice" in result.get("ours", {}):
        print("dice (ours)", {name: round(value, 3) for name, value in result["ours"]["dice"].items()})
    if options.json:
        write_json(options.json, result)


if __name__ == "__main__":
    main()
