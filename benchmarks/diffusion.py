"""Our latent diffusion and MONAI's tutorial recipe, trained for the same time on the latents of one codec.

    python benchmarks/diffusion.py --data DATA/hippocampus --minutes 20 [--network unet|adaln_unet] [--json FILE]

A fifth of the subjects is held out, always the same. The codec ``wavelet`` codes image and label together for both
sides. Ours is what ``medgen run`` trains by default, changed by ``--set``; the peer is set up as MONAI's tutorial
3d_ldm sets it up (see ``diffusion_peer.py``), drawn by DDIM in 50 steps, clipped and not, and by its own DDPM in 1000;
its best by the Fréchet distance counts. Volumes are asked uniformly between the cohort's 5th and 95th percentile, and
the same noise-free requests go to both; nothing is gated. Who obeys such requests leaves the cohort's distribution, to
which the distances are taken: with ``--requests real`` the volumes are those of training cases instead.

"floor" is the training cases against the held-out ones at equal n. Fréchet distance and MMD are taken on features of a
segmenter trained on the training cases, in units of their mean variance; "ccc", "r", "slope" and "mae_ml" compare asked
volumes with those that the segmenter finds, as means over the volumes. "details" holds the intervals, the same by the
generated label, what the segmenter reaches on real cases, sharpness against the codec's, and every sampling of the
peer; "nearer" there is the tutorial's distances less ours, with intervals of the difference. ``samples.png`` beside the
kept samples shows the first of them.
"""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusion_bench import Bench, arm, loaded, open_bench, parser, seconds_of, shared_codec, yardstick
from diffusion_draw import (
    Drawn,
    answered,
    figures,
    made_of,
    mean_of_volumes,
    our_samples,
    real_requests,
    uniform_requests,
)
from diffusion_peer import SAMPLINGS, TutorialDiffusion, tutorial, tutorial_samples

from medgen.evaluation.fidelity import measured
from medgen.evaluation.likeness import nearer
from medgen.evaluation.reference import Reference
from medgen.files import write_json
from medgen.generation.model import build_codec, build_network
from medgen.models.codec import Codec
from medgen.segment.network import Architecture, build
from medgen.stages.conditions import fit_encoder
from medgen.training.autoencoder import reconstruct

DISTANCES = ("mmd", "frechet")
LIKENESS = (*DISTANCES, "precision", "recall", "coverage")
OBEDIENCE = ("ccc", "r", "slope", "mae_ml")
PEER_EVALUATIONS = {"ddim_50_clipped": 50, "ddim_50_unclipped": 50, "ddpm_1000": 1000}


def foresee(bench: Bench) -> None:
    """Say what the whole will take, from single calls of untrained networks on this machine."""
    o, run = bench.options, bench.run(bench.folder)
    encoder, rows = fit_encoder(run)
    codec = build_codec(run.codec_kind(), len(bench.store.channels), len(bench.store.label_values))
    shape = (codec.latent_channels, *(n // run.codec_stride() for n in bench.store.shape))
    network = build_network(run.network_kind(), shape[0], encoder.schema).to(bench.device).eval()
    cond = encoder.encode([rows[i % len(rows)] for i in range(o.batch)]).to(bench.device)
    x, time_B = torch.randn(o.batch, *shape, device=bench.device), torch.full((o.batch,), 0.5, device=bench.device)
    peer = TutorialDiffusion(shape, len(bench.columns), bench.device)
    padded = torch.randn(o.batch, shape[0], *peer.padded, device=bench.device)
    context = torch.rand(o.batch, 1, len(bench.columns), device=bench.device)
    image = torch.randn(1, len(bench.store.channels), *(n + -n % 8 for n in bench.store.shape), device=bench.device)
    segmenter = build(Architecture(image.shape[1], len(bench.store.label_values))).to(bench.device)
    with torch.no_grad():
        ours = seconds_of(lambda: network(x, time_B, cond)) * o.n / o.batch
        theirs = seconds_of(lambda: peer.unet(padded, time_B[:1], context)) * o.n / o.batch
        measure = seconds_of(lambda: segmenter(image))
    g = bench.config.generate
    evaluations = g.steps * (2 if g.sampler == "heun" else 1) * (2 if g.guidance != 1 else 1)
    plan = {
        "codec": 60 * o.codec_minutes,
        "segmenter": o.segmenter_steps * 2 * 3.5 * measure,
        "ours, training": 60 * o.minutes,
        "tutorial, training": 60 * o.minutes,
        f"ours, {o.n} samples of {evaluations} evaluations": ours * evaluations,
        **{f"tutorial, {o.n} samples by {name}": theirs * PEER_EVALUATIONS[name] for name in o.samplings},
        "figures": (len(bench.store) + (1 + len(o.samplings)) * o.n) * 2.5 * measure + 60,
    }
    print("foreseen, in minutes; what is kept from before takes none:")
    for what, seconds in plan.items():
        print(f"  {what:48}{seconds / 60:7.1f}")
    print(f"  {'all':48}{sum(plan.values()) / 60:7.1f}", flush=True)


def ours(
    bench: Bench, reference: Reference, codec: Codec, reconstructions: list[np.ndarray]
) -> tuple[dict[str, Any], Drawn]:
    """Figures of our samples, and the samples."""
    model = arm(bench, "ours")
    generator = loaded(bench, model)
    requests = asked(bench)
    drawn = our_samples(bench, generator, model.parent, "ours", answered(generator, requests), codec)
    return figures(bench, reference, model.parent, drawn, requests, reconstructions), drawn


def monai(
    bench: Bench, reference: Reference, codec: Codec, reconstructions: list[np.ndarray]
) -> dict[str, tuple[dict[str, Any], Drawn]]:
    """Figures of the tutorial's samples, and the samples, by each way of drawing them."""
    peer, folder = tutorial(bench)
    # The requests of both sides are answered by one joint: ours has it, and both are asked the same rows.
    generator = loaded(bench, arm(bench, "ours"))
    requests = asked(bench)
    rows = [row.values for row in answered(generator, requests)]
    found = {}
    for sampling in bench.options.samplings:
        drawn = tutorial_samples(bench, peer, folder, sampling, rows, codec)
        made = figures(bench, reference, folder, drawn, requests, reconstructions)
        found[sampling] = (made, drawn)
    return found


def asked(bench: Bench) -> list[dict[str, float]]:
    """What is asked of both sides."""
    return (real_requests if bench.options.requests == "real" else uniform_requests)(bench, bench.options.n)


def headline(bench: Bench, found: Mapping[str, Any], drawn: Drawn) -> dict[str, float | None]:
    """The figures under the keys of the comparison."""
    return {
        **{key: found["samples"][key]["value"] for key in LIKENESS},
        "ms_ssim": found["ms_ssim"]["samples"],
        **mean_of_volumes(found, bench.volumes, "segmenter"),
        "seconds_per_sample": round(drawn.seconds_per_sample, 3),
    }


def verdicts(bench: Bench, ours_found: Mapping[str, Any], peer_found: Mapping[str, Any]) -> dict[str, Any]:
    """What was aimed at, and what came."""
    said: dict[str, Any] = {}
    for key in DISTANCES:
        mine, theirs = ours_found["excess"][key], peer_found["excess"][key]
        half = mine["value"] <= 0.5 * theirs["value"]
        said[key] = {"ours": mine, "monai": theirs, "reached": half and mine["high"] < theirs["low"]}
    label, found, real = (
        mean_of_volumes(ours_found, bench.volumes, by)["ccc"]
        for by in ("generated_label", "segmenter", "segmenter_on_real")
    )
    said["ccc_generated_label"] = {"ours": label, "reached": label is not None and label >= 0.9}
    reached = found is not None and real is not None and found >= 0.9 * real > 0
    said["ccc_segmenter"] = {"ours": found, "on_real": real, "reached": reached}
    return said


def show(result: Mapping[str, Any]) -> None:
    """Print the table."""
    sides = ("floor", "ours", "monai")
    print(f"\n{'':22}" + "".join(f"{side:>12}" for side in sides))
    for key in (*LIKENESS, "ms_ssim", *OBEDIENCE, "seconds_per_sample"):
        cells = [result[side].get(key) for side in sides]
        print(f"{key:22}" + "".join(f"{'-' if cell is None else format(cell, '.4g'):>12}" for cell in cells))
    for side in ("ours", "monai"):
        by = result["details"][side]["generated_label"]
        print(f"by the generated label, {side}: " + ", ".join(f"{k} {v}" for k, v in by.items()))
    print(f"the tutorial's best is {result['details']['monai']['sampling']}; aims:")
    for name, said in result["details"]["aims"].items():
        print(f"  {name}: {'reached' if said['reached'] else 'missed'} {said}")
    print("the tutorial's distance less ours, one draw of the held-out cases for both:")
    for name in DISTANCES:
        print(f"  {name}: {result['details']['nearer'][name]}")


def compare(bench: Bench) -> dict[str, Any]:
    """The whole comparison."""
    foresee(bench)
    reference, codec = yardstick(bench), shared_codec(bench)
    store, held_out = bench.store, bench.store.indices("val")
    cases = [(np.asarray(store.image(i), np.float32), np.asarray(store.label(i))) for i in held_out]
    reconstructions = [reconstruct(codec, image, label, bench.device)[0] for image, label in cases]
    mine, drawn = ours(bench, reference, codec, reconstructions)
    theirs = monai(bench, reference, codec, reconstructions)
    best = min(theirs, key=lambda name: theirs[name][0]["samples"]["frechet"]["value"])
    peer = theirs[best][0]
    both = (measured(reference, made_of(one, asked(bench))) for one in (drawn, theirs[best][1]))
    details = {
        "ours": {"generated_label": mean_of_volumes(mine, bench.volumes, "generated_label"), **mine},
        "monai": {"sampling": best, "generated_label": mean_of_volumes(peer, bench.volumes, "generated_label"), **peer},
        "samplings": {name: headline(bench, *theirs[name]) for name in theirs},
        "aims": verdicts(bench, mine, peer),
        "nearer": nearer(reference, *both),
        "minutes": bench.options.minutes,
        "samples": bench.options.n,
        "requests": bench.options.requests,
        "config": {key: getattr(bench.config, key).model_dump(mode="json") for key in ("diffusion", "generate")},
    }
    return {
        "floor": {key: mine["floor"][key]["value"] for key in DISTANCES},
        "ours": headline(bench, mine, drawn),
        "monai": headline(bench, *theirs[best]),
        "details": details,
    }


def main() -> None:
    """Train both, print a table, write JSON."""
    made = parser(__doc__)
    made.add_argument("--samplings", nargs="+", default=list(SAMPLINGS), choices=SAMPLINGS, help="of the peer")
    made.add_argument("--requests", choices=("uniform", "real"), default="uniform", help="volumes that are asked")
    options = made.parse_args()
    began = time.monotonic()
    result = compare(open_bench(options))
    show(result)
    print(f"{(time.monotonic() - began) / 60:.1f} minutes in all")
    if options.json:
        write_json(Path(options.json), result)


if __name__ == "__main__":
    main()
