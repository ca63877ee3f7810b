"""Whether pairs are sound, and whether image and label fit each other: synthetic pairs held against real ones.

Four questions, each with what counts as an answer:

- **pieces**: is each label as often in one piece (26 neighbours) as in real cases? At most 0.05 less often, and a
  label that real cases have is missing at most 0.05 more often.
- **shell**: is the label's outline imprinted in the image? The shell just inside a boundary, one voxel thick, differs
  from the interior by as much as in real cases: the mean over samples lies within one standard deviation of theirs.
- **side**: do samples show the side of the body that the cohort shows? A label map is on the cohort's side where it is
  nearer to the mean shape of the training cases than its mirror image is. A cohort is one-sided where that holds for
  at least 0.9 of the held-out cases; then it holds for samples at most 0.05 less often. Others are not judged.
- **agreement**: does a segmenter that was trained on real cases find the label in the image? Its mean Dice on samples
  lies within 0.03 of its mean Dice on held-out real cases, above or below.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from medgen.errors import InputError
from medgen.evaluation.codec_quality import rounded
from medgen.measure.bootstrap import nanmean, percentile_interval
from medgen.measure.boundary import shell_contrast
from medgen.measure.sides import mean_shape, sidedness
from medgen.measure.topology import topology
from medgen.segment.pairs import Pair
from medgen.segment.segmenter import Segmenter

LESS_OFTEN = 0.05
SPREADS = 1.0
ONE_SIDED = 0.9
DICE_WITHIN = 0.03


def soundness(
    train: Sequence[Pair],
    held_out: Sequence[Pair],
    samples: Sequence[Pair],
    *,
    names: Sequence[str],
    channels: Sequence[str],
    segmenter: Segmenter | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Answer the four questions for samples on the cohort's grid.

    Args:
        train: real cases (image (C, X, Y, Z) in [-1, 1], label ids (X, Y, Z)) that the segmenter was trained on.
        held_out: real cases that neither the segmenter nor the generator has seen.
        samples: synthetic pairs, see :func:`medgen.evaluation.alike.pairs_alike`.
        names: of the label ids, the background first.
        channels: of the images.
        segmenter: trained on real cases; without one the agreement is left out.
        resamples: bootstrap draws of the intervals.
        seed: of the draws.

    Returns:
        JSON-able: ``cases``, a mapping for each question, and ``met``: question -> whether it is answered well, None
        where it is not judged.

    Raises:
        InputError: no label, or too few cases.
    """
    if len(names) < 2:
        raise InputError("the cohort has no label, so there are no pairs to look at")
    if min(len(train), len(held_out), len(samples)) < 2:
        there = f"{len(train)} training, {len(held_out)} held-out and {len(samples)} synthetic"
        raise InputError(f"{there} pairs are too few; at least 2 of each are needed")
    real, draws = [*train, *held_out], _Draws(resamples, seed)
    found: dict[str, Any] = {
        "cases": {"train": len(train), "held_out": len(held_out), "samples": len(samples)},
        "pieces": _pieces(real, samples, names, draws),
        "shell": _shells(real, samples, names, channels),
        "side": _side(train, held_out, samples, range(1, len(names)), draws),
    }
    if segmenter is not None:
        found["agreement"] = _agreement(held_out, samples, names, segmenter, draws)
    shells = found["shell"].values()
    found["met"] = {
        "pieces": all(p["met"] for p in found["pieces"].values()),
        "shell": all(s["met"] for s in shells if s["met"] is not None) if shells else None,
        "side": found["side"]["met"],
        "agreement": found["agreement"]["met"] if segmenter is not None else None,
    }
    return found


class _Draws:
    """Differences of means between two sets of cases, with intervals."""

    def __init__(self, resamples: int, seed: int) -> None:
        self.resamples, self.seed = resamples, seed

    def difference(self, samples: np.ndarray, real: np.ndarray) -> dict[str, float | None]:
        """Mean of the samples less mean of the real cases; NaN entries are left out of both."""
        a, b = samples[np.isfinite(samples)], real[np.isfinite(real)]
        if len(a) == 0 or len(b) == 0:
            return {"value": None, "low": None, "high": None}
        rng = np.random.default_rng(self.seed)
        replicates = [
            a[rng.integers(0, len(a), len(a))].mean() - b[rng.integers(0, len(b), len(b))].mean()
            for _ in range(self.resamples)
        ]
        return percentile_interval(float(a.mean() - b.mean()), np.array(replicates)).to_json()


def _pieces(
    real: Sequence[Pair], samples: Sequence[Pair], names: Sequence[str], draws: _Draws
) -> dict[str, dict[str, Any]]:
    """Of each label and of all together: how often it is there, and in one piece where it is."""
    sets = [np.array([_components(label, len(names)) for _, label in pairs], dtype=float) for pairs in (real, samples)]
    found = {}
    for i, name in enumerate(names[1:]):
        there: list[np.ndarray] = [some[:, i] > 0 for some in sets]
        whole: list[np.ndarray] = [np.where(some[:, i] > 0, some[:, i] == 1, np.nan) for some in sets]
        found[name] = _piece(there, whole, draws)
    # A case is in one piece where each label that it has is.
    found["every label"] = _piece(
        [np.any(s > 0, axis=1) for s in sets], [np.all(s <= 1, axis=1).astype(float) for s in sets], draws
    )
    return found


def _piece(there: Sequence[np.ndarray], whole: Sequence[np.ndarray], draws: _Draws) -> dict[str, Any]:
    (real_there, made_there), (real_whole, made_whole) = there, whole
    known = [w[np.isfinite(w)] for w in (real_whole, made_whole)]
    share = [float(w.mean()) if len(w) else float("nan") for w in known]
    missing = float(real_there.mean() - made_there.mean())
    # A label that no real case has in one piece asks nothing of the samples.
    enough = not np.isfinite(share[0]) or share[1] >= share[0] - LESS_OFTEN
    return {
        "there_real": rounded(real_there.mean()),
        "there_samples": rounded(made_there.mean()),
        "one_piece_real": rounded(share[0]),
        "one_piece_samples": rounded(share[1]),
        "difference": draws.difference(made_whole, real_whole),
        "met": bool(enough and missing <= LESS_OFTEN),
    }


def _components(label: np.ndarray, count: int) -> list[int]:
    return [topology(label == i).components for i in range(1, count)]


def _shells(
    real: Sequence[Pair], samples: Sequence[Pair], names: Sequence[str], channels: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Of each channel and label: contrast of the shell, over real cases and over samples."""
    found = {}
    for c, channel in enumerate(channels):
        for i, name in enumerate(names[1:], start=1):
            theirs, ours = (
                np.array([shell_contrast(np.asarray(image[c], np.float32), label == i) for image, label in pairs])
                for pairs in (real, samples)
            )
            theirs, ours = theirs[np.isfinite(theirs)], ours[np.isfinite(ours)]
            figures: dict[str, Any] = {"n_real": len(theirs), "n_samples": len(ours), "met": None}
            for whose, values in (("real", theirs), ("samples", ours)):
                figures[f"mean_{whose}"] = rounded(values.mean()) if len(values) else None
                figures[f"sd_{whose}"] = rounded(values.std(ddof=1)) if len(values) > 1 else None
            if len(theirs) > 1 and len(ours):
                off = float(ours.mean() - theirs.mean()) / max(float(theirs.std(ddof=1)), 1e-9)
                figures |= {"off_in_sd": rounded(off), "met": abs(off) <= SPREADS}
            found[name if len(channels) == 1 else f"{channel} {name}"] = figures
    return found


def _side(
    train: Sequence[Pair], held_out: Sequence[Pair], samples: Sequence[Pair], ids: Sequence[int], draws: _Draws
) -> dict[str, Any]:
    shape = mean_shape([label for _, label in train], ids)
    theirs, ours = (
        # What has no label at all is on no side.
        np.array([sidedness(label, shape, ids) > 0 for _, label in pairs], dtype=float)
        for pairs in (held_out, samples)
    )
    one_sided = bool(theirs.mean() >= ONE_SIDED)
    return {
        "own_side_held_out": rounded(theirs.mean()),
        "own_side_samples": rounded(ours.mean()),
        "difference": draws.difference(ours, theirs),
        "one_sided": one_sided,
        "met": bool(ours.mean() >= theirs.mean() - LESS_OFTEN) if one_sided else None,
    }


def _agreement(
    held_out: Sequence[Pair], samples: Sequence[Pair], names: Sequence[str], segmenter: Segmenter, draws: _Draws
) -> dict[str, Any]:
    """Dice of what the segmenter finds with the label, of each label and over all."""
    theirs, ours = (
        np.array([segmenter.dice(np.asarray(image, np.float32), label) for image, label in pairs])
        for pairs in (held_out, samples)
    )
    columns: Mapping[str, tuple[np.ndarray, np.ndarray]] = {
        **{name: (ours[:, i], theirs[:, i]) for i, name in enumerate(names[1:])},
        "mean": (nanmean(ours), nanmean(theirs)),
    }
    found: dict[str, Any] = {
        name: {
            "held_out": _mean(real),
            "samples": _mean(made),
            "difference": draws.difference(made, real),
        }
        for name, (made, real) in columns.items()
    }
    off = found["mean"]["difference"]["value"]
    return {**found, "met": off is not None and abs(off) <= DICE_WITHIN}


def _mean(scores: np.ndarray) -> float | None:
    known = scores[np.isfinite(scores)]
    return rounded(known.mean()) if len(known) else None
