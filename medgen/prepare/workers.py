"""Run a function over jobs, here, in processes or ahead in threads; the first error ends all."""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from multiprocessing import get_context
from typing import TypeVar

import SimpleITK as sitk  # noqa: N813

from medgen.errors import InputError
from medgen.prepare.register import one_thread

Job = TypeVar("Job")
Result = TypeVar("Result")


def each(
    function: Callable[[Job], Result], jobs: Sequence[Job], workers: int, on_done: Callable[[int], None]
) -> list[Result]:
    """Results in the order of the jobs.

    Processes are spawned, not forked: SimpleITK and torch hold threads that a fork would copy half of.

    Args:
        function: defined at the top of a module.
        jobs: picklable.
        workers: at most 1 runs here, one after the other.
        on_done: called with the number of jobs done.

    Raises:
        InputError: what a job raised, or a worker was killed from outside.
    """
    if workers <= 1 or len(jobs) <= 1:
        results = []
        with one_thread():
            for job in jobs:
                results.append(function(job))
                on_done(len(results))
        return results
    count = min(workers, len(jobs))
    with ProcessPoolExecutor(count, mp_context=get_context("spawn"), initializer=_one_thread_for_good) as pool:
        futures = [pool.submit(function, job) for job in jobs]
        try:
            for done, future in enumerate(as_completed(futures), start=1):
                future.result()
                on_done(done)
        except BrokenProcessPool:
            raise InputError(
                "a worker process was killed, most likely for want of memory; use fewer workers and run again"
            ) from None
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
        return [future.result() for future in futures]


def in_order(function: Callable[[Job], Result], jobs: Iterable[Job], workers: int) -> Generator[Result]:
    """Results in the order of the jobs, of which threads make the next while the caller uses one.

    For functions whose time goes into SimpleITK, SciPy and NumPy, which let other threads run.

    Args:
        function: of one job.
        jobs: taken when a thread is free for them.
        workers: threads; as many results wait at most.

    Yields:
        The results. Close the generator where it is left early: until then SimpleITK has one thread.
    """
    left, waiting = iter(jobs), deque[Future[Result]]()
    with one_thread(), ThreadPoolExecutor(max(1, workers), thread_name_prefix="medgen-ahead") as pool:
        try:
            waiting.extend(pool.submit(function, job) for job in islice(left, max(1, workers)))
            while waiting:
                result = waiting.popleft().result()
                waiting.extend(pool.submit(function, job) for job in islice(left, 1))
                yield result
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _one_thread_for_good() -> None:
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
