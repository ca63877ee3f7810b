"""Are synthetic pairs sound, and do image and label fit each other? Against the real pairs of the cohort.

    python benchmarks/pairs.py --data DATA/hippocampus --model MODEL [--n 64] [--json FILE]
    python benchmarks/pairs.py --data DATA/hippocampus --samples FOLDER [--json FILE]

``--data`` is a cohort, prepared here with a fixed fifth of its subjects held out (as the benchmarks of diffusion do),
or the ``prepared`` folder of the run that made the model: the held-out cases should be those that the model has not
seen. ``--model`` draws samples by ``medgen generate`` with the model's own gates and sampler, unless ``--gate`` and
``--steps`` say otherwise; ``--samples`` takes a dataset in any format. Samples are brought to the cohort's grid by the
code that prepared the cohort. What is looked at, and what is aimed at, is said in ``medgen/evaluation/soundness.py``:
labels in one piece, the shell inside their boundaries, the side of the body, and the Dice of a segmenter that was
trained on the real training cases.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from codec import prepared

from medgen.evaluation.alike import pairs_alike, prepared_alike
from medgen.evaluation.soundness import soundness
from medgen.files import digest, read_json, write_json
from medgen.segment.pairs import pairs_of
from medgen.segment.segmenter import Segmenter
from medgen.segment.train import train_on
from medgen.store.prepared import INDEX, Prepared

MEDGEN = Path(sys.executable).with_name("medgen")


def cohort(options: argparse.Namespace) -> Prepared:
    """The prepared cohort, with held-out cases."""
    if (options.data / INDEX).is_file():
        return Prepared.open(options.data)
    key = digest([str(options.data.resolve()), options.spacing])[:8]
    return prepared(options.data, options.work / f"{options.data.name}-{key}", options.spacing)


def drawn(options: argparse.Namespace) -> Path:
    """The samples: given, or drawn by the command line, which goes on where it was killed."""
    if options.samples:
        return options.samples
    said = ["--n", str(options.n), "--seed", str(options.seed), "--format", "nnunet", "--device", options.device]
    said += [*(["--steps", str(options.steps)] if options.steps else [])]
    said += [word for gate in options.gate for word in ("--gate", gate)]
    key = digest([read_json(options.model / "model.json")["sha256"], options.seed, options.steps, options.gate])[:8]
    out = options.work / f"samples-{key}"
    done = subprocess.run([str(MEDGEN), "generate", str(options.model), str(out), *said], check=False)
    if done.returncode:
        raise SystemExit(done.returncode)
    return out


def judge(options: argparse.Namespace, store: Prepared) -> Segmenter:
    """The segmenter, trained on the real training cases, or loaded where it is finished."""
    if options.segmenter:
        return Segmenter.load(options.segmenter, device=options.device)
    last = 0.0

    def tell(done: int, total: int, remark: str) -> None:
        nonlocal last
        if done >= total or time.monotonic() - last > 30:
            last = time.monotonic()
            print(f"segmenter: {100 * done // max(total, 1)}% {remark}", flush=True)

    return train_on(
        store,
        store.indices("train"),
        options.work / f"segmenter-{digest([str(store.folder.resolve()), options.segmenter_steps])[:8]}",
        steps=options.segmenter_steps,
        device=options.device,
        on_progress=tell,
    )


def show(found: Mapping[str, Any]) -> None:
    """The tables."""
    print(", ".join(f"{n} {side} cases" for side, n in found["cases"].items()))
    lines = [("", "real", "samples", "difference", "")]
    for name, p in found["pieces"].items():
        if min(p["there_real"], p["there_samples"]) < 1:
            lines.append((f"{name}: there", share(p["there_real"]), share(p["there_samples"]), "", ""))
        one = share(p["one_piece_real"]), share(p["one_piece_samples"])
        lines.append((f"{name}: in one piece", *one, interval(p["difference"]), verdict(p["met"])))
    for name, s in found["shell"].items():
        sides = (f"{number(s[f'mean_{w}'])} +- {number(s[f'sd_{w}'])}" for w in ("real", "samples"))
        lines.append((f"{name}: shell", *sides, f"{number(s.get('off_in_sd'))} sd", verdict(s["met"])))
    side = found["side"]
    shares = share(side["own_side_held_out"]), share(side["own_side_samples"])
    lines.append(("the cohort's side", *shares, interval(side["difference"]), verdict(side["met"])))
    agreement = found.get("agreement", {})
    for name, a in agreement.items():
        if name != "met":
            judged = verdict(agreement["met"]) if name == "mean" else ""
            scores = number(a["held_out"]), number(a["samples"])
            lines.append((f"{name}: segmenter's Dice", *scores, interval(a["difference"]), judged))
    widths = [max(len(line[c]) for line in lines) for c in range(5)]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def share(value: float | None) -> str:
    """As percent."""
    return "-" if value is None else f"{value:.1%}"


def number(value: float | None) -> str:
    """Three digits."""
    return "-" if value is None else f"{value:.3f}"


def interval(found: Mapping[str, float | None]) -> str:
    """A difference with its interval."""
    return f"{number(found['value'])} ({number(found['low'])} to {number(found['high'])})"


def verdict(met: bool | None) -> str:
    """In words."""
    return "not judged" if met is None else "met" if met else "MISSED"


def main(words: Sequence[str] | None = None) -> None:
    """Draw, prepare, measure, print, write JSON."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--data", type=Path, required=True, help="a cohort with labels, or a prepared folder")
    source = made.add_mutually_exclusive_group(required=True)
    source.add_argument("--model", type=Path, help="a model folder")
    source.add_argument("--samples", type=Path, help="a synthetic dataset")
    made.add_argument("--n", type=int, default=64, help="samples to draw")
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--steps", type=int, help="of the sampler, the model's by default")
    made.add_argument("--gate", action="append", default=[], help="as medgen generate takes it")
    made.add_argument("--spacing", type=float, help="voxel size in mm; fine and large cohorts are brought to 2 mm")
    made.add_argument("--segmenter", type=Path, help="folder of a segmenter that was trained on the training cases")
    made.add_argument("--segmenter-steps", type=int, default=1500)
    made.add_argument("--work", type=Path, default=Path("runs/benchmarks/pairs"), help="where everything is kept")
    made.add_argument("--device", default="auto")
    made.add_argument("--json", type=Path, help="write the figures here")
    options = made.parse_args(words)
    store = cohort(options)
    dataset = drawn(options)
    there = options.work / f"prepared-{digest([str(dataset.resolve()), store.shape, store.spacing_mm])[:8]}"
    samples = pairs_alike(store, prepared_alike(store, dataset, there))
    result = soundness(
        pairs_of(store, store.indices("train")),
        pairs_of(store, store.indices("val")),
        samples,
        names=store.label_names,
        channels=store.channels,
        segmenter=judge(options, store),
    )
    show(result)
    if options.json:
        write_json(options.json, result)


if __name__ == "__main__":
    main()
