"""Peak memory of training steps and decodings as counted, against what processes on this CPU really took.

    python benchmarks/memory.py [--extents 32 48 64] [--json FILE]

For each part (a step of the codec, with and without checkpointing, a step of the denoiser, a decoding) and each extent
a new process takes the part twice and reads the growth of its peak resident memory (VmHWM) over what it held before;
`medgen doctor` counts the same part without running it (:mod:`medgen.doctor.counted`). Freed memory goes back to the
system at once (glibc's thresholds are set), so that the peak is what is alive. A CPU's convolutions take scratch
memory and copies of their weights that are not counted. Prints a table; the last column is measured over counted.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from medgen import config
from medgen.cohort.schema import Covariate, Schema
from medgen.doctor import parts
from medgen.doctor.counted import count_parts
from medgen.doctor.parts import Job, Networks
from medgen.doctor.timing import peak_bytes, reset_peak
from medgen.files import write_json
from medgen.models.condition import ConditionEncoder

LABELS = 6
_WIDE = {"channels": [64, 128], "middle_blocks": 1}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "codec step, float32": (parts.CODEC_STEP, {"autoencoder.training.precision": "float32"}),
    "codec step, bfloat16": (parts.CODEC_STEP, {"autoencoder.training.precision": "bfloat16"}),
    "codec step, checkpointing": (
        parts.CODEC_STEP,
        {"autoencoder.training.precision": "float32", "autoencoder.options": {"checkpointing": True}},
    ),
    "denoiser step, float32": (
        parts.DENOISER_STEP,
        {"diffusion.training.precision": "float32", "diffusion.network_options": _WIDE},
    ),
    "decoding": (parts.DECODE, {}),
}
_STRIDE = 4
_FREED_AT_ONCE = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}


def job_of(part: str, said: Mapping[str, Any], extent: int) -> Job:
    """A case's job on a cube; the denoiser's latents have the extent itself, halved, and a decoding twice the extent.

    A decoding takes little, and below 100 voxels the scratch of convolutions, which is not counted, is most of it.
    """
    raw: dict[str, Any] = {"name": "memory", "device": "cpu"}
    for key, value in said.items():
        *sections, last = key.split(".")
        node = raw
        for section in sections:
            node = node.setdefault(section, {})
        node[last] = value
    encoder = ConditionEncoder.fit(Schema((Covariate("age"),)), [{"age": 1.0}, {"age": 2.0}])
    voxels = extent * {parts.DENOISER_STEP: _STRIDE // 2, parts.DECODE: 2}.get(part, 1)
    made = config.build(raw, "the benchmark's experiment").model_dump(mode="json")
    return Job(
        config=made,
        channels=1,
        labels=LABELS,
        label_ids=LABELS,
        shape=(voxels,) * 3,
        encoder=encoder.to_json(),
        rows=[{"age": 1.0}],
        mask=None,
        at_once=1,
        parts=(part,),
    )


def grown(job: Job) -> int:
    """Bytes by which a part raises this process's peak over what it held before."""
    torch.manual_seed(0)
    small = Networks(Job(**{**asdict(job), "shape": (16 if job.parts[0] == parts.DECODE else 32,) * 3}), CPU)
    small.part(job.parts[0])()  # libraries are loaded and threads started
    del small
    networks = Networks(job, CPU)
    work = networks.part(job.parts[0])
    before = resident_bytes()
    reset_peak()
    for _ in range(2 if "step" in job.parts[0] else 1):
        work()
    return peak_bytes() - before


CPU = torch.device("cpu")


def resident_bytes() -> int:
    """Resident memory of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmRSS:"))


def measured(job: Job) -> int:
    """:func:`grown` in a process of its own."""
    command = [sys.executable, __file__, "--part", json.dumps(asdict(job))]
    done = subprocess.run(command, env={**os.environ, **_FREED_AT_ONCE}, capture_output=True, text=True, check=True)
    return int(done.stdout)


def table(extents: Sequence[int]) -> list[dict[str, Any]]:
    """One row for each case and extent."""
    rows = []
    print(f"{'part':28}{'extent':>7}{'measured MiB':>14}{'counted MiB':>13}{'ratio':>7}")
    for name, (part, said) in CASES.items():
        for extent in extents:
            job = job_of(part, said, extent)
            count = count_parts(job, cuda=False)[part]
            counted, real = count.peak_bytes - count.held_bytes, measured(job)
            row = {"part": name, "extent": extent, "measured_bytes": real, "counted_bytes": counted}
            rows.append({**row, "ratio": round(real / counted, 3)})
            print(f"{name:28}{extent:7}{real / 2**20:14.0f}{counted / 2**20:13.0f}{real / counted:7.2f}", flush=True)
    return rows


def main() -> None:
    """Measure, print, write."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--extents", type=int, nargs="+", default=[32, 48, 64])
    made.add_argument("--json", type=Path, help="write the figures here")
    made.add_argument("--part", help=argparse.SUPPRESS)
    options = made.parse_args()
    if options.part:
        print(grown(Job.from_json(json.loads(options.part))))
        return
    rows = table(options.extents)
    far = max(abs(row["ratio"] - 1) for row in rows)
    print(f"measured and counted differ by {100 * far:.0f}% at most")
    if options.json:
        write_json(options.json, {"rows": rows, "torch": torch.__version__, "threads": torch.get_num_threads()})


if __name__ == "__main__":
    main()
