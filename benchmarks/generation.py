"""A dataset made in one process, in shards, in shards that are killed, and on a disk that fills up: is it the same?

    python benchmarks/generation.py --model MODEL [--n 1000] [--shards 4] [--kills 20] [--json FILE]

All datasets are made by ``medgen generate``, each process on its own, with as many threads as ``--threads`` says, and
kept below ``--work``. Four things are looked at:

- whole: ``--n`` samples in one process. Resident memory is taken after each sample, and the mean of the last tenth is
  held against that of the first; the share of time spent waiting for the threads that write is what the command says.
- shards: the same samples by ``--shard i/N`` in processes that run at the same time.
- kills: the same again, while at ``--kills`` moments (by ``--seed``) one of the processes is killed with SIGKILL and
  started again at once, the others running on. A moment is so many new samples after the start of one process, and
  then a time of up to two samples: many fall into the middle of writing.
- full disk: the same on a disk too small for them (a tmpfs where this system lets a user mount one, else a limit on the
  size of a file). The command has to end with exit code 2 and one sentence, and what is there has to be readable.

Datasets are the same where every file is there, no other one is, and each sample's voxels, affines and sidecar are
equal, as are the bytes of the tables and manifests. ``--steps``, ``--gate`` and ``--format`` are those of ``medgen
generate``; few steps make the benchmark fast, and change nothing in what it looks at.
"""

import argparse
import hashlib
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

import medgen
from medgen.errors import InputError
from medgen.files import PARTIAL, write_json
from medgen.generation.contact import NAME as CONTACT_SHEET

MEDGEN = Path(sys.executable).with_name("medgen")
_POLL_SECONDS = 0.05
_SIDECARS = {"bids": "sub-syn*/anat/sub-syn*.json", "nnunet": "medgen_sidecars/syn*.json"}
_PLAIN = re.compile(r"medgen: [^\n]+\n?\Z")
_WAITED = re.compile(r"([\d.]+)% of it waiting for writers")
_SECONDS = re.compile(r"\(([\d.]+) s a sample")


class Runs:
    """Starts ``medgen generate`` as the command line does.

    Args:
        options: of this benchmark.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.sidecars = _SIDECARS.get(options.format, _SIDECARS["nnunet"])
        threads = str(options.threads)
        self.started: list[subprocess.Popen[bytes]] = []
        self.environment = {**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}

    def words(self, out: Path, *more: str) -> list[str]:
        """The command."""
        o = self.options
        said = [str(MEDGEN), "generate", str(o.model.resolve()), str(out), "--n", str(o.n), "--seed", str(o.seed)]
        said += ["--format", o.format, "--device", o.device, *(["--steps", str(o.steps)] if o.steps else [])]
        return [*said, *(word for gate in o.gate for word in ("--gate", gate)), *more]

    def start(self, out: Path, log: Path, *more: str) -> subprocess.Popen[bytes]:
        """Start it; what it says goes to a file."""
        with log.open("ab") as stream:
            process = subprocess.Popen(
                self.words(out, *more), stdout=stream, stderr=subprocess.STDOUT, env=self.environment
            )
        self.started.append(process)
        return process

    def __enter__(self) -> "Runs":
        return self

    def __exit__(self, *error: object) -> None:
        for process in self.started:  # those that an error or an interrupt left behind
            if process.poll() is None:
                process.kill()
                process.wait()

    def committed(self, out: Path) -> int:
        """How many samples are complete: their sidecar is there."""
        return sum(not path.name.startswith(".") for path in out.glob(self.sidecars))


def resident_mb(process: int) -> float | None:
    """Resident memory of a process; None where it has ended."""
    told = subprocess.run(["ps", "-o", "rss=", "-p", str(process)], capture_output=True, text=True, check=False)
    return int(told.stdout) / 1024 if told.stdout.strip() else None


def require(code: int, log: Path, what: str) -> None:
    """Stop where a run that should have gone through did not."""
    if code:
        raise SystemExit(f"{what} ended with {code}: {log.read_text(errors='replace')[-2000:]}")


def whole(runs: Runs, out: Path, log: Path) -> dict[str, Any]:
    """All samples in one process, its memory watched."""
    process = runs.start(out, log)
    memory: list[float] = []
    seen = 0
    while process.poll() is None:
        now = runs.committed(out)
        if now > seen and (mb := resident_mb(process.pid)) is not None:
            memory.append(mb)
            seen = now
        time.sleep(_POLL_SECONDS)
    require(process.returncode, log, "the whole dataset")
    said, tenth = log.read_text(), max(1, len(memory) // 10)
    first, last = float(np.mean(memory[:tenth])), float(np.mean(memory[-tenth:]))
    return {
        "seconds_a_sample": float(_SECONDS.findall(said)[-1]),
        "waiting_share": float(_WAITED.findall(said)[-1]) / 100,
        "memory": {
            "first_tenth_mb": round(first, 1),
            "last_tenth_mb": round(last, 1),
            "highest_mb": round(max(memory), 1),
            "change": round(last / first - 1, 4),
            "readings": len(memory),
        },
    }


def shards(runs: Runs, out: Path, logs: Path) -> float:
    """All shards at the same time; returns seconds."""
    began = time.monotonic()
    count = runs.options.shards
    processes = [runs.start(out, logs / f"shard-{i}.log", "--shard", f"{i}/{count}") for i in range(1, count + 1)]
    for i, process in enumerate(processes, start=1):
        require(process.wait(), logs / f"shard-{i}.log", f"shard {i}")
    return time.monotonic() - began


def killed(runs: Runs, out: Path, logs: Path, seconds_a_sample: float) -> dict[str, Any]:
    """All shards at the same time, one of them killed and started again at each moment."""
    o, rng = runs.options, np.random.default_rng(runs.options.seed)

    def start(i: int) -> subprocess.Popen[bytes]:
        return runs.start(out, logs / f"killed-{i}.log", "--shard", f"{i}/{o.shards}")

    processes = {i: start(i) for i in range(1, o.shards + 1)}
    # So many samples of the whole folder between two kills, that all of them fall before the end.
    gaps = rng.multinomial(max(o.n - o.shards, 0), np.full(o.kills + 1, 1 / (o.kills + 1)))
    half_made, between, target = 0, [], 0
    for gap in gaps[: o.kills]:
        target += int(gap)
        victim = int(rng.integers(1, o.shards + 1))
        while runs.committed(out) < target and any(p.poll() is None for p in processes.values()):
            time.sleep(_POLL_SECONDS)
        time.sleep(float(rng.uniform(0, 2 * seconds_a_sample)))
        processes[victim].kill()
        processes[victim].wait()
        half_made += bool(partials(out))
        between.append(readable(out))
        processes[victim] = start(victim)
    for i, process in processes.items():
        require(process.wait(), logs / f"killed-{i}.log", f"killed shard {i}")
    return {
        "kills": o.kills,
        "with_a_file_half_written": half_made,
        "readable_right_after": sum(isinstance(found, int) for found in between),
        "unreadable_said": sorted({found for found in between if isinstance(found, str)})[:3],
    }


def partials(out: Path) -> list[Path]:
    """Files under temporary names."""
    return [path for path in out.rglob(f"{PARTIAL}*") if path.is_file()]


def readable(out: Path) -> int | str:
    """How many cases ``medgen.read_cohort`` finds, or the sentence it says; anything else is a defect and is raised."""
    try:
        return len(medgen.read_cohort(out).cases)
    except InputError as error:
        return str(error).replace(str(out), "OUT")


def contents(out: Path) -> dict[str, str]:
    """Every file with a hash: of voxels, affine and type of an image, of the bytes of others.

    Compressed files are read to their end, so that a truncated one cannot pass. The contact sheet is left out: each
    process draws what it found.
    """
    found = {}
    for path in sorted(p for p in out.rglob("*") if p.is_file() and p.name != CONTACT_SHEET):
        if path.name.endswith(".nii.gz"):
            image: Any = nib.load(path)
            voxels = np.ascontiguousarray(image.dataobj)
            said = hashlib.sha256(f"{voxels.dtype} {voxels.shape}".encode() + voxels.tobytes())
            said.update(np.ascontiguousarray(image.affine).tobytes())
        else:
            said = hashlib.sha256(path.read_bytes())
        found[path.relative_to(out).as_posix()] = said.hexdigest()
    return found


def compared(runs: Runs, reference: Mapping[str, str], out: Path) -> dict[str, Any]:
    """What differs from the dataset of one process."""
    found = contents(out)
    differing = sorted(name for name in found.keys() & reference.keys() if found[name] != reference[name])
    missing, more = sorted(reference.keys() - found.keys()), sorted(found.keys() - reference.keys())
    read = readable(out)
    return {
        "samples": runs.committed(out),
        "read": read,
        "files": len(found),
        "differing": differing[:5],
        "missing": missing[:5],
        "left_over": more[:5],
        "partials": len(partials(out)),
        "same": not (differing or missing or more) and read == runs.committed(out),
    }


def full_disk(runs: Runs, work: Path, reference: Path) -> dict[str, Any]:
    """Half of the room that is needed; then the same command again on a disk that has it."""
    out, log = work / "full", work / "full.log"
    sizes = sorted(p.stat().st_size for p in reference.rglob("*.nii.gz"))
    kilobytes = max(256, sum(p.stat().st_size for p in reference.rglob("*") if p.is_file()) // 2048)
    if tmpfs_possible():
        kind, mount = "tmpfs", work / "disk"
        mount.mkdir(exist_ok=True)
        # The mount is seen by this process and its children alone, and goes with them.
        script = (
            f'mount -t tmpfs -o size={kilobytes}k none "$1" && shift && "$@"; code=$?; df -k "{mount}" >&2; '
            f'cp -a "{mount}/." "{out}/"; exit $code'
        )
        out.mkdir()
        command = ["unshare", "-rm", "sh", "-c", script, "sh", str(mount), *runs.words(mount / "set")]
        out = out / "set"
        told = subprocess.run(command, capture_output=True, text=True, env=runs.environment, check=False)
    else:
        kind, limit = "limit on the size of a file", sizes[int(0.9 * len(sizes))]

        def lower() -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

        command = runs.words(out)
        told = subprocess.run(
            command, capture_output=True, text=True, env=runs.environment, check=False, preexec_fn=lower
        )
    log.write_text(told.stdout + told.stderr)
    last = [line for line in told.stderr.splitlines() if line.startswith("medgen: ")]
    sentence = last[-1].replace(str(work), "WORK") if last else ""
    found = {
        "kind": kind,
        "code": told.returncode,
        "sentence": sentence,
        "traceback": "Traceback" in told.stderr,
        "samples": runs.committed(out),
        "read": readable(out),
        "partials": len(partials(out)),
    }
    code = subprocess.run(runs.words(out), capture_output=True, env=runs.environment, check=False).returncode
    same = code == 0 and contents(out) == contents(reference)
    told_plainly = bool(_PLAIN.fullmatch(sentence)) and not found["traceback"] and found["code"] == 2
    whole_there = found["read"] == found["samples"] and not found["partials"]
    return {**found, "same_after_a_rerun": same, "as_it_should": told_plainly and whole_there and same}


def tmpfs_possible() -> bool:
    """Whether a tmpfs can be mounted in a namespace of its own."""
    if not shutil.which("unshare"):
        return False
    with tempfile.TemporaryDirectory() as folder:
        command = ["unshare", "-rm", "mount", "-t", "tmpfs", "none", folder]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0


def show(result: Mapping[str, Any]) -> None:
    """The table."""
    memory, rows = result["whole"]["memory"], []
    rows.append(("seconds a sample", f"{result['whole']['seconds_a_sample']:.2f}", ""))
    waiting = result["whole"]["waiting_share"]
    rows.append(("waiting for writers", f"{waiting:.1%}", met(waiting < 0.05)))
    change = memory["change"]
    rows.append(("memory, last tenth against first", f"{change:+.1%}", met(abs(change) <= 0.05)))
    for name in ("shards", "kills"):
        if name in result:
            same = result[name]["same"]
            words = f"{result[name]['samples']} samples, {result[name]['files']} files"
            rows.append((f"{name}: as in one process", words, met(same)))
    if "kills" in result:
        kills = result["kills"]
        rows.append(
            ("kills that left a file half written", f"{kills['with_a_file_half_written']}/{kills['kills']}", "")
        )
    if "full_disk" in result:
        full = result["full_disk"]
        rows.append(("full disk", f"code {full['code']}, {full['read']} cases read", met(full["as_it_should"])))
    width = max(len(row[0]) for row in rows)
    for name, value, judged in rows:
        print(f"{name:{width}}  {value:>28}  {judged}")
    if "full_disk" in result:
        print(result["full_disk"]["sentence"])


def met(reached: bool) -> str:
    """In words."""
    return "met" if reached else "MISSED"


def measured(runs: Runs, work: Path) -> dict[str, Any]:
    """All parts, one after the other."""
    o, one = runs.options, work / "whole"
    result: dict[str, Any] = {"n": o.n, "shards_count": o.shards, "steps": o.steps, "format": o.format}
    result["whole"] = timed("whole", lambda: whole(runs, one, work / "whole.log"))
    reference = contents(one)
    seconds = timed("shards", lambda: shards(runs, work / "shards", work))
    result["shards"] = {**compared(runs, reference, work / "shards"), "seconds": round(seconds, 1)}
    if o.kills:
        pace = result["whole"]["seconds_a_sample"]
        told = timed("kills", lambda: killed(runs, work / "kills", work, pace))
        result["kills"] = {**told, **compared(runs, reference, work / "kills")}
    if not o.no_full_disk:
        result["full_disk"] = timed("full disk", lambda: full_disk(runs, work, one))
    return result


def timed(what: str, work: Callable[[], Any]) -> Any:
    """Run a part and say how long it took."""
    began = time.monotonic()
    found = work()
    print(f"[{time.strftime('%H:%M:%S')}] {what}: {time.monotonic() - began:.0f} s", flush=True)
    return found


def main(words: Sequence[str] | None = None) -> None:
    """Make the datasets, compare them, print the table, write JSON."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--model", type=Path, required=True, help="a model folder")
    made.add_argument("--n", type=int, default=1000, help="samples")
    made.add_argument("--shards", type=int, default=4)
    made.add_argument("--kills", type=int, default=20, help="0 leaves them out")
    made.add_argument("--seed", type=int, default=0, help="of the dataset and of the moments")
    made.add_argument("--steps", type=int, help="of the sampler, the model's by default")
    made.add_argument("--gate", action="append", default=[], help="as medgen generate takes it")
    made.add_argument("--format", default="nnunet", help="bids, nnunet or decathlon")
    made.add_argument("--device", default="auto")
    made.add_argument("--threads", type=int, default=1, help="of each process; the same everywhere")
    made.add_argument("--work", type=Path, help="an empty folder for the datasets, a temporary one by default")
    made.add_argument("--no-full-disk", action="store_true", help="leave the full disk out")
    made.add_argument("--json", type=Path, help="write the figures here")
    options = made.parse_args(words)
    if options.work and options.work.exists() and any(options.work.iterdir()):
        made.error(f"{options.work} is not empty; every dataset has to be a new one")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started does not outlive this
    with tempfile.TemporaryDirectory() as temporary:
        work = (options.work or Path(temporary)).resolve()
        work.mkdir(parents=True, exist_ok=True)
        with Runs(options) as runs:
            result = measured(runs, work)
    show(result)
    if options.json:
        write_json(options.json, result)
    else:
        print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
