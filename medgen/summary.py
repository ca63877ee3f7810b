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
    lines += ["", *(f"  FAILED: {failure}" for failure in report["failures"])]
    return "\n".join(lines)
