"""Progress: bars on a terminal, plain lines in a log."""

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

_LINE_SECONDS = 15.0


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
