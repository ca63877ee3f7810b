"""Sections about the codec and the latents it gives."""

from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from medgen.config.base import (
    Options,
    PatchTriple,
    PerLabel,
    Positive,
    Section,
    Share,
    Triple,
    UnitInterval,
    Weight,
)
from medgen.config.training import TrainingConfig


class CodecTrainingConfig(TrainingConfig):
    """The codec's: small batches of small patches, at a high rate, make most of a short training."""

    learning_rate: Annotated[float, Field(gt=0)] = 2e-3


class AcceptConfig(Section):
    """What the codec must reach on held-out cases; below it a run stops before anything is trained on its latents.

    Bounds about labels are one number for every label or a number by label name. ``sizes_ml`` are the edges between
    classes of connected structures by volume; "small" is the first class. See
    :class:`medgen.evaluation.codec_quality.Thresholds`.
    """

    min_psnr_db: float | None = None
    min_ssim: Annotated[float, Field(ge=-1, le=1)] | None = None
    max_l1: Annotated[float, Field(gt=0)] | None = None
    min_sharpness: Annotated[float, Field(ge=0)] | None = None
    min_dice: PerLabel = None
    min_dice_small: PerLabel = None
    min_recall_small: PerLabel = None
    sizes_ml: tuple[Annotated[float, Field(gt=0)], ...] = Field(default=(0.1, 1.0), min_length=1)

    @field_validator("sizes_ml")
    @classmethod
    def _rising(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if any(a >= b for a, b in pairwise(value)):
            raise ValueError("sizes_ml must rise, such as [0.1, 1.0]")
        return value


class SamplingConfig(Section):
    """Where training patches are centred, and how the volumes they come from are kept.

    ``foreground``, ``labels`` and ``rare`` are chances; the rest is placed uniformly. ``labels`` takes each label of a
    case as often, ``rare`` the ones the cohort has few voxels of more often. ``storage`` is of images on the device;
    ``resident`` is how many cases are there at a time, left out as many as fit.
    """

    foreground: UnitInterval = 0.0
    labels: UnitInterval = 0.0
    rare: UnitInterval = 0.0
    storage: Literal["float16", "bfloat16", "uint8"] = "float16"
    resident: Positive | None = None

    @model_validator(mode="after")
    def _at_most_one(self) -> "SamplingConfig":
        if self.foreground + self.labels + self.rare > 1 + 1e-9:
            raise ValueError("foreground, labels and rare are chances and add up to at most 1")
        return self


class AugmentConfig(Section):
    """Augmentation of training patches; see :class:`medgen.store.augment.Augmentation`. By default there is none.

    ``flip: true`` mirrors left and right; a list names axes (0 is left-right). Leave it out for a cohort whose
    structures all lie on one side.
    """

    flip: bool | tuple[Literal[0, 1, 2], ...] = False
    rotate_degrees: Annotated[float, Field(ge=0, le=180)] | Triple = 0.0
    scale: Annotated[float, Field(ge=0, le=1)] = 0.0
    translate_voxels: Annotated[float, Field(ge=0)] = 0.0
    intensity_scale: Annotated[float, Field(ge=0, lt=1)] = 0.0
    intensity_shift: Annotated[float, Field(ge=0, le=1)] = 0.0
    gamma: Annotated[float, Field(ge=0, le=3)] = 0.0
    noise: Annotated[float, Field(ge=0, le=1)] = 0.0
    chance: UnitInterval = 1.0

    @field_validator("rotate_degrees")
    @classmethod
    def _turns(cls, value: float | Triple) -> float | Triple:
        if isinstance(value, tuple) and not all(0 <= v <= 180 for v in value):
            raise ValueError("rotate_degrees lie between 0 and 180")
        return value

    def values(self) -> dict[str, Any] | None:
        """Keywords of :class:`medgen.store.augment.Augmentation`; None where nothing is augmented."""
        given = self.model_dump()
        flip, turns = given["flip"], given["rotate_degrees"]
        given["flip"] = (0,) if flip is True else tuple(flip or ())
        given["rotate_degrees"] = turns if isinstance(turns, tuple) else (turns,) * 3
        chance = given.pop("chance")
        happens = any(given["rotate_degrees"]) or any(v for v in given.values() if isinstance(v, float))
        return {**given, "chance": chance} if given["flip"] or (happens and chance > 0) else None


class LossesConfig(Section):
    """Weights of the codec's losses; 0 leaves one out. See :class:`medgen.training.autoencoder.LossWeights`.

    ``perceptual`` needs ``perceptual_weights``: a MedicalNet file that the user has.
    """

    l1: Weight = 1.0
    l2: Weight = 0.0
    spectral: Weight = 0.5
    perceptual: Weight = 0.0
    perceptual_weights: Path | None = None
    kl: Weight = 1e-5
    label: Weight = 1.0

    @model_validator(mode="after")
    def _something(self) -> "LossesConfig":
        if self.l1 + self.l2 + self.spectral + self.perceptual == 0:
            raise ValueError("a codec needs a loss of the image: set l1, l2, spectral or perceptual above 0")
        if (self.perceptual > 0) != (self.perceptual_weights is not None):
            raise ValueError("perceptual and perceptual_weights need each other: a weight above 0 and a file")
        return self


class AdversaryConfig(Section):
    """The codec's adversary; of weight 0 there is none. See :class:`medgen.training.adversary.AdversaryOptions`."""

    weight: Weight = 0.0
    feature_matching: Weight = 1.0
    start: Share = 0.3
    ramp: Share = 0.1
    width: Positive = 32
    layers: Positive = 1
    rate: Annotated[float, Field(gt=0)] = 1.0


class AutoencoderConfig(Section):
    """The codec and its training."""

    kind: str = "wavelet"
    options: Options = {}
    patch: PatchTriple | None = None
    losses: LossesConfig = LossesConfig()
    adversary: AdversaryConfig = AdversaryConfig()
    accept: AcceptConfig = AcceptConfig()
    sampling: SamplingConfig = SamplingConfig()
    augment: AugmentConfig = AugmentConfig()
    training: CodecTrainingConfig = CodecTrainingConfig()


class CopiesConfig(AugmentConfig):
    """How far augmented encodings go, by default not far."""

    rotate_degrees: Annotated[float, Field(ge=0, le=180)] | Triple = 4.0
    scale: Annotated[float, Field(ge=0, le=1)] = 0.04
    translate_voxels: Annotated[float, Field(ge=0)] = 1.0
    intensity_scale: Annotated[float, Field(ge=0, lt=1)] = 0.04
    intensity_shift: Annotated[float, Field(ge=0, le=1)] = 0.04
    gamma: Annotated[float, Field(ge=0, le=3)] = 0.1


class LatentsConfig(Section):
    """Encoding of the cohort. ``mirror`` adds a left-right flipped encoding of every case (only where sides match).

    ``tile`` bounds what the codec computes at once, in voxels along each axis; left out, memory decides. ``copies``
    adds that many augmented encodings of every training case, against memorisation of a small cohort, with their label
    volumes measured again; ``augment`` says how far they go, by default not far.
    """

    mirror: bool = False
    copies: Annotated[int, Field(ge=0)] = 0
    augment: CopiesConfig = CopiesConfig()
    tile: Positive | None = None

    @model_validator(mode="after")
    def _differ(self) -> "LatentsConfig":
        if self.copies and self.augment.values() is None:
            raise ValueError("copies would all equal their case: let latents.augment change something")
        return self
