"""What was asked for is what is there: requested against measured volumes, and what is derived from them."""

from collections.abc import Mapping

from medgen.generation.gates.law import LEAST
from medgen.generation.gates.seam import Context, Judge, Seen, Verdict

ON = True


def measure(seen: Seen) -> Mapping[str, float]:
    """Everything that the label tells, by column: its spread over the cohort is the unit of the tolerance."""
    return dict(seen.measured)


def build(context: Context, *, tolerance: float = 1.0) -> Judge:
    """Reject draws that miss a request. What was not asked for but drawn from the joint is no promise.

    Args:
        context: the cohort's laws.
        tolerance: how far a measured figure may lie from the requested one, in standard deviations of the column over
            the cohort.
    """
    context.need_laws()

    def judge(seen: Seen) -> Verdict:
        scores, faults = {}, {}
        for name in sorted(seen.requested.keys() & seen.measured.keys()):
            law = context.laws.get(name)
            if law is None or law.n < LEAST or law.std == 0:
                continue
            off = (seen.measured[name] - seen.requested[name]) / law.std
            scores[name] = round(off, 4)
            if abs(off) > tolerance:
                faults[name] = (
                    f"{name} was asked to be {seen.requested[name]:.4g} and is {seen.measured[name]:.4g}, "
                    f"{abs(off):.2g} of the cohort's standard deviations away ({tolerance:g} are allowed)"
                )
        return Verdict(scores, faults)

    return judge
