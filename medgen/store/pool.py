"""Which volumes a sampler can crop from: all of them on the device, or a pool that rotates through the cohort.

A pool shows, at any step, a window onto an endless list of loads (fresh permutations of the cases, one after
another). The window is a function of the step, so what is shown never depends on how fast the disk is: a step waits
for a load that is late. Spare slots take the next loads while the window is in use.
"""

import math
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from typing import Protocol

import numpy as np
import torch

from medgen.store import machine

Load = Callable[[int], Sequence[torch.Tensor]]
Mix = tuple[int, float]
"""(E, share): the last E cases are extra ones that make up this share of what is shown, however many they are."""

# Of a device's memory, for volumes; the rest is the training's.
SHARE = 0.4


class Volumes(Protocol):
    """What :class:`medgen.store.patches.PatchSampler` crops from.

    Attributes:
        arrays: tensors (M, C, X, Y, Z) on one device.
        cases: how many cases there are.
    """

    arrays: tuple[torch.Tensor, ...]
    cases: int

    def at(self, step: int, batch: int) -> tuple[np.ndarray, np.ndarray]:
        """Cases (B,) of a step and the rows (B,) of the arrays that hold them, ready to be read."""
        ...


class Resident:
    """Every volume on the device. Each pass over the cases is a fresh permutation, so that none waits long.

    Args:
        arrays: tensors (N, C, X, Y, Z) on one device.
        seed: of the experiment.
        rank: of this process.
        mix: of extra cases with others; None shows every case as often.
    """

    def __init__(self, arrays: Sequence[torch.Tensor], *, seed: int, rank: int = 0, mix: Mix | None = None) -> None:
        assert len({a.shape[0] for a in arrays}) == 1 and len({a.shape[2:] for a in arrays}) == 1, (
            "arrays must share N and the grid"
        )
        self.arrays, self.cases = tuple(arrays), int(arrays[0].shape[0])
        self._order = _order(self.cases, seed, rank, mix)

    def at(self, step: int, batch: int) -> tuple[np.ndarray, np.ndarray]:
        """Cases and rows are the same."""
        cases = self._order(step * batch, batch)
        return cases, cases


class Order:
    """An endless list of fresh permutations of ``range(n)``, keyed by what stands before and after the epoch."""

    def __init__(self, n: int, before: Sequence[int], after: Sequence[int]) -> None:
        self.n, self._key = n, (list(before), list(after))
        self._permutation = lru_cache(maxsize=4)(self._permute)

    def __call__(self, first: int, count: int) -> np.ndarray:
        """Entries ``first`` to ``first + count - 1``."""
        entries = range(first, first + count)
        return np.array([self._permutation(e // self.n)[e % self.n] for e in entries])

    def _permute(self, epoch: int) -> np.ndarray:
        before, after = self._key
        return np.random.default_rng([*before, epoch, *after]).permutation(self.n)


class Mixed:
    """Two endless lists in one, of which the second makes up a share: exactly, to within one entry at any point.

    Args:
        first: of cases from 0.
        second: of the cases after them.
        share: of the entries that are the second's, in [0, 1].
    """

    def __init__(self, first: Order, second: Order, share: float) -> None:
        assert 0 <= share <= 1 and (share == 1 or first.n > 0) and (share == 0 or second.n > 0), "nothing to mix"
        self.first, self.second, self.share = first, second, share

    def __call__(self, first: int, count: int) -> np.ndarray:
        """Entries ``first`` to ``first + count - 1``."""
        found = []
        for entry in range(first, first + count):
            before, after = (math.floor(e * self.share + 1e-9) for e in (entry, entry + 1))
            if after > before:
                found.append(self.first.n + int(self.second(before, 1)[0]))
            else:
                found.append(int(self.first(entry - before, 1)[0]))
        return np.array(found)


def _order(cases: int, seed: int, rank: int, mix: Mix | None) -> Order | Mixed:
    """The cases in the order in which they are shown or loaded."""
    if mix is None:
        return Order(cases, [seed], [rank, 1])
    extra, share = mix
    return Mixed(Order(cases - extra, [seed], [rank, 1]), Order(extra, [seed], [rank, 6]), share)


class Pool:
    """A part of the cohort on the device, replaced case by case from a background thread.

    Args:
        load: the arrays (C, X, Y, Z) of a case, on the CPU; called from the background thread. All cases share shapes
            and dtypes.
        cases: how many there are.
        resident: how many the window shows at a time.
        device: where the slots are.
        seed: of the experiment.
        rank: of this process.
        shows: patches taken from a volume before the next takes its place; the smaller, the more the disk reads. With
            1 every load is shown once, in the order in which :class:`Resident` shows cases.
        ahead: spare slots.
        mix: of extra cases with others; None loads every case as often.
    """

    def __init__(
        self,
        load: Load,
        cases: int,
        *,
        resident: int,
        device: torch.device,
        seed: int,
        rank: int = 0,
        shows: int = 16,
        ahead: int = 2,
        mix: Mix | None = None,
    ) -> None:
        assert min(cases, resident, shows, ahead) > 0, "a pool needs cases, slots and patches"
        self.cases, self.resident, self.shows, self.ahead = cases, resident, shows, ahead
        self._load, self._cuda = load, device.type == "cuda"
        like = load(0)
        slots = resident + ahead
        self.arrays = tuple(torch.empty(slots, *a.shape, dtype=a.dtype, device=device) for a in like)
        # Copies are asynchronous only from pinned memory; one staging place is enough for one thread.
        self._staging = tuple(torch.empty_like(a).pin_memory() for a in like) if self._cuda else ()
        self._stream = torch.cuda.Stream(device) if self._cuda else None
        self._loads = _order(cases, seed, rank, mix)
        self._turns = Order(resident, [seed], [rank, 3]) if shows > 1 else None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="medgen-pool")
        self._held: dict[int, tuple[int, Future[torch.cuda.Event | None]]] = {}

    def at(self, step: int, batch: int) -> tuple[np.ndarray, np.ndarray]:
        """The cases a step shows; waits until their volumes have arrived.

        Raises:
            InputError: what ``load`` raised.
        """
        first = step * batch // self.shows
        self._request(first)
        loads = first + (np.arange(batch) if self._turns is None else self._turns(step * batch, batch))
        slots = loads % len(self.arrays[0])
        for slot in sorted(set(slots.tolist())):
            event = self._held[slot][1].result()
            if event is not None:
                torch.cuda.current_stream(self.arrays[0].device).wait_event(event)
        return np.array([int(self._loads(load, 1)[0]) for load in loads.tolist()]), slots

    def close(self) -> None:
        """Stop loading."""
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _request(self, first: int) -> None:
        """Ask for the window's loads and the ones that follow. What a slot held before is in no window from now on."""
        slots = len(self.arrays[0])
        wanted = [load for load in range(first, first + slots) if self._held.get(load % slots, (-1,))[0] != load]
        if not wanted:
            return
        free = None
        if self._cuda:  # kernels of earlier steps may still read what is to be overwritten
            free = torch.cuda.Event()
            free.record(torch.cuda.current_stream(self.arrays[0].device))
        for load in wanted:
            case = int(self._loads(load, 1)[0])
            self._held[load % slots] = (load, self._thread.submit(self._fill, load % slots, case, free))

    def _fill(self, slot: int, case: int, free: "torch.cuda.Event | None") -> "torch.cuda.Event | None":
        """Copy a case into a slot, in the background."""
        loaded = self._load(case)
        if self._stream is None:
            for array, new in zip(self.arrays, loaded, strict=True):
                array[slot].copy_(new)
            return None
        for staged, new in zip(self._staging, loaded, strict=True):
            staged.copy_(new)
        with torch.cuda.stream(self._stream):
            if free is not None:
                self._stream.wait_event(free)
            for array, staged in zip(self.arrays, self._staging, strict=True):
                array[slot].copy_(staged, non_blocking=True)
            arrived = torch.cuda.Event()
            arrived.record(self._stream)
        arrived.synchronize()  # waits in this thread alone: the staging place is free again
        return arrived


def held(
    load: Load,
    cases: int,
    *,
    device: torch.device,
    seed: int,
    rank: int = 0,
    resident: int | None = None,
    mix: Mix | None = None,
) -> Resident | Pool:
    """The volumes of a cohort: all of them on the device where they fit, else a pool.

    Args:
        load: the arrays (C, X, Y, Z) of a case, see :class:`Pool`.
        cases: how many there are.
        device: where volumes are kept.
        seed: of the experiment.
        rank: of this process.
        resident: how many are on the device at a time; by default all, or what fits into 0.4 of its memory.
        mix: of extra cases with others; None shows every case as often.
    """
    like = load(0)
    fitting = resident or max(
        1, int(SHARE * machine.device_bytes(device)) // sum(a.numel() * a.element_size() for a in like)
    )
    if fitting < cases:
        return Pool(load, cases, resident=fitting, device=device, seed=seed, rank=rank, mix=mix)
    return Resident(gathered(load, cases, device), seed=seed, rank=rank, mix=mix)


def gathered(load: Load, cases: int, device: torch.device) -> tuple[torch.Tensor, ...]:
    """The arrays (N, C, X, Y, Z) of all cases on a device; case by case into its place, so that none is held twice."""
    arrays = tuple(torch.empty(cases, *a.shape, dtype=a.dtype, device=device) for a in load(0))
    for number in range(cases):
        for whole, own in zip(arrays, load(number), strict=True):
            whole[number].copy_(own)
    return arrays
