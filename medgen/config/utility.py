"""The section about what a synthetic dataset is worth to a segmenter: ``medgen utility``."""

from typing import Annotated, Literal

from pydantic import Field, field_validator

from medgen.config.base import PatchTriple, Positive, Section

Size = Positive | Literal["all"]
Open = Annotated[float, Field(gt=0, lt=1)]


class SegmenterConfig(Section):
    """The segmenter that all arms share; see :func:`medgen.segment.train.train`."""

    widths: tuple[Positive, ...] = Field(default=(16, 32, 64, 128), min_length=2)
    patch: PatchTriple = (96, 96, 96)
    batch: Positive = 2
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3


class PrimaryConfig(Section):
    """The one comparison that decides, fixed before anything is measured.

    ``size`` is the smallest of ``utility.sizes`` where it is left out.
    """

    size: Size | None = None
    arm: str = "synthetic"
    against: str = "classical"


class UtilityConfig(Section):
    """What training on synthetic pairs is worth on held-out real cases; see ``docs/utility.md``.

    ``held_out`` is the share of labelled subjects that test, where the cohort has no side ``test``. ``sizes`` are
    numbers of labelled cases, each with a generator of its own that sees no other label. ``synthetic`` pairs are drawn
    of each. ``share`` of the patches are synthetic (or pseudo-labelled) in the arms that mix; ``sweep`` tries other
    shares, ``sweep_cases`` other numbers of synthetic cases, at the primary size. All arms take ``steps``. ``strata``
    is a column of the cohort: the first that conditions the model where it is left out, ``none`` for no strata.
    """

    held_out: Open = 0.2
    sizes: tuple[Size, ...] = Field(default=(5, 10, 20, "all"), min_length=1)
    arms: tuple[str, ...] = Field(
        default=("real", "classical", "synthetic", "pseudo", "synthetic_only", "randomised"), min_length=1
    )
    synthetic: Positive = 200
    share: Open = 0.5
    sweep: tuple[Open, ...] = (0.25, 0.5, 0.75)
    sweep_cases: tuple[Positive, ...] = ()
    steps: Positive = 2000
    seeds: Positive = 3
    segmenter: SegmenterConfig = SegmenterConfig()
    primary: PrimaryConfig = PrimaryConfig()
    strata: str | None = None

    @field_validator("sizes")
    @classmethod
    def _in_order(cls, value: tuple[Size, ...]) -> tuple[Size, ...]:
        numbers = sorted({size for size in value if not isinstance(size, str)})
        return (*numbers, "all") if "all" in value else tuple(numbers)
