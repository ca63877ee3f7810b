"""The trainings that an evaluation consists of."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from medgen.evaluation.utility.arms import ARMS, DRAWS, MIXES

Size = int | str
"""A number of labelled cases, or ``all`` of them."""


@dataclass(frozen=True)
class Trial:
    """One training of the segmenter.

    Attributes:
        size: of the labelled cases.
        arm: a key of :data:`medgen.evaluation.utility.arms.ARMS`.
        seed: of first weights and patches.
        share: of the patches that are of extra cases, where the arm mixes.
        synthetic: how many synthetic cases there are at most, where the arm has any.
    """

    size: Size
    arm: str
    seed: int
    share: float | None = None
    synthetic: int | None = None

    @property
    def name(self) -> str:
        """Of its folder."""
        parts = [f"size-{self.size}", self.arm]
        parts += [f"n-{self.synthetic}"] if self.synthetic is not None else []
        parts += [f"share-{self.share:g}"] if self.share is not None else []
        return "_".join([*parts, f"seed-{self.seed}"])

    @property
    def setting(self) -> "Trial":
        """The trial without its seed: what is reported as one."""
        return replace(self, seed=0)

    @property
    def draws(self) -> bool:
        """Whether it needs synthetic cases."""
        return self.arm in DRAWS


def trial(size: Size, arm: str, seed: int, *, share: float, synthetic: int) -> Trial:
    """A trial with what its arm takes of the share and the number of synthetic cases."""
    return Trial(size, arm, seed, share if arm in MIXES else None, synthetic if arm in DRAWS else None)


def trials(
    sizes: Sequence[Size],
    arms: Sequence[str],
    seeds: int,
    *,
    share: float,
    synthetic: int,
    sweep_size: Size,
    sweep: Sequence[float] = (),
    sweep_cases: Sequence[int] = (),
) -> list[Trial]:
    """All trials, those of one size together, without repeats.

    Args:
        sizes: of the labelled cases.
        arms: of every size.
        seeds: of every arm.
        share: of extra cases in arms that mix.
        synthetic: cases in arms that have some.
        sweep_size: where shares and numbers are swept, in the arm ``synthetic``.
        sweep: other shares.
        sweep_cases: other numbers of synthetic cases.
    """
    found: list[Trial] = []
    for size in sizes:
        settings = [(arm, share, synthetic) for arm in ARMS if arm in arms]
        if size == sweep_size and "synthetic" in arms:
            settings += [("synthetic", other, synthetic) for other in sweep]
            settings += [("synthetic", share, other) for other in sweep_cases]
        found += [trial(size, arm, seed, share=s, synthetic=n) for arm, s, n in settings for seed in range(seeds)]
    return list(dict.fromkeys(found))
