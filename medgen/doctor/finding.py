"""What the doctor found, and how it is printed."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

Level = Literal["wrong", "odd", "cost", "ok"]
LEVELS: tuple[Level, ...] = ("wrong", "odd", "cost", "ok")
_STYLES = {"wrong": "bold red", "odd": "yellow", "cost": "cyan", "ok": "green"}
_WIDTH_IN_A_PIPE = 150
_SHOWN_NAMES = 4


@dataclass(frozen=True)
class Finding:
    """One line of the diagnosis.

    Attributes:
        level: "wrong": a run would fail or mislead; "odd": a run may start, but look at it; "cost"; or "ok".
        where: what was looked at, for example "geometry" or a case.
        what: the finding, with its numbers.
        fix: what to do; empty where nothing needs doing.
    """

    level: Level
    where: str
    what: str
    fix: str = ""


@dataclass(frozen=True)
class Diagnosis:
    """All findings about one path.

    Attributes:
        path: as given.
        kind: "cohort", "experiment" or "model".
        findings: in the order they were made.
        figures: numbers behind them, for machines (shape, seconds and bytes of each stage, ...).
    """

    path: str
    kind: str
    findings: tuple[Finding, ...]
    figures: Mapping[str, Any] = field(default_factory=dict)

    def of(self, level: Level) -> tuple[Finding, ...]:
        """Findings of one level."""
        return tuple(f for f in self.findings if f.level == level)

    @property
    def exit_code(self) -> int:
        """2 where something is wrong, else 0."""
        return 2 if self.of("wrong") else 0

    def to_json(self) -> dict[str, Any]:
        """As plain JSON."""
        return {
            "path": self.path,
            "kind": self.kind,
            "exit_code": self.exit_code,
            "findings": [asdict(f) for f in self.findings],
            "figures": dict(self.figures),
        }

    def summary(self) -> str:
        """Counts in a few words."""
        wrong, odd = len(self.of("wrong")), len(self.of("odd"))
        verdict = "mend what is wrong before a run" if wrong else "a run may start"
        return f"{wrong} wrong, {odd} odd: {verdict}"


def print_table(diagnosis: Diagnosis, console: Console | None = None) -> None:
    """Print a diagnosis as one table, worst first; in a pipe without colours and with lines of a fixed width."""
    console = console or Console()
    table = Table(
        title=Text(f"{diagnosis.kind} {diagnosis.path}"), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False
    )
    table.add_column("level", no_wrap=True)
    table.add_column("where", max_width=22, overflow="fold")
    table.add_column("what", ratio=3, overflow="fold")
    table.add_column("fix", ratio=2, overflow="fold")
    for level in LEVELS:
        for f in diagnosis.of(level):
            # Text, not markup: paths and level names may hold square brackets.
            table.add_row(Text(f.level, style=_STYLES[f.level]), Text(f.where), Text(f.what), Text(f.fix))
    if console.is_terminal:
        console.print(table)
    else:
        plain = Console(file=io.StringIO(), width=_WIDTH_IN_A_PIPE, no_color=True)
        plain.print(table)
        lines = plain.file.getvalue().splitlines()  # type: ignore[attr-defined]
        console.file.write("\n".join(line.rstrip() for line in lines) + "\n")
    console.print(Text(diagnosis.summary()))


def some(names: Sequence[str]) -> str:
    """A few names and how many more there are."""
    more = len(names) - _SHOWN_NAMES
    return ", ".join(names[:_SHOWN_NAMES]) + (f" and {more} more" if more > 0 else "")


def number(count: int, noun: str) -> str:
    """A count with its noun: 1 case, 2 cases."""
    return f"{count} {noun}" + ("" if count == 1 else "s")


def gib(size: float) -> str:
    """Bytes as people say them."""
    for unit, factor in (("GiB", 2**30), ("MiB", 2**20)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size / 1024:.0f} KiB"


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    if seconds < 1:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 120:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
