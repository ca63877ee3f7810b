"""Real cases as gates see them: what they learn from, and whether they would accept them."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from medgen.cohort.schema import Value
from medgen.generation.gates.panel import Gates
from medgen.generation.gates.seam import Seen
from medgen.store.prepared import Prepared


def seen_cases(
    store: Prepared, cases: Sequence[int], covariates: Sequence[Mapping[str, Value]], measured: Iterable[str]
) -> Iterator[Seen]:
    """Prepared cases, one at a time.

    Args:
        store: the prepared cohort.
        cases: positions in it.
        covariates: of every case of the store, with what is derived from them.
        measured: columns that the label tells: volumes, and what is derived from them.
    """
    columns = list(measured)
    for i in cases:
        case = store.cases[i]
        row = {n: covariates[i].get(n) for n in columns} if case.has_label else {}
        yield Seen(
            image=np.asarray(store.image(i), dtype=np.float32),
            label=np.asarray(store.label(i)) if case.has_label else None,
            channels=tuple(n if p else None for n, p in zip(store.channels, case.channels_present, strict=True)),
            names=store.label_names,
            spacing_mm=store.spacing_mm,
            measured={n: float(v) for n, v in row.items() if isinstance(v, (int, float)) and not isinstance(v, bool)},
        )


def acceptance(gates: Gates, cases: Iterable[Seen]) -> dict[str, Any]:
    """How many real cases pass each gate, and all of them: gates that reject real cases reject too much.

    Args:
        gates: of a model; those that look at a latent are not asked.
        cases: real cases, best held-out ones.
    """
    asked = Gates(gates.setting, {k: j for k, j in gates.judges.items() if k not in LATENT}, {})
    passed = dict.fromkeys(asked.judges, 0)
    total = every = 0
    for case in cases:
        faults = asked.judge(case).faults
        total, every = total + 1, every + (not faults)
        for kind in passed:
            passed[kind] += kind not in faults
    return {"cases": total, "accepted": every, "by_gate": passed}


LATENT = frozenset({"neighbour"})
