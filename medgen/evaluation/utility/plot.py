"""The learning curves: Dice on held-out cases against the number of labelled cases."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from medgen.evaluation.utility.arms import ARMS
from medgen.files import atomic

_APART = 0.02  # of the arms at one size, as a share of it, so that their intervals do not lie upon each other


def write_plot(summary: Mapping[str, Any], path: Path) -> None:
    """Draw Dice with its 95% interval for each arm, sweeps left out.

    Args:
        summary: of :func:`medgen.evaluation.utility.summary.summarise`.
        path: of the PNG.
    """
    figure = Figure(figsize=(7.5, 5.0), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    there = [name for name in ARMS if any(arm["arm"] == name for arm in summary["arms"])]
    sizes: set[int] = set()
    for number, name in enumerate(there):
        points = [arm for arm in summary["arms"] if arm["arm"] == name and not arm["sweep"]]
        points = sorted((p for p in points if p["dice"]["value"] is not None), key=lambda p: p["labelled"])
        sizes |= {p["labelled"] for p in points}
        x = [p["labelled"] * (1 + _APART * (number - (len(there) - 1) / 2)) for p in points]
        y = [p["dice"]["value"] for p in points]
        low = [v - (p["dice"]["low"] if p["dice"]["low"] is not None else v) for p, v in zip(points, y, strict=True)]
        high = [(p["dice"]["high"] if p["dice"]["high"] is not None else v) - v for p, v in zip(points, y, strict=True)]
        uncertain = any(p["counts"] is False for p in points)
        label = f"{name} (copies: does not count)" if uncertain else name
        # A percentile interval need not hold its value; a bar of less than nothing cannot be drawn.
        bars = [[max(0.0, v) for v in side] for side in (low, high)]
        axes.errorbar(x, y, yerr=bars, label=label, marker="o", markersize=4, capsize=3, linewidth=1.5)
    axes.set_xscale("log")
    axes.set_xticks(sorted(sizes), [str(n) for n in sorted(sizes)])
    axes.minorticks_off()
    axes.set_xlabel("labelled cases")
    axes.set_ylabel("mean Dice on held-out real cases")
    axes.set_title(f"{summary['name']}: {summary['held_out']['cases']} held-out cases, {summary['steps']} steps an arm")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small", loc="best", framealpha=0.6)
    with atomic(path) as temporary:
        figure.savefig(temporary, dpi=130)
