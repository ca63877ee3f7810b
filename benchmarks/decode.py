"""Memory and time of decoding one volume on the CPU: ours against MONAI's AutoencoderKL at its published widths.

    python benchmarks/decode.py [--shape 160 224 160] [--threads N] [--json FILE]

Each network decodes in a process of its own, so that the peak is its own: the process's largest resident set less what
it held with everything imported, the weights in place and the latent drawn. "whole" is the network's own decode in one
piece; "tiled" is medgen's within a quarter of the whole's estimate. Weights are random, which changes neither. Tiled
and whole are compared in a third process, in units of the whole image's range. MONAI's network is the one of the brain
LDM (Pinaya et al. 2022): widths 64, 128, 128, 128, two residual blocks a level, 32 groups, 3 latent channels at stride
8, no attention, decoded whole as its authors do. Ours is the kind ``wavelet`` at its default width, as the pipeline
decodes it: whole where the machine's memory allows.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import torch

from medgen.files import write_json
from medgen.models import published_kl, tiling, wavelet
from medgen.models.codec import Codec

SIDES = ("ours", "monai")
TIMES = 3


def peak_mb() -> float:
    """Largest resident set of this process so far, in MB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def network(side: str) -> Codec:
    """A codec with random weights, none of them zero."""
    torch.manual_seed(0)
    codec: Codec = wavelet.build(1, 0) if side == "ours" else published_kl.build(1, 0)
    for parameter in codec.parameters():  # a block that starts as the identity would hide a seam
        if parameter.ndim == 5 and not parameter.any():
            torch.nn.init.kaiming_normal_(parameter)
    return codec.eval().requires_grad_(False)


def measure(side: str, how: str, shape: tuple[int, ...]) -> dict[str, float]:
    """What one process reports of decoding ``whole``, ``tiled``, or the difference of the two (``compare``)."""
    codec = network(side)
    latent = torch.randn(1, codec.latent_channels, *(n // codec.stride for n in shape))
    links = codec.decoding().links  # type: ignore[operator]
    budget = tiling.whole_bytes(links, latent.shape[2:]) // 4
    with torch.no_grad():
        codec.decode(latent[..., :2, :2, :2])  # what libraries set up on first use
        base = peak_mb()
        if how == "compare":
            whole = codec.decode(latent).image
            parts = tiling.decode(codec, latent, budget=budget).image
            return {"difference": float((parts - whole).abs().max() / (whole.max() - whole.min()))}
        seconds = []
        for _ in range(TIMES if how == "whole" and side == "ours" else 1):
            began = time.perf_counter()
            out = codec.decode(latent) if how == "whole" else tiling.decode(codec, latent, budget=budget)
            seconds.append(time.perf_counter() - began)
            assert tuple(out.image.shape[2:]) == shape
            del out
    return {"base_mb": base, "peak_mb": peak_mb() - base, "seconds": min(seconds)}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", type=int, nargs=3, default=(160, 224, 160))
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--json", type=Path, default=None)
    parser.add_argument("--one", nargs=2, metavar=("SIDE", "HOW"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    shape = tuple(args.shape)
    if any(n % 8 for n in shape):
        raise SystemExit(f"--shape {shape} must be multiples of 8")
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.one:
        print(json.dumps(measure(*args.one, shape)))
        return
    command = [sys.executable, __file__, "--shape", *map(str, shape)]
    command += ["--threads", str(args.threads)] if args.threads else []
    print(f"decoding {shape} in float32, {torch.get_num_threads()} threads; the peak is over the resident base")
    print(f"{'':14}{'base MB':>10}{'peak MB':>10}{'seconds':>10}{'tiled - whole':>16}")
    result: dict[str, dict[str, float]] = {}
    for side in SIDES:
        found: dict[str, dict[str, float]] = {}
        for how in ("whole", "tiled", "compare"):
            done = subprocess.run([*command, "--one", side, how], capture_output=True, text=True)
            if done.returncode:
                last = (done.stderr.strip().splitlines() or ["killed, most likely for memory"])[-1]
                raise SystemExit(f"{side}, {how}: process ended with {done.returncode}: {last}")
            found[how] = json.loads(done.stdout)
        difference = found["compare"]["difference"]
        for how in ("whole", "tiled"):
            row = found[how]
            print(
                f"{side + ' ' + how:14}{row['base_mb']:10.0f}{row['peak_mb']:10.0f}{row['seconds']:10.2f}"
                + (f"{difference:16.1e}" if how == "tiled" else "")
            )
        result[side] = {
            **found["whole"],
            "tiled_peak_mb": found["tiled"]["peak_mb"],
            "tiled_seconds": found["tiled"]["seconds"],
            "tiled_max_difference": difference,
        }
    ours, monai = result["ours"], result["monai"]
    print(
        f"ours / monai: memory {ours['peak_mb'] / monai['peak_mb']:.3f}, time {ours['seconds'] / monai['seconds']:.3f}"
    )
    if args.json:
        write_json(args.json, {**result, "shape": list(shape), "threads": torch.get_num_threads()})


if __name__ == "__main__":
    main()
