"""Labels that hang together as the cohort's do: pieces, loose specks, and the Euler number."""

from collections.abc import Mapping

from medgen.generation.gates.law import check_level, outside, slack
from medgen.generation.gates.seam import CannotJudgeError, Context, Judge, Seen, Verdict
from medgen.measure.topology import topology

ON = True
# A figure that never varies over a small cohort still has its smallest step: one tunnel more, a speck more.
_STEP = {"euler": 1.0, "loose": 0.002}


def measure(seen: Seen) -> Mapping[str, float]:
    """Of each label that is there: ``pieces``, the share of ``loose`` voxels and the ``euler`` number."""
    scores: dict[str, float] = {}
    for i, name in enumerate(seen.names):
        if i == 0 or seen.label is None:
            continue
        t = topology(seen.label == i)
        if t.voxels:
            scores |= {f"{name}.pieces": t.pieces, f"{name}.loose": round(t.loose, 6), f"{name}.euler": t.euler}
    return scores


def build(context: Context, *, level: float = 0.001) -> Judge:
    """Reject labels that are more broken than the cohort's.

    Fewer loose voxels, tunnels and cavities than any real case has are no fault: a drawn label may be smoother than
    one that was painted. How much smoother is for the report to say.

    Args:
        context: the cohort's laws.
        level: chance of rejecting a real case, at most about.
    """
    if len(context.names) < 2:
        raise CannotJudgeError("the model draws no labels")
    context.need_laws()

    def judge(seen: Seen) -> Verdict:
        scores = measure(seen)
        faults = outside(scores, context.laws, level)
        return Verdict(scores, {n: said for n, said in faults.items() if not _sound(n, scores, context)})

    return judge


def check(*, level: float) -> None:
    """Refuse a level that is none."""
    check_level("topology", level)


def _sound(name: str, scores: Mapping[str, float], context: Context) -> bool:
    label, _, figure = name.rpartition(".")
    law, value = context.laws[name], scores[name]
    if figure == "loose":
        return value <= law.maximum + _STEP[figure]
    if figure != "euler":
        return False
    solid = scores[f"{label}.pieces"]  # the Euler number of so many solid pieces
    low, high = min(law.minimum, solid) - _STEP[figure], max(law.maximum, solid) + _STEP[figure]
    return low - slack(low) <= value <= high + slack(high)
