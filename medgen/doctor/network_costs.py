"""What the stages that use networks will cost: hours and memory, measured here or computed for another machine."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from medgen.doctor import amounts, parts, timing
from medgen.doctor.amounts import Amount
from medgen.doctor.counted import OVERHEAD_BYTES, Machine, count_parts
from medgen.doctor.environment import available_bytes
from medgen.doctor.finding import Finding, duration, gib
from medgen.doctor.parts import RATE_FLOPS, Job
from medgen.doctor.tally import Count
from medgen.formats.folds import read_splits
from medgen.stages.conditions import fit_encoder, fit_joint
from medgen.stages.masks import codec_labels, follows_masks, label_run, mask_input
from medgen.stages.run import SEGMENTED, Run
from medgen.store.machine import memory_bytes as all_bytes

Costs = tuple[list[Finding], dict[str, Any]]
"""Findings, and the figures of each stage."""


@dataclass(frozen=True)
class _Cost:
    """Of a part.

    Attributes:
        seconds: of one; None where nothing tells.
        bytes: at most.
        how: "measured" or "computed", of the seconds.
    """

    seconds: float | None
    bytes: int
    how: str


def experiment_costs(run: Run, training: int, cases: int, machine: Machine | None = None) -> Costs:
    """Time and memory of the network stages of an experiment.

    Without ``machine`` parts are measured here by a few real steps; what there is no time for is computed from the rate
    that a convolution reaches here. Device memory is computed in any case.

    Args:
        run: the experiment; its prepared cohort is the one of :func:`store_like`.
        training: cases that train.
        cases: all cases.
        machine: another one, for which everything is computed and nothing measured.

    Raises:
        InputError: steering that does not fit the conditions.
    """
    found: list[Finding] = []
    figures: dict[str, Any] = {}
    total, known = 0.0, True
    for prefix, one in (("", run), *([("labels ", label_run(run))] if follows_masks(run) else [])):
        findings, stages = _experiment_costs(one, training, cases, machine, prefix)
        found += findings
        figures |= stages
        total += sum(stage["total_seconds"] or 0.0 for stage in stages.values())
        known = known and all(stage["total_seconds"] is not None for stage in stages.values())
    if known and len(figures) > 1:
        where = f"computed at {machine.told()}" if machine else "on this machine as it is now"
        found.append(Finding("cost", "whole run", f"about {duration(total)} beside preparing, {where}"))
    return found, figures


def _experiment_costs(run: Run, training: int, cases: int, machine: Machine | None, prefix: str) -> Costs:
    store, c = run.store, run.config
    encoder, rows = fit_encoder(run)
    device = torch.device("cpu") if machine else run.device
    memory = machine.memory_bytes if machine else _device_bytes(device)
    on_gpu = memory if machine or device.type == "cuda" else None
    folds, training = _folds(run, training, cases)
    asked, sample = amounts.amounts(
        c,
        store,
        encoder,
        fit_joint(run),
        rows[0],
        training=training,
        cases=cases,
        folds=folds,
        memory_bytes=on_gpu or all_bytes(),
        segmenters={} if prefix else _segmenters(run),
    )
    mask = mask_input(run)
    job = Job(
        config=c.model_dump(mode="json"),
        channels=len(store.channels),
        labels=codec_labels(run),
        label_ids=len(store.label_values),
        shape=store.shape,
        encoder=encoder.to_json(),
        rows=[dict(row) for row in rows[:64]],
        mask=None if mask is None else (mask.labels, mask.stride),
        at_once=sample.at_once,
        parts=tuple(name for name in parts.PARTS if any(name in a.parts for a in asked.values())),
    )
    found: list[timing.Measured] = []
    problem = ""
    if machine is None:
        found, problem = timing.measured(asdict(job))
    counted = count_parts(job, memory_bytes=on_gpu)
    costs, told = _part_costs(found, counted, job, machine)
    figures = {prefix + name: _stage(a, costs, counted, job) for name, a in asked.items()}
    findings = list(_stage_findings(figures, asked, prefix, told, memory, device, machine))
    if problem:
        late = problem.startswith("not finished")
        fix = "use a smaller patch, batch, network or grid" + (", or a faster machine" if late else "")
        findings.append(Finding("odd" if late else "wrong", prefix + "measure", f"measuring: {problem}", fix))
    return findings, figures


def _segmenters(run: Run) -> dict[str, int]:
    """Stage -> steps of the segmenter that it trains."""
    found = {SEGMENTED: run.config.data.segmenter_steps} if run.lacks_labels else {}
    fidelity = run.config.report.fidelity
    return found | ({amounts.REPORT: fidelity.segmenter_steps} if fidelity else {})


def _folds(run: Run, training: int, cases: int) -> tuple[int, int]:
    """How many models are trained, and on how many cases each."""
    said = run.config.data.folds
    if said is None:
        return 1, training
    count = said if isinstance(said, int) else len(read_splits(said.expanduser()))
    inside = cases * (count - 1) / count
    return count, max(1, round(inside * (1 - run.config.data.validation)))


def _device_bytes(device: torch.device) -> int | None:
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return available_bytes()


def _part_costs(
    found: Sequence[Mapping[str, Any]], counted: Mapping[str, Count], job: Job, machine: Machine | None
) -> tuple[dict[str, _Cost], str]:
    """Each part's cost, and where the rate behind computed seconds comes from."""
    measured = {m["part"]: m for m in found}
    rate, told = machine, f"at {machine.told()}" if machine else ""
    if machine is None and "rate" in measured:
        rate = Machine(RATE_FLOPS / 1e12 / measured["rate"]["seconds"])
        told = f"at the {rate.tflops:.3g} TFLOP/s that a convolution reaches here"
    costs = {}
    for name, count in counted.items():
        rows = job.at_once if name in (parts.FORWARD, parts.FORWARD_BACK) else 1
        if name in measured:
            costs[name] = _Cost(measured[name]["seconds"] / rows, measured[name]["bytes"], "measured")
        else:
            costs[name] = _Cost(rate.seconds(count) / rows if rate else None, count.peak_bytes, "computed")
    return costs, told


def _stage(a: Amount, costs: Mapping[str, _Cost], counted: Mapping[str, Count], job: Job) -> dict[str, Any]:
    """The figures of a stage, JSON-able."""

    def seconds(many: Mapping[str, float]) -> float | None:
        each = [(costs[name].seconds, n) for name, n in many.items()]
        return None if any(s is None for s, _ in each) else sum(s * n for s, n in each if s is not None)

    one, beside = seconds(a.each), seconds(a.beside)
    whole = None if one is None or beside is None else a.units * one + beside
    ended = whole is not None and a.minutes is not None and whole > 60 * a.minutes
    if (whole is None and a.minutes is not None) or ended:
        whole = 60 * (a.minutes or 0.0)
    used = [costs[name] for name in a.parts]
    return {
        "unit": a.unit,
        "units": a.units,
        "times": a.times,
        "seconds": one,
        "ended": ended,
        "total_seconds": None if whole is None else a.times * whole,
        "how": "measured" if all(c.how == "measured" for c in used) else "computed",
        "bytes": max((c.bytes for c in used if c.how == "measured"), default=0),
        "computed_bytes": max(counted[name].peak_bytes for name in a.parts) + a.resident_bytes + OVERHEAD_BYTES,
        "resident_bytes": a.resident_bytes,
    }


def _stage_findings(
    figures: Mapping[str, Mapping[str, Any]],
    amounts_: Mapping[str, Amount],
    prefix: str,
    told: str,
    memory: int | None,
    device: torch.device,
    machine: Machine | None,
) -> Iterator[Finding]:
    for name, m in figures.items():
        a = amounts_[name.removeprefix(prefix)]
        many = "s" if a.units > 1 else ""
        what = f"{a.units} {a.unit}{many}"
        if m["seconds"] is not None:
            how = m["how"] if m["how"] == "measured" else f"computed {told}"
            what += f" of {duration(m['seconds'])} ({how})"
        if a.times > 1:
            what += f", {a.times} times"
        if a.disk_bytes:
            what += f", {gib(a.disk_bytes * a.times)} on disk"
        if m["total_seconds"] is not None:
            what += f": {duration(m['total_seconds'])}"
        if m["ended"]:
            what += f" (ended by the clock at about {60 * (a.minutes or 0) / m['seconds']:.0f})"
        on_gpu = machine is not None or device.type == "cuda"
        peak = m["computed_bytes"] if on_gpu else m["bytes"] + m["resident_bytes"]
        memories = [f"{gib(m['bytes'] + m['resident_bytes'])} measured"] if m["bytes"] else []
        memories.append(f"{gib(m['computed_bytes'])} on a GPU, computed")
        what += f"; peak memory {', '.join(memories)}"
        if memory is not None and peak > memory:
            fix = "use a smaller patch, batch or network, checkpointing, or a coarser prepare.spacing_mm"
            there = f"{gib(memory)} are available" if machine is None else f"the device has {gib(memory)}"
            yield Finding("wrong", name, f"{what}, but only {there}".replace("only the", "the"), fix)
        else:
            yield Finding("cost", name, what)


def measure_model(folder: Path, device: torch.device) -> Costs:
    """Measure the drawing of a sample."""
    found, problem = timing.measured({"model": str(folder.absolute())})
    there, findings = _device_bytes(device), []
    for m in found:
        what = f"1 sample of {duration(m['seconds'])} (measured); peak memory {gib(m['bytes'])} measured"
        short = there is not None and m["bytes"] > there
        more = f", but only {gib(there or 0)} are available" if short else ""
        findings.append(Finding("wrong" if short else "cost", m["part"], what + more, "set --tile" if short else ""))
    if problem:
        late = problem.startswith("not finished")
        findings.append(
            Finding("odd" if late else "wrong", "synthetic", f"measuring: {problem}", "use a faster machine")
        )
    return findings, {m["part"]: {k: v for k, v in m.items() if k != "part"} for m in found}
