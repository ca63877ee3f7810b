"""Tissue overlap of brains with the MNI152 template before and after registration.

    python benchmarks/registration.py --data DATA/oasis [--n 10] [--json FILE]

DATA/oasis is a BIDS folder of T1 brains with label maps under ``derivatives`` in which 2 is grey and 3 is white matter.
The template's tissues are the GM and WM maps that nilearn ships, the larger of the two where it is above one half.
"Before" lays the scans' own world coordinates on the template's; "centred" only lays centres of mass on each other.
"""

import argparse
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from nilearn.datasets import load_mni152_gm_template, load_mni152_wm_template

from medgen.files import write_json
from medgen.measure.overlap import dice
from medgen.prepare.foreground import find_foreground
from medgen.prepare.grid import GeometryRecord, Grid
from medgen.prepare.register import load_template, register
from medgen.volume import Volume, read_volume

GREY, WHITE = 2, 3
STEPS = ("before", "centred", "rigid", "affine")


def tissues() -> np.ndarray:
    """The template's tissues, with the cohort's label values."""
    grey = np.asarray(load_mni152_gm_template(resolution=1).dataobj)
    white = np.asarray(load_mni152_wm_template(resolution=1).dataobj)
    return np.where((grey > 0.5) & (grey >= white), GREY, np.where(white > 0.5, WHITE, 0))


def centred(moving: Volume, template: Volume) -> np.ndarray:
    """Translation that lays the foregrounds' centres on each other, template world to subject world."""
    centres = []
    for volume in (moving, template):
        index = np.argwhere(find_foreground(volume.data[0]).mask).mean(axis=0)
        centres.append(volume.affine[:3, :3] @ index + volume.affine[:3, 3])
    world = np.eye(4)
    world[:3, 3] = centres[0] - centres[1]
    return world


def measure(pair: tuple[Path, Path]) -> dict[str, list[float]]:
    """Dice of GREY and WHITE with the template after each step, and the seconds an affine registration took."""
    image, label = read_volume(pair[0]), read_volume(pair[1], label=True)
    template = load_template()
    worlds = {"before": np.eye(4), "centred": centred(image, template), "rigid": register(image, template, "rigid")}
    began = time.perf_counter()
    worlds["affine"] = register(image, template, "affine")
    row = {"seconds": [time.perf_counter() - began]}
    for step, world in worlds.items():
        record = GeometryRecord(Grid(image.shape, image.affine), Grid(template.shape, template.affine), world)
        row[step] = dice(record.apply_label(label.data[0]), tissues(), (GREY, WHITE))
    return row


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--n", type=int, default=None)
    parser.add_argument("--json", type=Path, default=None)
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    labels = {p.name.split("_")[0]: p for p in sorted(args.data.glob("derivatives/*/sub-*/**/*_dseg.nii.gz"))}
    images = {p.name.split("_")[0]: p for p in sorted(args.data.glob("sub-*/**/*_T1w.nii.gz"))}
    pairs = [(images[s], labels[s]) for s in sorted(images) if s in labels][: args.n]
    if not pairs:
        raise SystemExit(f"{args.data} holds no pair of a _T1w and a _dseg image")
    with ProcessPoolExecutor(args.workers, mp_context=get_context("spawn")) as pool:
        rows = list(pool.map(measure, pairs))
    table = {step: np.array([row[step] for row in rows]) for step in STEPS}
    print(f"{len(rows)} brains against MNI152, affine registration {np.mean([r['seconds'] for r in rows]):.1f} s each")
    print(f"{'':10}{'GM Dice':>10}{'WM Dice':>10}{'mean':>8}{'worst':>8}")
    for step, scores in table.items():
        grey, white = scores.mean(axis=0)
        print(f"{step:10}{grey:10.3f}{white:10.3f}{scores.mean():8.3f}{scores.mean(axis=1).min():8.3f}")
    if args.json:
        summary = {s: {"gm": float(t[:, 0].mean()), "wm": float(t[:, 1].mean())} for s, t in table.items()}
        write_json(
            args.json, {"n": len(rows), "dice": summary, "seconds": float(np.mean([r["seconds"] for r in rows]))}
        )


if __name__ == "__main__":
    main()
