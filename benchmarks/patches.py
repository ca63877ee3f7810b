"""Patches per second of medgen's sampler, MONAI's random crops and TorchIO's queue.

    python benchmarks/patches.py [--data DATA/oasis] [--n 12] [--json FILE]

Cubes of 48 and 64 voxels, 8 a batch, image and label, plain and with the same full augmentation (see
``patch_peers.py``). DATA/oasis is a BIDS folder of T1 brains with label maps under ``derivatives``, read at its own
spacing and cropped to the brains; without it the volumes are random numbers of such a size. Everything is in memory
before the clock starts, and each loader runs alone. Peers run with each count of worker processes given and the best
counts; ours runs in the process itself. A figure is the median of the repeats, each a window of the seconds given.
Install the peers with ``pip install medgen[bench]``.
"""

import argparse
import itertools
import os
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import torch
from patch_peers import BATCH, DEGREES, NOISE, QUEUE, SCALE, SHIFT, ZOOM, Case, monai_loader, torchio_loader

from medgen.files import write_json
from medgen.store.augment import Augmentation
from medgen.store.patches import PatchSampler, to_uint8
from medgen.volume import read_volume

PEERS = ("monai_samples", "monai_single", "torchio")
TUNED = ("monai_samples_uncopied", "monai_single_uncopied")
EXTENT = (144, 176, 144)
AUGMENTATION = Augmentation(
    flip=(0, 1, 2),
    rotate_degrees=(DEGREES, DEGREES, DEGREES),
    scale=ZOOM,
    intensity_scale=SCALE,
    intensity_shift=SHIFT,
    noise=NOISE,
)


def read_cases(folder: Path | None, n: int) -> list[Case]:
    """Images (1, X, Y, Z) in [-1, 1] and labels of one size, the brain in the middle."""
    if folder is None:
        rng = np.random.default_rng(0)
        return [
            {
                "image": torch.from_numpy(rng.random((1, *EXTENT), dtype=np.float32) * 2 - 1),
                "label": torch.from_numpy(rng.integers(0, 6, (1, *EXTENT), dtype=np.uint8)),
            }
            for _ in range(n)
        ]
    labels = {p.name.split("_")[0]: p for p in sorted(folder.glob("derivatives/*/sub-*/**/*_dseg.nii.gz"))}
    images = {p.name.split("_")[0]: p for p in sorted(folder.glob("sub-*/**/*_T1w.nii.gz"))}
    pairs = [(images[s], labels[s]) for s in sorted(images) if s in labels][:n]
    if not pairs:
        raise SystemExit(f"{folder} holds no pair of a _T1w and a _dseg image")
    return [_read(*pair) for pair in pairs]


def _read(image_path: Path, label_path: Path) -> Case:
    image, label = read_volume(image_path).data, read_volume(label_path, label=True).data
    high = np.percentile(image[image > 0], 99.5)
    scaled = np.clip(image / high, 0, 1).astype(np.float32) * 2 - 1
    inside = np.argwhere(image[0] > 0)
    middle = (inside.min(axis=0) + inside.max(axis=0)) // 2
    case = {}
    for key, array, empty in (("image", scaled, -1.0), ("label", label.astype(np.uint8), 0)):
        out = np.full((1, *EXTENT), empty, dtype=array.dtype)
        starts = middle - np.array(EXTENT) // 2
        source = [slice(max(s, 0), min(s + e, n)) for s, e, n in zip(starts, EXTENT, array.shape[1:], strict=True)]
        target = [slice(s.start - b, s.stop - b) for s, b in zip(source, starts.tolist(), strict=True)]
        out[(slice(None), *target)] = array[(slice(None), *source)]
        case[key] = torch.from_numpy(out)
    return case


def ours(cases: list[Case], size: int, *, augmented: bool, storage: str) -> Iterator[int]:
    """Yields the number of patches of each batch, for ever."""
    images = torch.stack([to_uint8(c["image"]) if storage == "uint8" else c["image"].half() for c in cases])
    labels = torch.stack([c["label"] for c in cases])
    sampler = PatchSampler(
        [images, labels],
        (size,) * 3,
        BATCH,
        seed=0,
        kinds=("image", "label"),
        augmentation=AUGMENTATION if augmented else None,
        label_dtype=torch.uint8,  # as the peers deliver them
    )
    for step in itertools.count():
        image, label = sampler(step).arrays
        assert image.shape[2:] == label.shape[2:] == (size, size, size)
        yield len(image)


def patches_per_second(batches: Iterator[int], seconds: float, repeats: int, at_least: int = BATCH) -> float:
    """Median over windows of that many seconds and at least so many patches, after one window's warm-up."""
    rates = []
    for repeat in range(repeats + 1):
        began, patches = time.perf_counter(), 0
        limit = seconds if repeat else seconds / 4
        while patches < at_least or time.perf_counter() - began < limit:
            patches += next(batches)
        rates.append(patches / (time.perf_counter() - began))
    return median(rates[1:])


def _monai(cases: list[Case], size: int, samples: bool, copied: bool, augmented: bool, workers: int) -> Iterator[int]:
    return monai_loader(cases, size, samples=samples, copied=copied, augmented=augmented, workers=workers)


def measure(cases: list[Case], size: int, augmented: bool, args: argparse.Namespace) -> dict[str, float | int]:
    """Patches per second of every loader, and each peer's best count of workers."""
    row: dict[str, float | int] = {}
    for name, storage in (("ours", "float16"), ("ours_uint8", "uint8")):
        batches = ours(cases, size, augmented=augmented, storage=storage)
        row[name] = patches_per_second(batches, args.seconds, args.repeats)
    peers: dict[str, Callable[[int], Iterator[int]]] = {
        "torchio": lambda workers: torchio_loader(cases, size, augmented=augmented, workers=workers)
    }
    for samples, copied in itertools.product((True, False), (True, False)):
        name = ("monai_samples" if samples else "monai_single") + ("" if copied else "_uncopied")
        peers[name] = partial(_monai, cases, size, samples, copied, augmented)
    for name, loader in peers.items():
        # A window over a queue has to hold whole fillings of it; an augmented one takes seconds.
        filling = QUEUE if name == "torchio" else BATCH
        repeats = 1 if name == "torchio" and augmented else args.repeats
        for workers in args.workers:
            batches = loader(workers)
            rate = patches_per_second(batches, args.seconds, repeats, filling)
            batches.close()
            if rate > row.get(name, 0.0):
                row[name], row[f"{name}_workers"] = rate, workers
    return row


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=None, help="BIDS folder of brains; random volumes without")
    parser.add_argument("--n", type=int, default=12, help="volumes")
    parser.add_argument("--seconds", type=float, default=0.7, help="of a timing window")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of torch in the main process")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, os.cpu_count() or 1], help="tried for each peer")
    parser.add_argument("--json", type=Path, default=None)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    cases = read_cases(args.data, args.n)
    print(f"{len(cases)} volumes of {EXTENT}, batch {BATCH}, {args.threads} threads; peers: the best of", end=" ")
    print(f"{args.workers} workers; patches per second, median of {args.repeats}")
    heads = ("samples", "single", "TorchIO", "samples*", "single*", "x best", "x best*")
    print(f"{'':13}{'ours':>8}{'uint8':>8}" + "".join(f"{head:>12}" for head in heads))
    table: dict[str, dict[str, dict[str, float | int]]] = {}
    for size, kind in itertools.product((48, 64), ("plain", "augmented")):
        row = measure(cases, size, kind == "augmented", args)
        table.setdefault(str(size), {})[kind] = row
        shown = "".join(f"{row[p]:8.0f} ({row[p + '_workers']})" for p in (*PEERS, *TUNED))
        ratios = [row["ours"] / max(row[p] for p in names) for names in (PEERS, (*PEERS, *TUNED))]
        print(f"{size} {kind:10}{row['ours']:8.0f}{row['ours_uint8']:8.0f} {shown}{ratios[0]:11.1f}{ratios[1]:12.1f}")
    print("(n): workers; *: with copy_cache=False, which keeps CacheDataset from copying a volume for every item")
    if args.json:
        write_json(args.json, {**table, "threads": args.threads, "volumes": len(cases), "batch": BATCH})


if __name__ == "__main__":
    main()
