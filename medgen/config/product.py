"""Sections about what a run gives its user: the dataset and the report."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from medgen.config.base import (
    Options,
    Positive,
    Section,
    Seed,
)


class GatesConfig(Section):
    """What a draw must pass before it is written; see :mod:`medgen.generation.gates`. ``gates: none`` alone is none.

    ``kinds`` turns a gate on or off or gives it options: ``{topology: off, request: {tolerance: 0.5}}``; gates not
    named do as they are made to, unless ``others`` is off. A rejected draw is drawn again, ``attempts`` times at most
    in all; a run in which more than ``most`` of the draws are rejected stops.
    """

    kinds: dict[str, bool | Options] = {}
    others: bool = True
    attempts: Positive = 8
    most: Annotated[float, Field(gt=0, le=1)] = 0.8


class GenerateConfig(Section):
    """The synthetic dataset; ``tile`` is that of :class:`LatentsConfig`, for decoding.

    ``writers`` threads compress and write while the next samples are drawn. With ``pairs: mask``, ``masks`` names the
    label maps that images follow in place of the label model's (see :class:`medgen.generation.masks.GivenMasks`), and
    ``edits`` changes masks before they are followed (:mod:`medgen.edit`).
    """

    n: Positive = 16
    where: str = ""
    requests: Path | None = None
    match: Literal["real"] | None = None
    balance: str | None = None
    seed: Seed = 0
    sampler: str = "dpmpp"
    sampler_options: Options = {}
    steps: Positive = 16
    guidance: Annotated[float, Field(ge=0)] = 1.0
    steering: tuple[Options, ...] = ()
    masks: Path | None = None
    edits: tuple[Options, ...] = ()
    batch: Positive = 1
    writers: Positive | None = None
    tile: Positive | None = None
    format: str = "bids"
    space: Literal["native", "grid"] = "native"
    force: bool = False
    gates: GatesConfig = GatesConfig()

    @field_validator("gates", mode="before")
    @classmethod
    def _no_gates(cls, value: Any) -> Any:
        return {"others": False} if value == "none" or value is False else value


class FidelityConfig(Section):
    """The pinned protocol of likeness, diversity, obedience, memorisation and sharpness.

    See :func:`medgen.evaluation.fidelity.fidelity`. It needs a segmenter, trained for ``segmenter_steps`` on the
    training cases. With ``halves`` it is trained on half of them where there are enough, and real cases are compared by
    the other half, which it has not seen.
    """

    segmenter_steps: Positive = 1500
    halves: bool = True


class ReportConfig(Section):
    """Figures the run must reach; missing one ends ``medgen run`` with exit code 3 after everything is written.

    ``fidelity: true`` adds the pinned protocol's figures.
    """

    volume: str | None = None
    min_volume_r: float | None = None
    max_ssim_excess: float | None = None
    fidelity: FidelityConfig | None = None

    @field_validator("fidelity", mode="before")
    @classmethod
    def _fidelity(cls, value: Any) -> Any:
        return {True: FidelityConfig(), False: None}[value] if isinstance(value, bool) else value
