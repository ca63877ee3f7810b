import threading
import time
from contextlib import closing

import pytest
import SimpleITK as sitk  # noqa: N813

from medgen.errors import InputError
from medgen.prepare.workers import in_order


def test_results_come_in_order_and_are_made_ahead():
    begun, used = [], []

    def work(job):
        begun.append((job, threading.current_thread().name))
        time.sleep(0.02 if job == 0 else 0.0)
        return job * job

    for result in in_order(work, iter(range(9)), 3):
        used.append(result)
        time.sleep(0.01)
        assert len(begun) <= len(used) + 3, "no more wait than there are threads"
    assert used == [n * n for n in range(9)] and len(begun) == 9
    assert all(name.startswith("medgen-ahead") for _, name in begun)


def test_who_leaves_early_leaves_nothing_behind():
    before = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    with pytest.raises(KeyError), closing(in_order(lambda job: job, range(100), 2)) as made:
        for result in made:
            assert sitk.ProcessObject.GetGlobalDefaultNumberOfThreads() == 1
            raise KeyError(result)
    assert sitk.ProcessObject.GetGlobalDefaultNumberOfThreads() == before
    assert not [t for t in threading.enumerate() if t.name.startswith("medgen-ahead")]


def test_an_error_ends_it_and_nothing_is_left_running():
    done = []

    def work(job):
        if job == 2:
            raise InputError("case 2 is broken")
        done.append(job)
        return job

    with pytest.raises(InputError, match="case 2"):
        list(in_order(work, range(100), 2))
    assert max(done) < 6
    assert not [t for t in threading.enumerate() if t.name.startswith("medgen-ahead")]
