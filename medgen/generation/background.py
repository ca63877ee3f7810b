"""Writing in the background: while samples are compressed and written, the device draws the next ones.

Compression and disk release Python's lock, so threads suffice. The queue is bounded: where drawing outruns writing it
waits, and the time it waits is measured, instead of samples piling up in memory.
"""

import os
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from types import TracebackType

from medgen.cohort.sample import Sample
from medgen.formats.writer import Writer

_MOST = 4


def default_writers() -> int:
    """Threads that write: half of the cores, up to four, because drawing needs some too."""
    return max(1, min(_MOST, (os.cpu_count() or 1) // 2))


class BackgroundWriter:
    """Hands samples to threads that write them; a context manager that leaves a readable dataset however it ends.

    Samples are started in the order they come. Each is committed by its own sidecar, written last, so that at any
    moment what is committed is whole. On the way out everything under way is finished, what failed is removed, and
    the manifests are rebuilt: also after an error, so that a full disk leaves a dataset that can be read.

    Args:
        writer: of the dataset; its ``write`` is called from several threads, for different samples.
        threads: that write at the same time.
        before_closing: called once before the manifests are rebuilt, and before what failed is removed.

    Attributes:
        waited_seconds: how long :meth:`write` and the end waited for the threads.
    """

    def __init__(
        self, writer: Writer, threads: int | None = None, before_closing: Callable[[], None] = lambda: None
    ) -> None:
        self.writer = writer
        self.before_closing = before_closing
        self.waited_seconds = 0.0
        self._threads = threads or default_writers()
        self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="medgen-write")
        self._running: list[tuple[str, Future[None]]] = []

    def write(self, sample: Sample) -> None:
        """Hand over a sample; waits while as many are under way as there are threads.

        Raises:
            Exception: what an earlier sample ran into; nothing more is taken then.
        """
        start = time.monotonic()
        if len(self._running) >= self._threads:
            wait([f for _, f in self._running], return_when=FIRST_COMPLETED)
        self.waited_seconds += time.monotonic() - start
        for _, future in self._running:
            if future.done():
                future.result()
        self._running = [(i, f) for i, f in self._running if not f.done() or f.exception()]
        self._running.append((sample.sample_id, self._pool.submit(self.writer.write, sample)))

    def __enter__(self) -> "BackgroundWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        start = time.monotonic()
        self._pool.shutdown(wait=True)
        self.waited_seconds += time.monotonic() - start
        self.before_closing()
        failed = [(sample_id, reason) for sample_id, f in self._running if (reason := f.exception()) is not None]
        for sample_id, _ in failed:
            with suppress(OSError):
                self.writer.discard(sample_id)  # makes the room that the manifests need
        if error is None and not failed:
            self.writer.close()
            return
        with suppress(OSError):  # the first error is the one to tell
            self.writer.close()
        if error is None:
            raise failed[0][1]
