"""Draw, judge, draw again: sample i stays a pure function of (model, seed, i, request), its attempts inside it.

A redraw changes the noise alone. What was asked, what was drawn beside it, the grid and the range stay: gates then
take no part in what the dataset's covariates are like, only in which of them are answered.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from medgen.cohort.given import Range
from medgen.cohort.requests import Row
from medgen.cohort.sample import Sample
from medgen.errors import BoundError
from medgen.generation.gates.panel import FINITE, Gates, Judgement, not_finite
from medgen.generation.gates.seam import Seen
from medgen.generation.generator import Draft, Generator
from medgen.sampling.noise import Key

_ENOUGH = 20
EDIT = "edit"

_ADVICE = {
    FINITE: "the model has diverged: train it again at a lower learning rate",
    EDIT: "the masks lack what the edits change, or have no room for it: leave those masks out",
    "neighbour": "the model repeats its training cases: train it for fewer steps or with latents.copies",
    "request": "widen the request, raise guidance, or allow a larger tolerance",
}


@dataclass(frozen=True)
class Rejected:
    """A sample of which every draw was rejected.

    Attributes:
        key: (seed, index).
        draws: each with its attempt, and its faults and scores by gate.
    """

    key: Key
    draws: tuple[Mapping[str, Any], ...]


@dataclass
class Tally:
    """Draws counted as they come, to stop a run in which most are rejected.

    Attributes:
        most: share of rejected draws that is too much.
        draws: judged.
        rejected: of these.
        by_gate: gate -> draws it rejected.
    """

    most: float
    draws: int = 0
    rejected: int = 0
    by_gate: Counter[str] = field(default_factory=Counter)

    def add(self, judgement: Judgement) -> None:
        """Count a draw.

        Raises:
            BoundError: enough draws were judged, and most of them rejected.
        """
        self.draws += 1
        self.rejected += not judgement.accepted
        self.by_gate.update(judgement.faults.keys())
        if self.draws >= _ENOUGH:
            self.stop()

    def stop(self) -> None:
        """Stop where most draws were rejected.

        Raises:
            BoundError: with the gate that rejects most, and what can be done.
        """
        if self.draws == 0 or self.rejected <= self.most * self.draws:
            return
        (worst, count), *_ = self.by_gate.most_common(1)
        others = ", ".join(f"{kind} {n}" for kind, n in self.by_gate.most_common()[1:])
        advice = _ADVICE.get(worst, "train the model longer")
        raise BoundError(
            f"the gates rejected {self.rejected} of {self.draws} draws, most of them by '{worst}' ({count}"
            f"{'; ' + others if others else ''}); {advice}, or set the gate otherwise (generate.gates.kinds.{worst}, "
            f"--gate '{worst}: off')"
        )


def draw(
    generator: Generator,
    gates: Gates,
    rows: Sequence[Row],
    keys: Sequence[Key],
    on_judged: Callable[[Judgement], None] = lambda judgement: None,
) -> list[Sample | Rejected]:
    """Draw samples until the gates accept them; only those rejected are drawn again.

    Args:
        generator: draws.
        gates: judge.
        rows: what each sample is asked.
        keys: (seed, index) of each.
        on_judged: called with every judgement.
    """
    rejected: dict[int, list[Mapping[str, Any]]] = {key.index: [] for key in keys}
    taken: dict[int, Sample] = {}
    waiting = list(zip(rows, keys, strict=True))
    for attempt in range(gates.setting.attempts):
        again = []
        part = [replace(key, attempt=attempt) for _, key in waiting]
        for asked, draft in zip(waiting, generator.drafts([row for row, _ in waiting], part), strict=True):
            index = draft.key.index
            # What is not finite has no measures and no grid to be brought to.
            sample, judgement = None, not_finite(draft.image, draft.probabilities) or _not_edited(draft)
            if judgement is None:
                sample = generator.finish(draft)
                judgement = gates.judge(seen_of(generator, draft, sample))
            if sample is not None and judgement.accepted:
                told = {"scores": judgement.scores, "silent": dict(gates.silent), "rejected": list(rejected[index])}
                own = {"gates": told, "gate_setting": gates.recorded()}
                taken[index] = replace(sample, sidecar={**sample.sidecar, **own})
            else:
                scores = {kind: judgement.scores[kind] for kind in judgement.faults}
                rejected[index].append({"attempt": attempt, "faults": judgement.faults, "scores": scores})
                again.append(asked)
            on_judged(judgement)
        waiting = again
        if not waiting:
            break
    return [taken.get(key.index) or Rejected(key, tuple(rejected[key.index])) for key in keys]


def _not_edited(draft: Draft) -> Judgement | None:
    """The judgement of a draw whose mask could not be edited as asked; None where it could."""
    return Judgement({EDIT: {}}, {EDIT: {"mask": draft.fault}}) if draft.fault else None


def seen_of(generator: Generator, draft: Draft, sample: Sample) -> Seen:
    """A draw as gates see it: on the model's grid, with what is measured of it as written."""
    spec = generator.model.spec
    return Seen(
        image=draft.image,
        label=None if draft.probabilities is None else draft.probabilities.argmax(axis=0),
        channels=spec.channels,
        names=spec.label_names,
        spacing_mm=spec.spacing_mm,
        measured=_numbers(sample.sidecar["measured"]),
        requested=asked_numbers(draft.row),
        latent=draft.latent,
    )


def asked_numbers(row: Row) -> dict[str, tuple[float, float]]:
    """The least and the largest number that answer each column of a request."""
    found = {}
    for name, value in _numbers({name: row.values[name] for name in row.asked}).items():
        given = row.given.get(name)
        found[name] = (value, value)
        if isinstance(given, Range):
            low, high = (
                (-math.inf if given.low is None else given.low),
                (math.inf if given.high is None else given.high),
            )
            # Around a circle both ends are one range; what was drawn in it is asked for.
            found[name] = (low, high) if low <= high else found[name]
    return found


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    return {n: float(v) for n, v in values.items() if isinstance(v, (int, float)) and not isinstance(v, bool)}


@dataclass(frozen=True)
class Acceptance:
    """How draws of a dataset fared.

    Attributes:
        draws: judged in all.
        accepted: samples written.
        left_out: samples of which every attempt was rejected.
        attempts: allowed for a sample.
        by_gate: gate -> {"rejected": draws, "scores": score -> draws}; a draw may fail several.
        silent: gate -> why it did not judge.
    """

    draws: int
    accepted: int
    left_out: int
    attempts: int
    by_gate: Mapping[str, Mapping[str, Any]]
    silent: Mapping[str, str]

    @staticmethod
    def of(sidecars: Iterable[Mapping[str, Any]], left_out: Iterable[Mapping[str, Any]]) -> "Acceptance":
        """From what a dataset holds.

        Args:
            sidecars: of its samples.
            left_out: records of the samples that were left out.
        """
        taken = [s for s in sidecars if "gate_setting" in s]
        lost = list(left_out)
        rejected = [r for s in taken for r in s["gates"]["rejected"]] + [r for s in lost for r in s["rejected"]]
        gates: dict[str, Counter[str]] = {kind: Counter() for s in taken[:1] for kind in s["gate_setting"]["kinds"]}
        counts: Counter[str] = Counter()
        for r in rejected:
            counts.update(r["faults"].keys())
            for kind, faults in r["faults"].items():
                gates.setdefault(kind, Counter()).update(faults.keys())
        settings = [s["gate_setting"] for s in (*taken[:1], *lost[:1])]
        return Acceptance(
            draws=len(taken) + len(rejected),
            accepted=len(taken),
            left_out=len(lost),
            attempts=settings[0]["attempts"] if settings else 0,
            by_gate={k: {"rejected": counts[k], "scores": dict(scores.most_common())} for k, scores in gates.items()},
            silent=dict(taken[0]["gates"]["silent"]) if taken else {},
        )

    def tally(self, most: float) -> Tally:
        """The dataset's draws, whichever runs they were made in; ``most`` of them may be rejected."""
        by_gate = Counter({kind: int(found["rejected"]) for kind, found in self.by_gate.items() if found["rejected"]})
        return Tally(most, self.draws, self.draws - self.accepted, by_gate)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON, with the share of draws that each gate accepted."""
        gates = {
            kind: {"accepted": round(1 - found["rejected"] / self.draws, 4), **found}
            for kind, found in self.by_gate.items()
        }
        return {
            "draws": self.draws,
            "accepted": self.accepted,
            "left_out": self.left_out,
            "attempts": self.attempts,
            "gates": gates,
            "silent": dict(self.silent),
        }

    def lines(self) -> list[str]:
        """What a user is told, a sentence a line; empty where nothing was judged."""
        if not self.draws:
            return []
        told = [f"gates: {self.accepted} of {self.draws} draws accepted"]
        for kind, found in sorted(self.by_gate.items(), key=lambda item: -item[1]["rejected"]):
            if found["rejected"]:
                scores = ", ".join(f"{name} {count}" for name, count in list(found["scores"].items())[:3])
                told[0] += f"; {kind} rejected {found['rejected']} ({scores})"
        if self.left_out:
            told.append(f"{self.left_out} samples are left out: all {self.attempts} draws of each were rejected")
        told += [f"gate '{kind}' did not judge: {why}" for kind, why in self.silent.items()]
        return told
