"""Label volumes within the cohort's range, or within the request's where it asks for more."""

import math
from collections.abc import Mapping

from medgen.cohort.schema import volume_column
from medgen.generation.gates.law import Law, check_level, check_within, slack
from medgen.generation.gates.seam import CannotJudgeError, Context, Judge, Seen, Verdict

ON = True


def measure(seen: Seen) -> Mapping[str, float]:
    """Logarithm of each label's volume in ml: volumes are never negative, and their spread grows with them."""
    return {name: math.log(ml) for name, ml in _volumes(seen).items() if ml > 0}


def build(context: Context, *, level: float = 0.001, request: float = 0.2) -> Judge:
    """Reject volumes that no case of the cohort has.

    Args:
        context: the cohort's laws.
        level: chance of rejecting a real case, at most about.
        request: a volume that was asked for may be missed by this share of it, also where it lies beyond the cohort.
    """
    if len(context.names) < 2:
        raise CannotJudgeError("the model draws no labels")
    context.need_laws()

    def judge(seen: Seen) -> Verdict:
        volumes = _volumes(seen)
        faults = {}
        for name, ml in volumes.items():
            law, asked = context.laws.get(name), seen.requested.get(volume_column(name))
            low, high = _range(law, context.cases, level / len(volumes))
            if asked is not None:
                least, most = asked
                low = min(low, least * (1 - request)) if math.isfinite(least) else 0.0
                high = max(high, most * (1 + request))
            if not low - slack(low) <= ml <= high + slack(high):
                reach = f"lies between {low:.4g} and {high:.4g} ml" if high > 0 else "is nothing"
                faults[name] = f"{name} has {ml:.4g} ml, the cohort's {reach}"
        return Verdict(volumes, faults)

    return judge


def check(*, level: float, request: float) -> None:
    """Refuse values that mean nothing."""
    check_level("volumes", level)
    check_within("volumes", "request", request, 0)


def _volumes(seen: Seen) -> dict[str, float]:
    columns = {name: volume_column(name) for name in seen.names[1:]}
    return {name: seen.measured[column] for name, column in columns.items() if column in seen.measured}


def _range(law: Law | None, cases: int, level: float) -> tuple[float, float]:
    if law is None:
        return 0.0, 0.0  # no case has this label
    low, high = (math.exp(bound) if bound < 700 else math.inf for bound in law.bounds(level))
    return (0.0 if law.n < cases else low), high
