"""A synthetic dataset on disk: resumable, sharded, every sample committed by its sidecar."""

import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from medgen.cohort.requests import RequestPlan
from medgen.cohort.schema import Covariate, Schema, volume_column
from medgen.errors import InputError
from medgen.files import PARTIAL, alone, remove_partials, reserved
from medgen.formats.detect import open_writer
from medgen.formats.writer import DatasetInfo, Writer
from medgen.generation.accept import Acceptance, Rejected, Tally, draw
from medgen.generation.background import BackgroundWriter
from medgen.generation.gates.panel import Gates
from medgen.generation.generator import Generator
from medgen.generation.left_out import LeftOut
from medgen.generation.model import ModelSpec
from medgen.sampling.noise import Key

_SAMPLE = re.compile(r"syn\d{6,}")
_SHARD = re.compile(r"(\d+)/(\d+)")
_RESERVE, _RESERVE_A_SAMPLE = 2**18, 2**10


@dataclass(frozen=True)
class Shard:
    """Shard ``number`` (from 1) of ``count``: every count-th sample."""

    number: int = 1
    count: int = 1

    @staticmethod
    def parse(text: str) -> "Shard":
        """From ``i/N``.

        Raises:
            InputError: not of that form, or i outside 1 to N.
        """
        match = _SHARD.fullmatch(text.strip())
        if not match or not 1 <= int(match[1]) <= int(match[2]):
            raise InputError(f"--shard needs i/N with i from 1 to N, such as 2/4; '{text}' is not")
        return Shard(int(match[1]), int(match[2]))

    def indices(self, n: int) -> range:
        """Sample numbers of this shard among 0 .. n - 1."""
        return range(self.number - 1, n, self.count)


@dataclass(frozen=True)
class Outcome:
    """What a run of :func:`generate` did.

    Attributes:
        found: samples found complete.
        made: samples made.
        removed: leftovers removed.
        beyond: in words, how many of the samples made leave the cohort by what; empty where none does.
        seconds: that making them took.
        waited_seconds: of these, waiting for the threads that write.
        acceptance: how the draws of the whole dataset fared at the gates, None without gates.
    """

    found: int
    made: int
    removed: int
    beyond: str = ""
    seconds: float = 0.0
    waited_seconds: float = 0.0
    acceptance: Acceptance | None = None

    def pace(self) -> str:
        """In words, how fast samples came and how much of that was waiting for writers; empty where none was made."""
        if not self.made:
            return ""
        waited = 100 * self.waited_seconds / max(self.seconds, 1e-9)
        return f"{self.seconds / self.made:.2f} s a sample, {waited:.1f}% of it waiting for writers"


def dataset_info(generator: Generator) -> DatasetInfo:
    """What an exporter must know of the dataset."""
    return info_of(generator.model.spec, generator.model.sha256)


def info_of(spec: ModelSpec, sha256: str) -> DatasetInfo:
    """What an exporter must know of the dataset of a model that need not be loaded."""
    volumes = [volume_column(name) for name in spec.label_names[1:]]
    told = {*volumes, *spec.derived}
    columns: list[Covariate] = []
    for c in Schema.from_json(spec.schema).covariates:
        columns.append(Covariate(f"requested_{c.name}", c.kind, c.unit) if c.name in told else c)
    columns += [Covariate(name, "continuous", "ml") for name in volumes]
    labels = dict(zip(spec.label_values[1:], spec.label_names[1:], strict=True))
    columns += [Covariate(name) for name in spec.derived]
    trained = dict(spec.trained_on)
    about = {"model_sha256": sha256, "trained_on": trained}
    about["SkullStripped"] = trained.get("skull_stripped", False)
    return DatasetInfo(f"{spec.name} synthetic", spec.channels, labels, Schema(tuple(columns)), about)


def generate(
    generator: Generator,
    out: Path,
    n: int,
    plan: RequestPlan,
    *,
    seed: int = 0,
    shard: Shard | None = None,
    format: str = "bids",
    gates: Gates | None = None,
    writers: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Outcome:
    """Write samples 0 .. n - 1 (those of the shard) that are not there yet.

    Files that a killed run left without a sidecar are removed first; complete samples are not touched. Shards may be
    written at the same time, the same shard or another division of the dataset not.

    Args:
        generator: draws the samples.
        out: folder of the dataset; several shards write into one.
        n: size of the dataset.
        plan: what each sample is asked to be.
        seed: of the dataset.
        shard: which part to make, all by default.
        format: kind of exporter.
        gates: judge every draw; what they reject is drawn again, and left out where every attempt is rejected.
        writers: threads that compress and write while the next samples are drawn.
        on_progress: called with (done, total) of this shard, once before the first sample is drawn.

    Raises:
        BoundError: the gates reject most draws.
        InputError: ``out`` holds samples of another model, seed, request, drawing or gates, or another process is
            writing the same samples.
    """
    shard = shard or Shard()
    with _alone(out, shard):
        return _generated(generator, out, n, plan, seed, shard, format, gates, writers, on_progress)


def _generated(
    generator: Generator,
    out: Path,
    n: int,
    plan: RequestPlan,
    seed: int,
    shard: Shard,
    format: str,
    gates: Gates | None,
    writers: int | None,
    on_progress: Callable[[int, int], None] | None,
) -> Outcome:
    indices = list(shard.indices(n))
    keys = {f"syn{i:06d}": Key(seed, i) for i in indices}
    writer: Writer = open_writer(format, out, dataset_info(generator))
    mine = set(keys)
    done = writer.committed()
    expected = {**generator.provenance(), "seed": seed, "plan": plan.describe()}
    expected["gate_setting"] = gates.recorded() if gates else None
    left_out = LeftOut(out)
    lost = left_out.records()
    for sidecar in (*(writer.sidecar(sample_id) for sample_id in sorted(done)), *lost.values()):
        _same_dataset(sidecar, expected, out)
    done |= lost.keys()
    # Only what bears the name of a sample is ever removed, and with several shards only what is this one's to write.
    leftovers = {i for i in writer.uncommitted() if _SAMPLE.fullmatch(i)}
    remove_partials(out, shared=shard.count > 1)
    if shard.count > 1:
        leftovers &= mine
    for sample_id in sorted(leftovers):
        writer.discard(sample_id)
    waiting = [k for sample_id, k in keys.items() if sample_id not in done]
    generator.require_texts(plan.requests)
    made, missed, batch = 0, 0, generator.drawing.batch
    tally = Tally(gates.setting.most) if gates else None
    beyond: Counter[str] = Counter()
    begin = time.monotonic()
    if on_progress:
        on_progress(len(indices) - len(waiting), len(indices))
    room = _RESERVE + n * _RESERVE_A_SAMPLE if waiting else 0  # for the manifests, should the disk fill up
    with _naming(out), reserved(out, room) as free, BackgroundWriter(writer, writers, free) as background:
        for start in range(0, len(waiting), batch):
            part = waiting[start : start + batch]
            rows = [plan.row(key.index, seed) for key in part]
            beyond.update(said for row in rows for said in row.extrapolation.split("; ") if said)
            drawn = draw(generator, gates, rows, part, tally.add) if gates and tally else generator.draw(rows, part)
            for sample in drawn:
                if isinstance(sample, Rejected):
                    left_out.add(f"syn{sample.key.index:06d}", {**expected, "rejected": list(sample.draws)})
                    missed += 1
                    continue
                background.write(replace(sample, sidecar={**sample.sidecar, "plan": expected["plan"]}))
                made += 1
            if on_progress:
                on_progress(len(indices) - len(waiting) + made + missed, len(indices))
    took = time.monotonic() - begin
    told = "; ".join(f"{said} ({count})" for said, count in sorted(beyond.items()))
    acceptance = None
    if gates:
        sidecars = (writer.sidecar(sample_id) for sample_id in sorted(writer.committed()))
        acceptance = Acceptance.of(sidecars, left_out.records().values())
        left_out.report(acceptance.to_json())
        if acceptance.left_out:  # also where an earlier run stopped there: what it left out is not drawn again
            acceptance.tally(gates.setting.most).stop()
    found = len(indices) - len(waiting) - len(lost.keys() & mine)
    return Outcome(found, made, len(leftovers), told, took, background.waited_seconds, acceptance)


@contextmanager
def _alone(out: Path, shard: Shard) -> Iterator[None]:
    """Keep others from writing the same samples meanwhile, by locks beside the dataset, one a shard."""
    refusal = f"{out} is being written by another process; wait until it is done, or choose another folder"
    out = out.resolve()
    stem = f".{out.name}.shard-"
    with alone(out.with_name(f"{stem}{shard.number}-of-{shard.count}.lock"), refusal):
        for other in sorted(p for p in out.parent.iterdir() if p.name.startswith(stem)):
            if not other.name.endswith(f"-of-{shard.count}.lock"):
                with alone(other, refusal):  # left behind by a kill, or in use
                    pass
        yield


@contextmanager
def _naming(out: Path) -> Iterator[None]:
    """Tell where a disk is full: an error while writing names no file, or one that is gone."""
    try:
        yield
    except OSError as error:
        if error.filename is None or PARTIAL in str(error.filename):
            error.filename = str(out)
        raise


def _same_dataset(sidecar: dict[str, Any], expected: dict[str, Any], out: Path) -> None:
    """A folder holds one dataset: one model, seed, plan and way of drawing."""
    names = {"model_sha256": "model", "seed": "seed", "plan": "request", "drawing": "sampler setting"}
    names["gate_setting"] = "gate setting"
    for key, word in names.items():
        if sidecar.get(key) != expected[key]:
            raise InputError(f"{out} already holds samples of another {word}; choose another output folder")
