"""The report of a run: what the codec keeps, whether samples obey, whether they are diverse."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medgen.cohort.schema import Value
from medgen.files import write_json, write_text
from medgen.formats.detect import read_cohort
from medgen.measure.agreement import agreement
from medgen.measure.image import mean_pairwise_ssim, psnr_db, ssim
from medgen.measure.overlap import dice
from medgen.models.codec import Codec
from medgen.prepare.options import PrepareOptions
from medgen.prepare.run import prepare_cohort
from medgen.store.prepared import Prepared
from medgen.training.autoencoder import reconstruct

_MAX_CASES = 32


def write_report(
    folder: Path,
    store: Prepared,
    codec: Codec,
    synthetic: Path,
    options: PrepareOptions,
    *,
    format: str | None = None,
    device: torch.device,
    workers: int = 1,
    volume: str | None = None,
    min_volume_r: float | None = None,
    max_ssim_excess: float | None = None,
) -> dict[str, Any]:
    """Measure and write ``report.json`` and ``report.md``.

    Samples are prepared as the cohort was, by the same code at the same grid, before they are compared with it.

    Args:
        folder: of the report.
        store: the prepared cohort.
        codec: trained, in evaluation mode.
        synthetic: the synthetic dataset.
        options: of the cohort's preparation.
        format: of the synthetic dataset, recognised where None.
        device: where the codec is.
        workers: processes that prepare.
        volume: the covariate whose correlation ``min_volume_r`` bounds, such as ``ventricles_ml``.
        min_volume_r: least correlation of requested with measured volumes, None for no bound.
        max_ssim_excess: most that the samples' mean pairwise SSIM may exceed the cohort's, None for no bound.

    Returns:
        The report; ``failures`` lists the bounds that were missed.
    """
    made = read_cohort(synthetic, format=format)
    same_grid = replace(
        options, shape=store.shape, spacing_mm=store.spacing_mm, channels=_in_order(made.channels, store.channels)
    )
    samples = prepare_cohort(made, folder / "prepared", same_grid, workers=workers)
    report: dict[str, Any] = {
        "codec": _codec(store, codec, device),
        "samples": {"count": len(samples.cases), "volumes": _volumes([c.covariates for c in samples.cases])},
        "diversity": _diversity(store, samples),
    }
    report["failures"] = _failures(report, volume, min_volume_r, max_ssim_excess)
    write_json(folder / "report.json", report)
    write_text(folder / "report.md", as_markdown(report))
    return report


def _in_order(found: Sequence[str], wanted: Sequence[str]) -> tuple[str, ...]:
    """The channels of a dataset in the cohort's order: a format may have had to shorten ``T1 post`` to ``T1post``."""

    def plain(name: str) -> str:
        return re.sub(r"[^0-9a-z]", "", name.lower())

    by_name = {plain(name): name for name in found}
    return tuple(by_name.get(plain(name), name) for name in wanted)


def _codec(store: Prepared, codec: Codec, device: torch.device) -> dict[str, Any]:
    indices = list(store.indices("val"))
    figures: dict[str, Any] = {"cases": len(indices), "held_out": True}
    if not indices:
        indices, figures["held_out"] = list(store.indices("train")), False
    psnr, likeness, overlap = [], [], []
    for i in indices[:_MAX_CASES]:
        image = np.asarray(store.image(i), dtype=np.float32)
        label = np.asarray(store.label(i)) if store.cases[i].has_label else None
        out, ids = reconstruct(codec, image, label, device)
        psnr.append(psnr_db(out, image))
        likeness.append(ssim(out, image))
        if ids is not None and label is not None:
            overlap.append(dice(ids, label, range(1, len(store.label_values))))
    figures |= {"psnr_db": _rounded(np.mean(psnr)), "ssim": _rounded(np.mean(likeness))}
    if overlap:
        means = np.nanmean(np.array(overlap), axis=0)
        figures["dice"] = {n: _rounded(v) for n, v in zip(store.label_names[1:], means, strict=True)}
    return figures


def _volumes(rows: Sequence[Mapping[str, Value]]) -> dict[str, Any]:
    """Agreement of every requested volume with the measured one."""
    names = sorted({name.removeprefix("requested_") for row in rows for name in row if name.startswith("requested_")})
    found = {}
    for name in names:
        pairs = [(row.get(f"requested_{name}"), row.get(name)) for row in rows]
        known = np.array([(float(a), float(m)) for a, m in pairs if a is not None and m is not None]).reshape(-1, 2)
        figures = asdict(agreement(known[:, 0], known[:, 1]))
        found[name] = {key: _rounded(value) for key, value in figures.items()}
    return found


def _diversity(store: Prepared, samples: Prepared) -> dict[str, Any]:
    count = min(len(samples.cases), len(store.indices("train")), _MAX_CASES)
    real = [np.asarray(store.image(i)) for i in list(store.indices("train"))[:count]]
    made = [np.asarray(samples.image(i)) for i in range(count)]
    if count < 2:
        return {"cases": count}
    cohort_ssim, sample_ssim = mean_pairwise_ssim(real), mean_pairwise_ssim(made)
    return {"cases": count, "cohort_ssim": _rounded(cohort_ssim), "sample_ssim": _rounded(sample_ssim)}


def _rounded(value: Any) -> Any:
    """Four digits; null for what is undefined, since NaN is not JSON."""
    if isinstance(value, int):
        return value
    return None if not math.isfinite(float(value)) else round(float(value), 4)


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


def as_markdown(report: Mapping[str, Any]) -> str:
    """The report as a page of Markdown."""
    codec, diversity = report["codec"], report["diversity"]
    whose = "held-out cases" if codec["held_out"] else "training cases (nothing is held out)"
    lines = [
        "# Report",
        "",
        f"Codec on {codec['cases']} {whose}: PSNR {codec['psnr_db']} dB, SSIM {codec['ssim']}.",
    ]
    if "dice" in codec:
        lines += ["", "| label | Dice of reconstruction |", "| --- | --- |"]
        lines += [f"| {name} | {value} |" for name, value in codec["dice"].items()]
    lines += ["", f"{report['samples']['count']} samples, requested against measured (ml):", ""]
    lines += ["| volume | n | r | CCC | slope | MAE | bias |", "| --- | --- | --- | --- | --- | --- | --- |"]
    for name, f in report["samples"]["volumes"].items():
        lines.append(f"| {name} | {f['n']} | {f['r']} | {f['ccc']} | {f['slope']} | {f['mae']} | {f['bias']} |")
    if "sample_ssim" in diversity:
        lines += [
            "",
            f"Diversity over {diversity['cases']} cases each: mean pairwise SSIM of the samples "
            f"{diversity['sample_ssim']}, of the cohort {diversity['cohort_ssim']} (lower is more diverse).",
        ]
    lines += ["", *(f"FAILED: {failure}" for failure in report["failures"])]
    return "\n".join(lines).rstrip() + "\n"
