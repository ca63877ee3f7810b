import threading
import time

import numpy as np
import pytest
import torch

from medgen.errors import InputError
from medgen.store.patches import PatchSampler
from medgen.store.pool import Pool

CASES = 11
VOLUMES = torch.arange(CASES, dtype=torch.float32)[:, None, None, None, None].expand(CASES, 1, 8, 8, 8).clone()
VOLUMES += torch.linspace(0, 0.5, 8)
LABELS = torch.randint(-1, 3, (CASES, 1, 8, 8, 8), dtype=torch.int8)


def pool(load=None, **options):
    fetch = load or (lambda case: (VOLUMES[case], LABELS[case]))
    settings = {"resident": 4, "device": torch.device("cpu"), "seed": 5, "shows": 6, **options}
    return Pool(fetch, CASES, **settings)


def sampler(volumes, **options):
    return PatchSampler(volumes, (4, 4, 4), 4, seed=5, **options)


def test_patches_are_those_of_the_cases_they_say():
    rotating = pool()
    s = sampler(rotating)
    for step in range(60):
        batch = s(step)
        for case, (x, y, z), image, ids in zip(batch.cases, batch.starts, *batch.arrays, strict=True):
            where = (case, slice(None), slice(x, x + 4), slice(y, y + 4), slice(z, z + 4))
            assert torch.equal(image, VOLUMES[where]) and torch.equal(ids, LABELS[where].long())
    rotating.close()


def test_what_is_shown_does_not_depend_on_the_disk_nor_on_where_one_starts():
    def slow(case):
        time.sleep(0.002 * (case % 3))
        return VOLUMES[case], LABELS[case]

    fast, late = pool(), pool(slow)
    first = [sampler(fast)(step) for step in range(30)]
    resumed = {step: sampler(late)(step) for step in (20, 21, 29, 3, 22)}  # forwards, and back
    for step, batch in resumed.items():
        assert batch.cases.tolist() == first[step].cases.tolist()
        assert torch.equal(batch.arrays[0], first[step].arrays[0])
    assert not np.array_equal(pool(rank=1).at(20, 4)[0], first[20].cases)
    fast.close()
    late.close()


def test_every_case_is_shown_as_often_as_from_memory():
    rotating, steps = pool(), 1650  # 100 passes over the loads: 1650 * 4 / 6 / 11
    shown = np.concatenate([rotating.at(step, 4)[0] for step in range(steps)])
    memory = np.concatenate([sampler([VOLUMES, LABELS]).volumes.at(step, 4)[0] for step in range(steps)])
    counts, even = np.bincount(shown, minlength=CASES), np.bincount(memory, minlength=CASES)
    assert even.max() - even.min() <= 1
    assert (np.abs(counts / even - 1) < 0.05).all()
    distinct = [len(set(rotating.at(step, 4)[1].tolist())) for step in range(0, 40, 3)]
    assert min(distinct) >= 3 and max(distinct) == 4, "a batch takes different volumes of the window"
    rotating.close()


def test_loading_happens_in_the_background_and_ahead():
    threads, loaded = set(), []

    def load(case):
        threads.add(threading.current_thread().name)
        loaded.append(case)
        return VOLUMES[case], LABELS[case]

    rotating = pool(load)
    rotating.at(0, 4)
    wait = lambda: [future.result() for _, future in rotating._held.values()]  # noqa: E731
    wait()
    assert len(loaded) == 1 + 6, "one to learn the shapes, four for the window and two ahead"
    rotating.at(2, 4)  # 8 patches were shown: the window moved by one
    wait()
    rotating.close()
    assert len(loaded) == 8 and len(threads) == 2


def test_what_goes_wrong_in_the_background_is_raised():
    def load(case):
        if threading.current_thread().name != "MainThread":
            raise InputError("case cannot be read")
        return VOLUMES[case], LABELS[case]

    rotating = pool(load)
    with pytest.raises(InputError, match="cannot be read"):
        rotating.at(0, 4)
    rotating.close()
