"""The summary for people: a page of Markdown, and the same table on a terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from medgen.evaluation.utility.arms import TOLD
from medgen.evaluation.utility.summary import FEWEST_SEEDS

Summary = Mapping[str, Any]
_COPIES = ("copies", "held_out_copies", "singled_out", "held_out_singled_out")
_HEAD = ("labelled", "arm", "Dice", "against", "HD95 (mm)", "volume error (ml)", "(%)", "seeds")
PLOT = "learning_curves.png"


def interval(found: Mapping[str, float | None] | None, digits: int = 3, sign: bool = False) -> str:
    """``0.853 [0.841, 0.862]``; a dash where undefined."""
    if not found or found["value"] is None:
        return "-"
    form = f"{{:{'+' if sign else ''}.{digits}f}}"
    if found["low"] is None or found["high"] is None:
        return form.format(found["value"])
    return f"{form.format(found['value'])} [{form.format(found['low'])}, {form.format(found['high'])}]"


def name_of(arm: Mapping[str, Any]) -> str:
    """An arm with its share and number of synthetic cases; marked where it does not count."""
    told = str(arm["arm"])
    if arm["sweep"]:
        told += f", {arm['synthetic']} cases, share {arm['share']:g}"
    return told if arm["counts"] is not False else f"{told} (does not count)"


def _short(arm: Mapping[str, Any]) -> str:
    told = f"{arm['arm']} {arm['synthetic']}x{arm['share']:g}" if arm["sweep"] else str(arm["arm"])
    return told if arm["counts"] is not False else f"({told})"


def rows(summary: Summary) -> list[tuple[str, ...]]:
    """The cells of the table, a row for each setting."""
    return [
        (
            f"{arm['labelled']}" + (" (all)" if arm["size"] == "all" else ""),
            name_of(arm),
            interval(arm["dice"]),
            interval(arm["difference"]["dice"], sign=True) if arm["difference"] else "",
            interval(arm["hd95_mm"], 2),
            interval(arm["volume_error_ml"]),
            interval(arm["volume_error_percent"], 1),
            str(arm["seeds"]),
        )
        for arm in summary["arms"]
    ]


def verdict(summary: Summary) -> str:
    """The primary comparison in one sentence."""
    p = summary["primary"]
    told = f"{p['arm']} against {p['against']} at {p['size']} labelled cases"
    if p["difference"] is None:
        return f"Primary comparison ({told}): not measured, {p['why']}."
    d = p["difference"]["dice"]
    said = f"Primary comparison ({told}): Dice {interval(d, 4, sign=True)}"
    if d["low"] is None:
        return f"{said}."
    sure = "above zero" if d["low"] > 0 else "below zero" if d["high"] < 0 else "which does not exclude zero"
    return f"{said}, {sure}."


def as_markdown(summary: Summary) -> str:
    """The summary as a page of Markdown."""
    against, held = summary["primary"]["against"], summary["held_out"]
    head = [f"{cell} {against}" if cell == "against" else cell for cell in _HEAD]
    lines = [
        "# Utility",
        "",
        verdict(summary),
        "",
        f"{held['cases']} held-out real cases of {held['subjects']} subjects, {summary['steps']} steps in every arm. "
        f"In brackets: {summary['intervals']}.",
        "",
        *_table(head, rows(summary)),
        "",
        *(f"- `{name}`: {told}" for name, told in TOLD.items() if any(a["arm"] == name for a in summary["arms"])),
        "",
        f"![Dice against labelled cases]({PLOT})",
        *_by_label(summary),
        *_by_stratum(summary),
        *_generators(summary),
    ]
    lines += ["", *(f"Not trained at size {s['size']}: {s['arm']} ({s['why']})." for s in summary["skipped"])]
    lines += ["", *(f"Note: {note}." for note in notes(summary))]
    lines += ["", *(f"FAILED: {failure}" for failure in summary["failures"])]
    kept = [line for i, line in enumerate(lines) if line or (i and lines[i - 1])]
    return "\n".join(kept).rstrip() + "\n"


def notes(summary: Summary) -> list[str]:
    """What a reader must know."""
    few = min((arm["seeds"] for arm in summary["arms"]), default=0)
    said = (
        [f"{few} seeds are few, at least {FEWEST_SEEDS} tell how much trainings differ"] if few < FEWEST_SEEDS else []
    )
    return [*summary["notes"], *said]


def print_table(summary: Summary) -> None:
    """Print the table and the primary comparison."""
    console = Console()
    against = summary["primary"]["against"]
    table = Table(title=f"{summary['name']}: {summary['held_out']['cases']} held-out real cases", title_justify="left")
    # A terminal is narrow: intervals of the two figures that decide, no more. The page has them all.
    for cell in ("n", "arm", "Dice", f"- {against}", "HD95 mm", "ml off"):
        table.add_column(cell, no_wrap=cell not in ("HD95 mm", "ml off"))
    size = None
    for arm in summary["arms"]:
        if size not in (None, arm["size"]):
            table.add_section()
        size = arm["size"]
        plain = [{**arm[key], "low": None} for key in ("hd95_mm", "volume_error_ml")]
        base = interval(arm["difference"]["dice"], sign=True) if arm["difference"] else ""
        table.add_row(str(arm["labelled"]), _short(arm), interval(arm["dice"]), base, *(interval(f, 2) for f in plain))
    console.print(table)
    for told in summary["skipped"]:
        console.print(f"not trained at size {told['size']}: {told['arm']} ({told['why']})", highlight=False)
    for line in [*(f"note: {note}" for note in notes(summary)), *(f"FAILED: {f}" for f in summary["failures"])]:
        console.print(line, highlight=False, markup=False)
    console.print(verdict(summary), highlight=False, markup=False)


def _table(head: Sequence[str], cells: Sequence[Sequence[str]]) -> list[str]:
    rule = "| " + " | ".join("---" for _ in head) + " |"
    return ["| " + " | ".join(head) + " |", rule, *("| " + " | ".join(row) + " |" for row in cells)]


def _by_label(summary: Summary) -> list[str]:
    if len(summary["labels"]) < 2:
        return []
    head = ["labelled", "arm", *summary["labels"]]
    cells = [
        [row[0], row[1], *(interval(arm["by_label"][name]["dice"]) for name in summary["labels"])]
        for arm, row in zip(summary["arms"], rows(summary), strict=True)
    ]
    return ["", "## Dice by label", "", *_table(head, cells)]


def _by_stratum(summary: Summary) -> list[str]:
    names = list(summary["strata"])
    if not names:
        return []
    head = ["labelled", "arm", *(f"{name} (n={n})" for name, n in summary["strata"].items())]
    cells = [
        [row[0], row[1], *(interval(arm["by_stratum"].get(name)) for name in names)]
        for arm, row in zip(summary["arms"], rows(summary), strict=True)
    ]
    lines = ["", "## Dice by stratum", "", *_table(head, cells)]
    found = summary["primary"]["difference"]
    if found:
        told = [f"{name} {interval(found['by_stratum'].get(name), 4, sign=True)}" for name in names]
        lines += ["", f"Primary comparison by stratum: {'; '.join(told)}."]
    return lines


def _generators(summary: Summary) -> list[str]:
    if not summary["generators"]:
        return []
    head = ["labelled", "generator's training cases", "with a label", "samples", "copies", "copies, real to real"]
    head += ["single out a case", "real cases that do"]
    cells, below = [], []
    for g in summary["generators"]:
        c = g["copies"]
        rates = [f"{c[key]:.1%}" if c.get(key) is not None else "-" for key in _COPIES]
        cells.append([str(g["size"]), str(g["train"]), str(g["train_labelled"]), str(g["samples"]), *rates])
        if g["codec_below"]:
            below.append(f"At size {g['size']} the codec is below its thresholds: {'; '.join(g['codec_below'])}.")
    quantile = summary["generators"][0]["copies"].get("quantile")
    told = (
        "A copy is nearer to a training case than all but "
        f"{quantile:.0%} of the training cases are to each other. `synthetic_only` counts where the samples' rate is "
        "at most that of held-out real cases. Soft images are nearer to all cases, copied or not; a copy is much "
        "nearer to one than to the next, and so singles it out."
    )
    return ["", "## Generators", "", *_table(head, cells), "", told, *(x for line in below for x in ("", line))]
