"""Online augmentation: real cases, joined in every epoch by other synthetic ones, in a ratio by stratum.

    data = medgen.MixedDataset(medgen.datalist("cohort"), medgen.datalist("synthetic"), transform, by="age:10,sex")
    loader = monai.data.DataLoader(data, batch_size=2, sampler=data.sampler)
    for batch in loader: ...

Real cases come once an epoch each. How many synthetic ones join them is set for each stratum by how many real ones are
there; which ones is drawn anew every epoch, and none comes twice before all others of its stratum have come.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from monai.data import Dataset

from medgen.errors import InputError

Row = Mapping[str, Any]
Ratio = float | Mapping[str, float] | Literal["balance"]

_EVERYTHING = "all"


class MixedDataset:
    """Real and synthetic cases for a MONAI training; iterate it with :attr:`sampler`.

    Args:
        real: rows of :func:`medgen.datalist`.
        synthetic: rows of :func:`medgen.datalist`.
        transform: of MONAI, for one row.
        ratio: synthetic cases for each real one in an epoch; a mapping gives one for each stratum, with 0 for those it
            does not name; ``balance`` brings every stratum to as many cases as the largest has real ones.
        by: the columns whose strata are kept apart, numbers with the width of their bins: ``age:10,sex``.
        dataset: makes the dataset of ``(rows, transform)``: ``monai.data.CacheDataset``, for example.
        seed: of the draws.

    Attributes:
        rows: the real rows, then the synthetic ones; an item is one of these, transformed.
        sampler: for ``DataLoader(..., sampler=...)``: every pass over it is another epoch.

    Raises:
        InputError: a row without one of the columns, a stratum that has no synthetic case but needs some, or a ratio
            that makes no sense.
    """

    def __init__(
        self,
        real: Sequence[Row],
        synthetic: Sequence[Row],
        transform: Callable[..., Any] | None = None,
        *,
        ratio: Ratio = 1.0,
        by: str = "",
        dataset: Callable[..., Any] = Dataset,
        seed: int = 0,
    ) -> None:
        self.rows = [dict(row) for row in (*real, *synthetic)]
        self.data = dataset(self.rows, transform)
        self.sampler = MixedSampler(real, synthetic, ratio=ratio, by=by, seed=seed)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:
        return self.data[index]


class MixedSampler:
    """Positions in a list of real rows followed by synthetic ones, an epoch at a time, in random order.

    Args are those of :class:`MixedDataset`. The epoch is a pure function of (seed, its number).

    Attributes:
        epoch: number of the next pass; set it to resume a training.
        quota: stratum -> synthetic cases an epoch.
    """

    def __init__(
        self, real: Sequence[Row], synthetic: Sequence[Row], *, ratio: Ratio = 1.0, by: str = "", seed: int = 0
    ) -> None:
        if not real:
            raise InputError("there is no real case to mix with; training on synthetic cases alone needs no mixing")
        if seed < 0:
            raise InputError(f"the seed of a mixed dataset is 0 or more, not {seed}")
        self.epoch, self.seed = 0, seed
        self._real = len(real)
        stratum = stratum_of(by)
        self._pools: dict[str, list[int]] = {}
        for i, row in enumerate(synthetic, start=len(real)):
            self._pools.setdefault(stratum(row), []).append(i)
        counts: dict[str, int] = {}
        for row in real:
            counts[stratum(row)] = counts.get(stratum(row), 0) + 1
        self.quota = {name: n for name, n in _quota(counts, self._pools, ratio).items() if n > 0}
        if empty := [name for name in self.quota if not self._pools.get(name)]:
            raise InputError(
                f"no synthetic case lies in the stratum {empty[0]}, which needs {self.quota[empty[0]]}; generate some, "
                "widen the strata, or give that stratum the ratio 0"
            )

    def __len__(self) -> int:
        return self._real + sum(self.quota.values())

    def __iter__(self) -> Iterator[int]:
        chosen = [*range(self._real), *(i for name, n in self.quota.items() for i in self._taken(name, n))]
        order = np.random.default_rng((self.seed, self.epoch, 1)).permutation(len(chosen))
        self.epoch += 1
        return iter([chosen[i] for i in order])

    def _taken(self, name: str, n: int) -> list[int]:
        """The epoch's window on an endless list of permutations of a stratum's synthetic cases."""
        pool = self._pools[name]
        start, end, size = self.epoch * n, (self.epoch + 1) * n, len(pool)
        turns = range(start // size, (end - 1) // size + 1)
        orders = [np.random.default_rng((self.seed, turn, 2, *name.encode())).permutation(size) for turn in turns]
        window = np.concatenate(orders)[start - turns.start * size : end - turns.start * size]
        return [pool[i] for i in window.tolist()]


def mixed_datalist(
    real: Sequence[Row], synthetic: Sequence[Row], *, ratio: Ratio = 1.0, by: str = "", seed: int = 0, epoch: int = 0
) -> list[dict[str, Any]]:
    """One epoch of a :class:`MixedDataset` as a plain list, for trainings that know no samplers.

    Raises:
        InputError: see :class:`MixedDataset`.
    """
    rows, sampler = [*real, *synthetic], MixedSampler(real, synthetic, ratio=ratio, by=by, seed=seed)
    sampler.epoch = epoch
    return [dict(rows[i]) for i in sorted(sampler)]


def stratum_of(by: str) -> Callable[[Row], str]:
    """Row -> name of its stratum, such as ``age 60..70, sex F``, for columns such as ``age:10,sex``.

    Raises:
        InputError: a width that is no number above 0; when called, a row without one of the columns.
    """
    columns: list[tuple[str, float]] = []
    for item in by.split(",") if by.strip() else ():
        name, colon, text = (part.strip() for part in item.partition(":"))
        found = re.fullmatch(r"(\d+\.?\d*|\.\d+)\s*[a-zA-Z]*", text)
        width = float(found[1]) if found else 0.0
        if not name or (colon and width <= 0):
            raise InputError(
                f"strata are columns such as 'age:10,sex', numbers with the width of their bins; not '{by}'"
            )
        columns.append((name, width))

    def stratum(row: Row) -> str:
        return ", ".join(_cell(row, name, width) for name, width in columns) or _EVERYTHING

    return stratum


def _cell(row: Row, name: str, width: float) -> str:
    value = row.get(name)
    if value is None or value != value:  # not a number
        raise InputError(f"case {row.get('case_id', '?')} has no value of '{name}'; take other columns for the strata")
    if width > 0:
        if isinstance(value, str):
            raise InputError(f"'{name}' holds words such as '{value}' and takes no width; write '{name}' alone")
        low = math.floor(float(value) / width) * width
        return f"{name} {low:g}..{low + width:g}"
    if isinstance(value, float):
        raise InputError(f"'{name}' is a number and needs the width of its bins, for example {name}:10")
    return f"{name} {value}"


def _quota(counts: Mapping[str, int], pools: Mapping[str, Sequence[int]], ratio: Ratio) -> dict[str, int]:
    """Synthetic cases an epoch for each stratum of real cases, and for those that a mapping names.

    Shares of a case are kept: what one stratum rounds off, the next one gets.
    """
    if ratio == "balance":
        if list(counts) == [_EVERYTHING]:
            raise InputError("'balance' needs the strata to balance; name their columns with by, such as 'age:10,sex'")
        most = max(counts.values())
        # A stratum without a real case can only be filled where there is something to fill it with.
        return {name: most - counts.get(name, 0) for name in sorted({*counts, *pools})}
    if isinstance(ratio, str):
        raise InputError(f"the ratio is a number, one for each stratum, or 'balance'; not '{ratio}'")
    if isinstance(ratio, Mapping):
        if unknown := sorted(set(ratio) - set(counts)):
            raise InputError(f"no real case is in the stratum '{unknown[0]}' (they are: {'; '.join(sorted(counts))})")
        by_name = {name: float(ratio.get(name, 0.0)) for name in counts}
    else:
        by_name = dict.fromkeys(counts, float(ratio))
    if wrong := [r for r in by_name.values() if not (math.isfinite(r) and r >= 0)]:
        raise InputError(f"the ratio of synthetic to real cases is 0 or more, not {wrong[0]:g}")
    quota, owed, given = {}, 0.0, 0
    for name in sorted(counts):
        owed += by_name[name] * counts[name]
        quota[name] = max(0, round(owed) - given) if by_name[name] else 0
        given += quota[name]
    return quota
