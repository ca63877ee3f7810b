"""The pinned protocol's figures as a part of the report's page."""

from collections.abc import Mapping
from typing import Any

_DISTANCES = {"frechet": "Fréchet distance", "mmd": "MMD^2, Gaussian", "mmd_poly": "MMD^2, polynomial"}
_SHARES = {"precision": "precision", "recall": "recall", "density": "density", "coverage": "coverage"}
_COPIES = ("copies", "held_out_copies", "singled_out", "held_out_singled_out")


def fidelity_lines(figures: Mapping[str, Any]) -> list[str]:
    """Lines of Markdown for figures of :func:`medgen.evaluation.fidelity.fidelity`."""
    floor, samples, excess = figures["floor"], figures["samples"], figures["excess"]
    lines = [
        "",
        "## Fidelity",
        "",
        f"In features of a segmenter, {figures['n']} cases a side against held-out cases; the floor is real against "
        f"real ({figures['floor_of']}). 95% intervals.",
        "",
        "| figure | samples | floor | excess |",
        "| --- | --- | --- | --- |",
    ]
    for key, word in _DISTANCES.items():
        lines.append(f"| {word} | {_told(samples[key])} | {_told(floor[key])} | {_told(excess[key])} |")
    lines += [f"| {word} | {_told(samples[k])} | {_told(floor[k])} | |" for k, word in _SHARES.items()]
    lines += ["", "Volumes, requested against measured:", ""]
    lines += ["| volume | CCC, own label | CCC, segmenter | CCC, segmenter on real cases |"]
    lines += ["| --- | --- | --- | --- |"]
    for name, found in figures["volumes"].items():
        cells = (_told(found[k].get("ccc")) for k in ("generated_label", "segmenter", "segmenter_on_real"))
        lines.append(f"| {name} | {' | '.join(cells)} |")
    sharp = figures["sharpness"]
    ratios = [f"{sharp['laplacian_ratio_to_real']} of real cases'"]
    if "laplacian_ratio_to_reconstructions" in sharp:
        ratios.append(f"{sharp['laplacian_ratio_to_reconstructions']} of reconstructions'")
    lines += ["", f"Sharpness (Laplacian variance) {' and '.join(ratios)}."]
    lines += ["", *(_copies(name, found) for name, found in figures["memorisation"].items())]
    m = figures["ms_ssim"]
    told = f"MS-SSIM between samples {m['samples']}, between training cases {m['train']}"
    lines += ["", f"{told} (lower is more diverse)."]
    return lines


def _copies(space: str, found: Mapping[str, Any]) -> str:
    """What a space says of copies."""
    near, real_near, single, real_single = (f"{found[k]:.0%}" for k in _COPIES)
    return (
        f"- By {space}, {near} of the samples ({real_near} of the held-out cases) are nearer to a training case than "
        f"all but 1% of these are to each other; soft images are, without being copies. {single} ({real_single}) "
        "single out a training case: they are nearer to it than to the next by a ratio that 99% of training cases lack."
    )


def _told(figure: Mapping[str, Any] | None) -> str:
    """A figure with its interval."""
    if figure is None or figure["value"] is None:
        return "-"
    value, low, high = (figure[k] for k in ("value", "low", "high"))
    return f"{value:.3g}" if low is None or high is None else f"{value:.3g} ({low:.3g} to {high:.3g})"
