"""What was asked for is what is there: requested against measured volumes, and what is derived from them.

Where a range was asked for, everything in it is; its ends have the tolerance.
"""

import math
from collections.abc import Mapping

from medgen.generation.gates.law import LEAST, check_within
from medgen.generation.gates.seam import Context, Judge, Seen, Verdict

ON = True


def measure(seen: Seen) -> Mapping[str, float]:
    """Everything that the label tells, by column: its spread over the cohort is the unit of the tolerance."""
    return dict(seen.measured)


def build(context: Context, *, tolerance: float = 1.0) -> Judge:
    """Reject draws that miss a request. What was not asked for but drawn from the joint is no promise.

    Args:
        context: the cohort's laws.
        tolerance: how far a measured figure may lie from the requested one, or from the requested range, in standard
            deviations of the column over the cohort.
    """
    context.need_laws()

    def judge(seen: Seen) -> Verdict:
        scores, faults = {}, {}
        for name in sorted(seen.requested.keys() & seen.measured.keys()):
            law = context.laws.get(name)
            if law is None or law.n < LEAST or law.std == 0:
                continue
            low, high = seen.requested[name]
            measured = seen.measured[name]
            off = (measured - min(max(measured, low), high)) / law.std
            scores[name] = round(off, 4)
            if abs(off) > tolerance:
                faults[name] = (
                    f"{name} was asked to be {_told(low, high)} and is {measured:.4g}, "
                    f"{abs(off):.2g} of the cohort's standard deviations away ({tolerance:g} are allowed)"
                )
        return Verdict(scores, faults)

    return judge


def check(*, tolerance: float) -> None:
    """Refuse a tolerance that is none."""
    check_within("request", "tolerance", tolerance, 0)


def _told(low: float, high: float) -> str:
    if low == high:
        return f"{low:.4g}"
    if math.isinf(low) or math.isinf(high):
        return f"{low:.4g} or more" if math.isinf(high) else f"{high:.4g} or less"
    return f"{low:.4g} to {high:.4g}"
