"""All gates of a model together: what they learn from the cohort, and their judgement of a draw."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from medgen.generation.gates.law import Law, fit
from medgen.generation.gates.seam import CannotJudgeError, Context, Judge, Seen
from medgen.generation.gates.setting import ROOM, Setting, hook
from medgen.generation.model import ModelSpec
from medgen.registry import kinds, resolve

FINITE = "finite"
HELD_OUT = "held_out"
"""In a model's figures, beside the gates': how many held-out cases each would accept."""


@dataclass(frozen=True)
class Judgement:
    """What all gates say of a draw.

    Attributes:
        scores: gate -> its scores.
        faults: gate -> score -> why it rejects; gates that accept are left out.
    """

    scores: Mapping[str, Mapping[str, float]]
    faults: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    @property
    def accepted(self) -> bool:
        """Whether no gate rejects."""
        return not self.faults


@dataclass(frozen=True)
class Gates:
    """The gates that judge the draws of a model.

    Attributes:
        setting: as it was said.
        judges: gate -> its judge.
        silent: gate -> why it cannot judge here.
    """

    setting: Setting
    judges: Mapping[str, Judge]
    silent: Mapping[str, str]

    @staticmethod
    def of(spec: ModelSpec, setting: Setting, folder: Path | None = None) -> "Gates":
        """Set up the gates of a model.

        Args:
            spec: of the model.
            setting: which gates, and how.
            folder: of the model.

        Raises:
            InputError: an unknown gate or option, or what a gate was told to use does not fit the model.
        """
        setting.check()
        judges, silent = {}, {}
        for kind, options in setting.active().items():
            known = spec.gates.get(kind, {})
            context = Context(
                laws={name: Law(**law) for name, law in known.get("laws", {}).items()},
                figures=known,
                cases=int(known.get("cases", 0)),
                names=tuple(spec.label_names),
                folder=folder,
                statistics=spec.statistics,
                latent_shape=spec.latent_shape,
                image_channels=len(spec.channels),
                channels=tuple(spec.channels),
                spacing_mm=tuple(spec.spacing_mm),
            )
            try:
                judges[kind] = resolve(ROOM, kind, "build")(context, **options)
            except CannotJudgeError as error:
                silent[kind] = str(error)
        return Gates(setting, judges, silent)

    def judge(self, seen: Seen) -> Judgement:
        """Ask every gate. A draw that is not finite is asked nothing else: no figure of it means anything."""
        if lost := not_finite(seen.image):
            return lost
        verdicts = {kind: judge(seen) for kind, judge in self.judges.items()}
        scores = {kind: dict(v.scores) for kind, v in verdicts.items()}
        return Judgement(scores, {kind: dict(v.faults) for kind, v in verdicts.items() if v.faults})

    def recorded(self) -> dict[str, Any]:
        """What decides which draw is taken, as plain JSON: two parts of a dataset must agree in it."""
        told = self.setting.recorded()
        return {**told, "kinds": {k: v for k, v in told["kinds"].items() if k in self.judges}, "silent": [*self.silent]}


def not_finite(*arrays: np.ndarray | None) -> Judgement | None:
    """The judgement of a draw that is not finite; None where it is."""
    lost = max(float(np.mean(~np.isfinite(a))) for a in arrays if a is not None)
    if not lost:
        return None
    return Judgement({FINITE: {"lost": round(lost, 6)}}, {FINITE: {"lost": f"{lost:.1%} of it are no finite numbers"}})


def learn(cases: Iterable[Seen], on_case: Callable[[], None] = lambda: None) -> dict[str, Any]:
    """What all gates learn from real cases: plain figures by gate and score, no case named.

    Args:
        cases: training cases.
        on_case: called after each.
    """
    learners = [kind for kind in kinds(ROOM, "build") if hook(kind, "measure")]
    rows: dict[str, list[Mapping[str, float]]] = {kind: [] for kind in learners}
    labelled = 0
    for case in cases:
        labelled += case.label is not None
        for kind in learners:
            rows[kind].append(resolve(ROOM, kind, "measure")(case))
        on_case()
    learnt = {}
    for kind, measured in rows.items():
        if any(measured):
            further = hook(kind, "learn")
            laws = {name: law.to_json() for name, law in fit(measured).items()}
            # Whether a structure may be absent is seen in the cases that show what they have.
            learnt[kind] = {"cases": labelled, "laws": laws, **(further(measured) if further else {})}
    return learnt
