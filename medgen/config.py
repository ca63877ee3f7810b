"""The one experiment file, as pydantic models. Unknown keys are errors that name the nearest key.

Options of plug-ins (a codec's widths, a sampler's knobs) are free mappings here and are checked against the
plug-in's signature by :mod:`medgen.registry` before the first stage runs.
"""

import difflib
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from medgen.errors import InputError

Triple = tuple[float, float, float]
IntTriple = tuple[int, int, int]
Options = dict[str, Any]
Positive = Annotated[int, Field(gt=0)]
PatchTriple = tuple[Positive, Positive, Positive]
Seed = Annotated[int, Field(ge=0, lt=2**31)]
Share = Annotated[float, Field(ge=0, lt=1)]
UnitInterval = Annotated[float, Field(ge=0, le=1)]
Weight = Annotated[float, Field(ge=0)]
PerLabel = UnitInterval | dict[str, UnitInterval] | None


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PhantomConfig(_Section):
    """The embedded cohort, used where no data is given."""

    n: Positive = 64
    spacing_mm: Annotated[float, Field(ge=1, le=8)] = 3.0
    seed: Seed = 0
    missing: Share = 0.0


class DataConfig(_Section):
    """Where the cohort comes from: a folder or table, or the phantom.

    ``folds`` is a number of folds, or an nnU-Net ``splits_final.json``: a model is then trained for each fold that has
    seen none of its validation cases.
    """

    root: Path | None = None
    phantom: PhantomConfig | None = None
    format: str | None = None
    options: Options = {}
    validation: Share = 0.2
    folds: Annotated[int, Field(ge=2)] | Path | None = None

    @model_validator(mode="after")
    def _one_source(self) -> "DataConfig":
        if self.phantom is not None and self.root is not None:
            raise ValueError("data needs either 'root' or 'phantom', not both")
        return self


class PrepareConfig(_Section):
    """From scans to arrays; see :class:`medgen.prepare.options.PrepareOptions`."""

    spacing_mm: Annotated[float, Field(gt=0)] | Triple | None = None
    shape: IntTriple | None = None
    stride: Positive | None = None
    n4: bool = False
    register_to: Literal["none", "rigid", "affine"] = "none"
    template: Path | None = None
    crop: Literal["foreground", "none"] = "foreground"
    channels: tuple[str, ...] | None = None


class CovariatesConfig(_Section):
    """Which columns condition the model, and columns derived from others.

    ``spacing`` adds the native voxel size along each axis where it varies. ``text_encoder`` is the folder of the frozen
    encoder that text columns are read with, ``text_tokens`` of each text at most.
    """

    use: tuple[str, ...] | None = None
    schema_file: Path | None = None
    derived: dict[str, str] = {}
    spacing: bool = False
    text_encoder: Path | None = None
    text_tokens: Positive = 64


class TrainingConfig(_Section):
    """What the two trainings share.

    ``minutes`` ends a training early by the clock, the learning rate following whichever of steps and minutes is
    nearer its end; without it a training is a pure function of the config and the machine. ``accumulate`` batches make
    one step. A training that diverges goes back to its last good state at half the learning rate, ``rollbacks`` times
    at most.
    """

    steps: Positive = 2000
    minutes: Annotated[float, Field(gt=0)] | None = None
    batch: Positive = 2
    accumulate: Positive = 1
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    warmup: Annotated[int, Field(ge=0)] = 50
    clip: Annotated[float, Field(gt=0)] = 1.0
    rollbacks: Annotated[int, Field(ge=0)] = 3
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    log_every: Positive = 20
    validate_every: Positive = 250
    checkpoint_seconds: Annotated[float, Field(gt=0)] = 60.0


class CodecTrainingConfig(TrainingConfig):
    """The codec's: small batches of small patches, at a high rate, make most of a short training."""

    learning_rate: Annotated[float, Field(gt=0)] = 2e-3


class AcceptConfig(_Section):
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


class InitConfig(_Section):
    """A model folder to start from, in place of random weights; ``init: MODEL`` alone fine-tunes codec and network.

    ``codec: frozen`` keeps the codec as it is; ``network: fresh`` takes the codec only.
    """

    model: Path
    codec: Literal["train", "frozen"] = "train"
    network: Literal["train", "fresh"] = "train"


class SamplingConfig(_Section):
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


class AugmentConfig(_Section):
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


class LossesConfig(_Section):
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


class AdversaryConfig(_Section):
    """The codec's adversary; of weight 0 there is none. See :class:`medgen.training.adversary.AdversaryOptions`."""

    weight: Weight = 0.0
    feature_matching: Weight = 1.0
    start: Share = 0.3
    ramp: Share = 0.1
    width: Positive = 32
    layers: Positive = 1
    rate: Annotated[float, Field(gt=0)] = 1.0


class AutoencoderConfig(_Section):
    """The codec and its training."""

    kind: str = "wavelet"
    options: Options = {}
    patch: IntTriple | None = None
    losses: LossesConfig = LossesConfig()
    adversary: AdversaryConfig = AdversaryConfig()
    accept: AcceptConfig = AcceptConfig()
    sampling: SamplingConfig = SamplingConfig()
    augment: AugmentConfig = AugmentConfig()
    training: CodecTrainingConfig = CodecTrainingConfig()


class LatentsConfig(_Section):
    """Encoding of the cohort. ``mirror`` adds a left-right flipped encoding of every case (only where sides match).

    ``tile`` bounds what the codec computes at once, in voxels along each axis; left out, memory decides. ``copies``
    adds that many augmented encodings of every training case, against memorisation of a small cohort, with their label
    volumes measured again; ``augment`` says how far they go, by default not far.
    """

    mirror: bool = False
    copies: Annotated[int, Field(ge=0)] = 0
    augment: AugmentConfig = AugmentConfig(
        rotate_degrees=4.0, scale=0.04, translate_voxels=1.0, intensity_scale=0.04, intensity_shift=0.04, gamma=0.1
    )
    tile: Positive | None = None

    @model_validator(mode="after")
    def _differ(self) -> "LatentsConfig":
        if self.copies and self.augment.values() is None:
            raise ValueError("copies would all equal their case: let latents.augment change something")
        return self


class MemorisationConfig(_Section):
    """The memorisation curve: how near samples come to training cases; see :mod:`medgen.training.memorisation`.

    ``samples`` are drawn at each validation on fixed seeds, 0 for none, in ``steps`` of the sampler; ``quantile`` of
    real cases' nearness is where a sample counts as a copy.
    """

    samples: Annotated[int, Field(ge=0)] = 12
    steps: Positive = 8
    quantile: Annotated[float, Field(gt=0, lt=1)] = 0.05


class DiffusionConfig(_Section):
    """The process, its network and its training.

    ``patch``, in latents, mixes random crops with whole latents, a step being whole with the chance ``full_share``
    (:class:`medgen.training.diffusion.Crops`). ``ema`` is the average that the model gets: ``auto`` takes the better on
    held-out cases. ``keep: best`` takes the weights of the best validation whose samples do not copy training cases,
    ``last`` the last; without held-out cases it is the last. ``mask_padding`` leaves padding out of the loss where
    enough other training cases show what is there.
    """

    process: str = "flow"
    process_options: Options = {}
    network: str = "unet"
    network_options: Options = {}
    drop_all: Share = 0.1
    drop_each: Share = 0.1
    patch: PatchTriple | None = None
    full_share: UnitInterval = 0.5
    ema: Literal["auto", "short", "long"] = "auto"
    keep: Literal["best", "last"] = "best"
    mask_padding: bool = True
    memorisation: MemorisationConfig = MemorisationConfig()
    training: TrainingConfig = TrainingConfig(batch=8)


class DistilConfig(_Section):
    """A student that draws in a few steps; left out, samples are drawn by the model itself.

    It learns what ``generate`` says of sampling: guidance and steering are baked in. See
    :class:`medgen.generation.distil.Distillation`.
    """

    kind: str = "trajectory"
    options: Options = {}
    steps: Positive = 4
    teacher_steps: Positive = 16
    reuse: Positive = 8
    drop: Share = 0.1
    training: TrainingConfig = TrainingConfig(steps=1000, batch=8, learning_rate=3e-4)


class GenerateConfig(_Section):
    """The synthetic dataset; ``tile`` is that of :class:`LatentsConfig`, for decoding.

    ``writers`` threads compress and write while the next samples are drawn.
    """

    n: Positive = 16
    where: str = ""
    requests: Path | None = None
    match: Literal["real"] | None = None
    balance: str | None = None
    seed: Seed = 0
    sampler: str = "heun"
    sampler_options: Options = {}
    steps: Positive = 16
    guidance: Annotated[float, Field(ge=0)] = 1.0
    steering: tuple[Options, ...] = ()
    batch: Positive = 1
    writers: Positive | None = None
    tile: Positive | None = None
    format: str = "bids"
    space: Literal["native", "grid"] = "native"
    force: bool = False


class ReportConfig(_Section):
    """Figures the run must reach; missing one ends ``medgen run`` with exit code 3 after everything is written."""

    volume: str | None = None
    min_volume_r: float | None = None
    max_ssim_excess: float | None = None


class Config(_Section):
    """One experiment: one YAML file, one run folder ``runs/NAME``."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    seed: Seed = 0
    device: str = "auto"
    threads: Positive | None = None
    workers: Positive | None = None
    runs: Path = Path("runs")
    licence: str = ""
    init: InitConfig | None = None
    data: DataConfig = DataConfig()
    prepare: PrepareConfig = PrepareConfig()
    covariates: CovariatesConfig = CovariatesConfig()
    autoencoder: AutoencoderConfig = AutoencoderConfig()
    latents: LatentsConfig = LatentsConfig()
    diffusion: DiffusionConfig = DiffusionConfig()
    distil: DistilConfig | None = None
    generate: GenerateConfig = GenerateConfig()
    report: ReportConfig = ReportConfig()

    @field_validator("init", mode="before")
    @classmethod
    def _init(cls, value: Any) -> Any:
        return {"model": value} if isinstance(value, str | Path) and str(value) else value

    @field_validator("device")
    @classmethod
    def _device(cls, value: str) -> str:
        if value not in ("auto", "cpu", "cuda", "mps") and not value.startswith("cuda:"):
            raise ValueError("device is auto, cpu, cuda, cuda:N or mps")
        return value


def load(path: Path, overrides: tuple[str, ...] = ()) -> Config:
    """Read an experiment file and apply ``--set a.b=c`` overrides (values are YAML).

    Raises:
        InputError: the file is missing, is not YAML, or holds something the schema does not know; one sentence.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        raw = yaml.safe_load(text)
        _refuse_twins(yaml.compose(text, Loader=yaml.SafeLoader), path)
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; give an experiment file such as configs/phantom.yaml") from None
    except IsADirectoryError:
        raise InputError(f"{path} is a folder; give an experiment file such as configs/phantom.yaml") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not valid YAML ({' '.join(str(error).split())[:160]}); mend it") from None
    if not isinstance(raw, dict):
        raise InputError(f"{path} is not an experiment file: it must hold keys such as name, data and prepare")
    return build(raw, str(path), overrides)


def build(raw: dict[str, Any], said_in: str, overrides: tuple[str, ...] = ()) -> Config:
    """Validate a mapping, with overrides applied, as a :class:`Config`; ``said_in`` names its source in errors."""
    for override in overrides:
        _override(raw, override)
    try:
        return Config.model_validate(raw)
    except ValidationError as error:
        raise InputError(f"{said_in}: {_sentence(error)}") from None


def _refuse_twins(node: yaml.Node | None, path: Path) -> None:
    """Refuse a key that stands twice in one section: YAML would silently keep the last."""
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            if key.value in seen:
                raise InputError(f"{path} has '{key.value}' twice (line {key.start_mark.line + 1}); keep one")
            seen.add(key.value)
            _refuse_twins(value, path)


def _override(raw: dict[str, Any], text: str) -> None:
    key, separator, value = text.partition("=")
    if not separator or not key.strip():
        raise InputError(f"--set needs KEY=VALUE, such as generate.n=32; '{text}' is not of that form")
    try:
        parsed = yaml.safe_load(value)
    except yaml.YAMLError:
        raise InputError(f"--set {text}: the value is not valid YAML") from None
    *parents, last = key.strip().split(".")
    node = raw
    for parent in parents:
        child = node.setdefault(parent, {})
        if child is None:
            child = node[parent] = {}
        if not isinstance(child, dict):
            raise InputError(f"--set {text}: '{parent}' is a value, not a section")
        node = child
    node[last] = parsed


def _sentence(error: ValidationError) -> str:
    errors = error.errors(include_url=False)
    # A misspelt key also leaves the right one missing: the misspelling is what to mend.
    first = next((e for e in errors if e["type"] == "extra_forbidden"), errors[0])
    where = [str(part) for part in first["loc"]]
    key = ".".join(where)
    if first["type"] == "extra_forbidden":
        known = _fields_at(where[:-1])
        near = difflib.get_close_matches(where[-1], known, n=1, cutoff=0.4)
        hint = f"; did you mean '{near[0]}'?" if near else f" (known: {', '.join(known)})"
        return f"unknown key '{key}'{hint}"
    if first["type"] == "missing":
        return f"key '{key}' is missing"
    message = first["msg"].removeprefix("Value error, ")
    given = "" if first["type"] == "value_error" else f", not {first['input']!r}"
    return f"key '{key}': {message[0].lower()}{message[1:]}{given}" if key else message


def _fields_at(location: list[str]) -> list[str]:
    """Field names of the section at a location such as ["autoencoder", "training"]."""
    section: type[BaseModel] = Config
    for part in location:
        annotation = section.model_fields[part].annotation if part in section.model_fields else None
        candidates = [annotation, *getattr(annotation, "__args__", ())]
        section = next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), section)
    return list(section.model_fields)
