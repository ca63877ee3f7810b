"""Memory and time of decoding one volume on the CPU: ours against MONAI's AutoencoderKL at its published widths.

    python benchmarks/decode.py [--shape 160 224 160] [--threads N] [--json FILE]

Each network decodes in a process of its own, so that the peak is its own: the process's largest resident set less what
it held with everything imported, the weights in place and the latent drawn. "whole" is the network's own decode in one
piece; "tiled" is medgen's within a quarter of the whole's estimate. Weights are random, which changes neither. The
difference of the two images is in units of the whole one's range. MONAI's network is the one of the brain
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
from tempfile import TemporaryDirectory

import numpy as np
import torch

from medgen.files import write_json
from medgen.models import published_kl, tiling, wavelet
from medgen.models.chain import Chained
from medgen.models.codec import Codec

SIDES = ("ours", "monai")


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


def measure(side: str, how: str, shape: tuple[int, ...], path: Path) -> dict[str, float]:
    """Decode in one way, leave the image at ``path``, and report memory and time."""
    codec = network(side)
    latent = torch.randn(1, codec.latent_channels, *(n // codec.stride for n in shape))
    assert isinstance(codec, Chained)
    budget = tiling.whole_bytes(codec.decoding().links, latent.shape[2:]) // 4
    out = torch.empty(0)
    with torch.no_grad():
        codec.decode(latent[..., :2, :2, :2])  # what libraries set up on first use
        base, began = peak_mb(), time.perf_counter()
        out = codec.decode(latent).image if how == "whole" else tiling.decode(codec, latent, budget=budget).image
        seconds, peak = time.perf_counter() - began, peak_mb()
    assert tuple(out.shape[2:]) == shape
    np.save(path, out.numpy())
    return {"base_mb": base, "peak_mb": peak - base, "seconds": seconds}


def _child(command: list[str]) -> dict[str, float]:
    """Run one measurement in a process of its own."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["killed, most likely for memory"])[-1]
        raise SystemExit(f"{' '.join(command[-4:-1])}: ended with {done.returncode}: {last}")
    found: dict[str, float] = json.loads(done.stdout)
    return found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", type=int, nargs=3, default=(160, 224, 160))
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--json", type=Path, default=None)
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    shape = tuple(args.shape)
    if any(n % 8 for n in shape):
        raise SystemExit(f"--shape {shape} must be multiples of 8")
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.one:
        side, how, path = args.one
        print(json.dumps(measure(side, how, shape, Path(path))))
        return
    command = [sys.executable, __file__, "--shape", *map(str, shape)]
    command += ["--threads", str(args.threads)] if args.threads else []
    print(f"decoding {shape} in float32, {torch.get_num_threads()} threads; the peak is over the resident base")
    print(f"{'':14}{'base MB':>10}{'peak MB':>10}{'seconds':>10}{'tiled - whole':>16}")
    result: dict[str, dict[str, float]] = {}
    for side in SIDES:
        with TemporaryDirectory() as folder:
            found = {how: _child([*command, "--one", side, how, f"{folder}/{how}.npy"]) for how in ("whole", "tiled")}
            whole, tiled = (np.load(f"{folder}/{how}.npy", allow_pickle=False) for how in ("whole", "tiled"))
            difference = float(np.abs(tiled - whole).max() / np.ptp(whole))
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
