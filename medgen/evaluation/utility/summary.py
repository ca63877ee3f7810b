"""All results as one JSON-able summary, and case by case as a table."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from medgen.evaluation.utility.compare import Scores, difference, figures, scores
from medgen.evaluation.utility.trial import Size, Trial, trial

Results = Mapping[Trial, Mapping[str, Any]]
FEWEST_SEEDS = 3


@dataclass(frozen=True)
class About:
    """What the results are about.

    Attributes:
        name: of the experiment.
        labels: names of the labels, without the background.
        subjects: (N,) subject of each held-out case, as running numbers.
        strata: (N,) stratum of each held-out case; empty for none.
        steps: of every arm.
        counts: size -> number of labelled cases.
        primary: (size, arm, against), fixed before.
        usual: (share, number of synthetic cases) of the arms outside sweeps.
        generators: size -> what is known of its synthetic cases, ``copies`` among it.
        skipped: (size, arm, why) of what was not trained.
        notes: what a reader must know, one sentence each.
        failures: what stopped a generator.
    """

    name: str
    labels: tuple[str, ...]
    subjects: tuple[str, ...]
    strata: tuple[str, ...]
    steps: int
    counts: Mapping[Size, int]
    primary: tuple[Size, str, str]
    usual: tuple[float, int]
    generators: Mapping[Size, Mapping[str, Any]]
    skipped: Sequence[tuple[Size, str, str]] = ()
    notes: Sequence[str] = ()
    failures: Sequence[str] = field(default=())


def summarise(results: Results, about: About) -> dict[str, Any]:
    """Figures of every setting, the difference of each to the arm compared with, and the primary comparison.

    Args:
        results: by trial.
        about: the rest.
    """
    groups: dict[Trial, list[Mapping[str, Any]]] = {}
    for key, result in results.items():
        groups.setdefault(key.setting, []).append(result)
    found = {setting: scores(own, about.labels) for setting, own in groups.items()}
    shared = about.subjects, about.strata, about.labels
    against = about.primary[2]
    arms = []
    for setting, own in found.items():
        base = _usual(about, setting.size, against)
        arms.append(
            {
                "size": setting.size,
                "labelled": about.counts[setting.size],
                "arm": setting.arm,
                "share": setting.share,
                "synthetic": setting.synthetic,
                "sweep": setting != _usual(about, setting.size, setting.arm),
                "seeds": len(own.seeds),
                "counts": _counts(setting, about),
                **figures(own, *shared),
                "difference": difference(own, found[base], *shared) if base in found and base != setting else None,
            }
        )
    return {
        "name": about.name,
        "labels": list(about.labels),
        "held_out": {"cases": len(about.subjects), "subjects": len(set(about.subjects))},
        "strata": {name: about.strata.count(name) for name in sorted(set(about.strata))},
        "steps": about.steps,
        "primary": _primary(found, about),
        "arms": arms,
        "generators": [{"size": s, **told} for s, told in about.generators.items()],
        "skipped": [{"size": s, "arm": a, "why": why} for s, a, why in about.skipped],
        "intervals": "95%, two-way bootstrap over held-out subjects and seeds, paired by case and seed",
        "notes": list(about.notes),
        "failures": list(about.failures),
    }


def _counts(setting: Trial, about: About) -> bool | None:
    """Whether an arm of synthetic cases alone may count: None where that is not asked or cannot be told."""
    if setting.arm != "synthetic_only":
        return None
    copies = about.generators.get(setting.size, {}).get("copies") or {}
    counts: bool | None = copies.get("counts")
    return counts


def _usual(about: About, size: Size, arm: str) -> Trial:
    """The setting of an arm outside sweeps."""
    share, synthetic = about.usual
    return trial(size, arm, 0, share=share, synthetic=synthetic)


def _primary(found: Mapping[Trial, Scores], about: About) -> dict[str, Any]:
    size, arm, against = about.primary
    said = {"size": size, "arm": arm, "against": against}
    ours, theirs = (found.get(_usual(about, size, a)) for a in (arm, against))
    if ours is None or theirs is None:
        missing = arm if ours is None else against
        return {**said, "difference": None, "why": f"arm '{missing}' was not trained at size {size}"}
    return {**said, "difference": difference(ours, theirs, about.subjects, about.strata, about.labels)}


def per_case(results: Results, about: About) -> pd.DataFrame:
    """One row for each trial, held-out case and label. Cases are numbered; no id of the cohort is in it."""
    rows = []
    for key, result in results.items():
        for number, row in enumerate(result["cases"]):
            for label in about.labels:
                rows.append(
                    {
                        "size": key.size,
                        "arm": key.arm,
                        "share": key.share,
                        "synthetic": key.synthetic,
                        "seed": key.seed,
                        "case": number,
                        "stratum": about.strata[number] if about.strata else None,
                        "label": label,
                        **{name: row[name][label] for name in ("dice", "hd95_mm", "true_ml", "found_ml")},
                    }
                )
    return pd.DataFrame(rows)
