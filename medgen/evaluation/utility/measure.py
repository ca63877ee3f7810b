"""How well held-out real cases are segmented: overlap, distance of the surfaces, volumes."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from monai.metrics import compute_hausdorff_distance

from medgen.measure.overlap import dice
from medgen.prepare.grid import GeometryRecord
from medgen.segment.segmenter import Segmenter
from medgen.store.prepared import Prepared

VERSION = 2
"""Of these figures: raise it when the same segmenter and cases give others."""


def measure_cases(
    store: Prepared, cases: Sequence[int], segmenter: Segmenter, tell: Callable[[int], None] = lambda done: None
) -> list[dict[str, Any]]:
    """Figures of each case, JSON-able; null where undefined.

    Args:
        store: the prepared cohort.
        cases: positions of labelled cases in it.
        segmenter: for the cohort's labels.
        tell: called with the number of cases done.

    Returns:
        For each case its ``case`` (the key, no id of the cohort) and by label name ``dice``, ``hd95_mm``, ``true_ml``
        and ``found_ml`` (volumes in the subject's own space). Overlap and distance are undefined where the case does
        not have the label, whatever was found: so every segmenter is averaged over the same cases, and what is found
        all the same counts in the volumes.
    """
    rows = []
    for done, i in enumerate(cases, start=1):
        label = np.asarray(store.label(i))
        found = segmenter.predict(store.image(i))
        voxel_ml = GeometryRecord.from_json(store.cases[i].geometry).voxel_ml
        row: dict[str, dict[str, float | None]] = {"dice": {}, "hd95_mm": {}, "true_ml": {}, "found_ml": {}}
        ids = range(1, len(store.label_names))
        overlap = dice(found, label, ids)
        for k, name in zip(ids, store.label_names[1:], strict=True):
            a, b = found == k, label == k
            row["dice"][name] = _known(overlap[k - 1]) if b.any() else None
            row["hd95_mm"][name] = _known(hd95_mm(a, b, store.spacing_mm)) if b.any() else None
            row["true_ml"][name] = round(float(b.sum()) * voxel_ml, 6)
            row["found_ml"][name] = round(float(a.sum()) * voxel_ml, 6)
        rows.append({"case": store.cases[i].key, **row})
        tell(done)
    return rows


def hd95_mm(a: np.ndarray, b: np.ndarray, spacing_mm: Sequence[float]) -> float:
    """The larger of the two directed 95th percentiles of distances between surfaces, in mm.

    NaN where both masks (X, Y, Z) are empty. Where one is, the diagonal of the grid: a structure that was missed must
    not count less than one that was found badly.
    """
    if not a.any() and not b.any():
        return float("nan")
    if not a.any() or not b.any():
        return float(np.linalg.norm(np.array(a.shape) * np.array(spacing_mm)))
    ours, theirs = (torch.from_numpy(np.ascontiguousarray(m))[None, None] for m in (a, b))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # MONAI's, about what it calls itself
        distance = compute_hausdorff_distance(
            ours, theirs, include_background=True, percentile=95, spacing=[float(s) for s in spacing_mm]
        )
    return float(distance)


def _known(value: float) -> float | None:
    return round(value, 6) if np.isfinite(value) else None
