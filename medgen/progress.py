"""Progress: bars on a terminal, plain lines in a log."""

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

_LINE_SECONDS = 15.0


class Rate:
    """How fast work goes and how long it will take, in words; the first call is the start."""

    def __init__(self, what: str) -> None:
        self.what = what
        self._first: tuple[float, int] | None = None

    def __call__(self, done: int, total: int) -> str:
        """The remark for ``done`` of ``total``, such as ``samples, 0.52/s, 3 min left``."""
        now = time.monotonic()
        start, before = self._first = self._first or (now, done)
        if done <= before or now <= start:
            return self.what
        speed = (done - before) / (now - start)
        often = f"{speed:.2f}/s" if speed >= 1 else f"{60 * speed:.1f}/min"
        left = f", {duration((total - done) / speed)} left" if done < total else ""
        return f"{self.what}, {often}{left}"


def duration(seconds: float) -> str:
    """A time in its largest fitting unit: ``40 s``, ``12 min``, ``3.5 h``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


class Display:
    """Callable as (stage, done, total, remark); a context manager."""

    def __init__(self) -> None:
        self.console = Console(stderr=True)
        self.bars: Progress | None = None
        self.tasks: dict[str, TaskID] = {}
        self.said: dict[str, float] = {}

    def __enter__(self) -> "Display":
        if self.console.is_terminal:
            self.bars = Progress(
                TextColumn("{task.description:<12}"),
                BarColumn(),
                TextColumn("{task.percentage:>4.0f}%"),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[remark]}"),
                console=self.console,
            )
            self.bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bars:
            self.bars.stop()

    def __call__(self, stage: str, done: int, total: int, remark: str = "") -> None:
        """Show that ``done`` of ``total`` of a stage is behind."""
        if self.bars:
            if stage not in self.tasks:
                self.tasks[stage] = self.bars.add_task(stage, total=total, remark=remark)
            self.bars.update(self.tasks[stage], completed=done, total=total, remark=remark)
            return
        now = time.monotonic()
        if done >= total or now - self.said.get(stage, -_LINE_SECONDS) >= _LINE_SECONDS:
            self.said[stage] = now
            print(f"{stage}: {100 * done / max(total, 1):.0f}% {remark}".rstrip(), file=sys.stderr, flush=True)
