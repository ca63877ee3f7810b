"""The report of a run: what the codec keeps, whether samples obey, whether they are diverse."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from medgen.cohort.schema import Value
from medgen.evaluation.alike import prepared_alike
from medgen.evaluation.codec_quality import rounded
from medgen.evaluation.fidelity_page import fidelity_lines
from medgen.files import write_json, write_text
from medgen.measure.agreement import agreement
from medgen.measure.image import mean_pairwise_ssim
from medgen.prepare.options import PrepareOptions
from medgen.store.prepared import Prepared

_MAX_CASES = 32


def write_report(
    folder: Path,
    store: Prepared,
    codec: Mapping[str, Any],
    synthetic: Path,
    options: PrepareOptions,
    *,
    gates: Mapping[str, Any] | None = None,
    format: str | None = None,
    workers: int = 1,
    volume: str | None = None,
    min_volume_r: float | None = None,
    max_ssim_excess: float | None = None,
    fidelity: Callable[[Prepared], Mapping[str, Any]] | None = None,
) -> dict[str, Any]:
    """Measure and write ``report.json`` and ``report.md``.

    Samples are prepared as the cohort was, by the same code at the same grid, before they are compared with it.

    Args:
        folder: of the report.
        store: the prepared cohort.
        codec: what it keeps, of :func:`medgen.evaluation.codec_quality.measure`; ``below`` lists the thresholds that
            it misses.
        synthetic: the synthetic dataset.
        options: of the cohort's preparation.
        gates: how the samples' draws fared at the gates, of :class:`medgen.generation.accept.Acceptance`.
        format: of the synthetic dataset, recognised where None.
        workers: processes that prepare.
        volume: the covariate whose correlation ``min_volume_r`` bounds, such as ``ventricles_ml``.
        min_volume_r: least correlation of requested with measured volumes, None for no bound.
        max_ssim_excess: most that the samples' mean pairwise SSIM may exceed the cohort's, None for no bound.
        fidelity: the prepared samples -> figures of :func:`medgen.evaluation.fidelity.fidelity`; None leaves them out.

    Returns:
        The report; ``failures`` lists the bounds that were missed.
    """
    samples = prepared_alike(store, synthetic, folder / "prepared", options, format=format, workers=workers)
    report: dict[str, Any] = {
        "codec": dict(codec),
        "samples": {"count": len(samples.cases), "volumes": _volumes([c.covariates for c in samples.cases])},
        "diversity": _diversity(store, samples),
    }
    if gates:
        report["gates"] = dict(gates)
    if fidelity is not None:
        report["fidelity"] = dict(fidelity(samples))
    report["failures"] = _failures(report, volume, min_volume_r, max_ssim_excess)
    write_json(folder / "report.json", report)
    write_text(folder / "report.md", as_markdown(report))
    return report


def _volumes(rows: Sequence[Mapping[str, Value]]) -> dict[str, Any]:
    """Agreement of every requested volume with the measured one."""
    names = sorted({name.removeprefix("requested_") for row in rows for name in row if name.startswith("requested_")})
    found = {}
    for name in names:
        pairs = [(row.get(f"requested_{name}"), row.get(name)) for row in rows]
        known = np.array([(float(a), float(m)) for a, m in pairs if a is not None and m is not None]).reshape(-1, 2)
        figures = asdict(agreement(known[:, 0], known[:, 1]))
        found[name] = {key: rounded(value) for key, value in figures.items()}
    return found


def _diversity(store: Prepared, samples: Prepared) -> dict[str, Any]:
    count = min(len(samples.cases), len(store.indices("train")), _MAX_CASES)
    real = [np.asarray(store.image(i)) for i in list(store.indices("train"))[:count]]
    made = [np.asarray(samples.image(i)) for i in range(count)]
    if count < 2:
        return {"cases": count}
    cohort_ssim, sample_ssim = mean_pairwise_ssim(real), mean_pairwise_ssim(made)
    return {"cases": count, "cohort_ssim": rounded(cohort_ssim), "sample_ssim": rounded(sample_ssim)}


def _failures(
    report: Mapping[str, Any], volume: str | None, min_volume_r: float | None, max_ssim_excess: float | None
) -> list[str]:
    missed = []
    if volume is not None and min_volume_r is not None:
        r = report["samples"]["volumes"].get(volume, {}).get("r")
        if r is None or r < min_volume_r:
            missed.append(f"{volume}: requested and measured correlate at r = {r}, below {min_volume_r}")
    if max_ssim_excess is not None:
        d = report["diversity"]
        if "sample_ssim" not in d or d["sample_ssim"] > d["cohort_ssim"] + max_ssim_excess:
            missed.append(
                f"samples are less diverse than the cohort: mean pairwise SSIM {d.get('sample_ssim')}, "
                f"the cohort's {d.get('cohort_ssim')} + {max_ssim_excess} at most"
            )
    return missed


def _gates(gates: Mapping[str, Any]) -> list[str]:
    told = f"Gates accepted {gates['accepted']} of {gates['draws']} draws"
    if gates["left_out"]:
        told += f"; {gates['left_out']} samples are left out, all {gates['attempts']} draws of each rejected"
    real = gates.get("held_out") or {}
    whose = f"held-out cases ({real['cases']})" if real else "held-out cases"
    lines = ["", f"{told}.", "", f"| gate | draws accepted | {whose} accepted | most often rejected for |"]
    lines.append("| --- | --- | --- | --- |")
    for kind, found in sorted(gates["gates"].items()):
        passed = real.get("by_gate", {}).get(kind, "")
        why = ", ".join(f"{name} {count}" for name, count in list(found["scores"].items())[:3])
        lines.append(f"| {kind} | {found['accepted']:.1%} | {passed} | {why} |")
    return [*lines, *(f"\nGate `{kind}` did not judge: {why}." for kind, why in gates["silent"].items())]


def as_markdown(report: Mapping[str, Any]) -> str:
    """The report as a page of Markdown."""
    codec, diversity = report["codec"], report["diversity"]
    whose = "held-out cases" if codec["held_out"] else "training cases (nothing is held out)"
    lines = [
        "# Report",
        "",
        f"Codec on {codec['cases']} {whose}: PSNR {codec['psnr_db']} dB, SSIM {codec['ssim']}, L1 {codec['l1']}, "
        f"sharpness {codec['sharpness']} of the images'.",
    ]
    if codec["below"]:
        lines += ["", f"**The codec is below its thresholds, and the run was forced on:** {'; '.join(codec['below'])}."]
    if "dice" in codec:
        lines += ["", "| label | Dice of reconstruction |", "| --- | --- |"]
        lines += [f"| {name} | {value} |" for name, value in codec["dice"].items()]
    lines += ["", f"{report['samples']['count']} samples, requested against measured (ml):", ""]
    lines += ["| volume | n | r | CCC | slope | MAE | bias |", "| --- | --- | --- | --- | --- | --- | --- |"]
    for name, f in report["samples"]["volumes"].items():
        lines.append(f"| {name} | {f['n']} | {f['r']} | {f['ccc']} | {f['slope']} | {f['mae']} | {f['bias']} |")
    if "gates" in report:
        lines += _gates(report["gates"])
    if "sample_ssim" in diversity:
        lines += [
            "",
            f"Diversity over {diversity['cases']} cases each: mean pairwise SSIM of the samples "
            f"{diversity['sample_ssim']}, of the cohort {diversity['cohort_ssim']} (lower is more diverse).",
        ]
    if "fidelity" in report:
        lines += fidelity_lines(report["fidelity"])
    lines += ["", *(f"FAILED: {failure}" for failure in report["failures"])]
    return "\n".join(lines).rstrip() + "\n"
