"""The one-screen summary at the end of a run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any


def summary(folder: Path, report: Mapping[str, Any], volume: str | None) -> str:
    """Paths, counts, requested against measured, diversity, and what failed."""
    codec, samples, diversity = report["codec"], report["samples"], report["diversity"]
    lines = [
        "",
        f"  synthetic dataset   {folder / 'synthetic'} ({samples['count']} cases)",
        f"  contact sheet       {folder / 'synthetic' / 'contact_sheet.png'}",
        f"  model               {folder / 'model'}",
        f"  report              {folder / 'report' / 'report.md'}",
        "",
        f"  codec               PSNR {codec['psnr_db']} dB, SSIM {codec['ssim']} on {codec['cases']} "
        + ("held-out cases" if codec["held_out"] else "training cases"),
    ]
    if codec["below"]:
        lines.append("  CODEC BELOW ITS THRESHOLDS (--force)  " + "; ".join(codec["below"]))
    if "dice" in codec:
        lines.append("  label Dice          " + ", ".join(f"{k} {v}" for k, v in codec["dice"].items()))
    for name, f in samples["volumes"].items():
        mark = "*" if name == volume else " "
        lines.append(
            f" {mark}{name:<19} asked against measured: r {f['r']}, CCC {f['ccc']}, MAE {f['mae']} ml, n {f['n']}"
        )
    if "sample_ssim" in diversity:
        lines.append(
            f"  diversity           mean pairwise SSIM {diversity['sample_ssim']}, cohort {diversity['cohort_ssim']}"
        )
    if "gates" in report:
        g = report["gates"]
        lost = f", {g['left_out']} samples left out" if g["left_out"] else ""
        lines.append(f"  gates               {g['accepted']} of {g['draws']} draws accepted{lost}")
    lines += ["", *(f"  FAILED: {failure}" for failure in report["failures"])]
    return "\n".join(lines)


def folds_summary(folder: Path, report: Mapping[str, Any], volume: str | None) -> str:
    """A line for each fold, and where all of them are together."""
    lines = ["", f"  real and synthetic  {folder / 'combined'} (splits_final.json, datalist_fold*.json)", ""]
    for name, found in report["folds"].items():
        codec, samples = found["codec"], found["samples"]
        told = f"{samples['count']} samples, codec PSNR {codec['psnr_db']} dB"
        if volume in samples["volumes"]:
            told += f", {volume} r {samples['volumes'][volume]['r']}"
        lines.append(f"  {name:<19} {told}, {folder / name / 'report' / 'report.md'}")
    lines += ["", *(f"  FAILED: {failure}" for failure in report["failures"])]
    return "\n".join(lines)
