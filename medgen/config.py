"""The one experiment file, as pydantic models. Unknown keys are errors that name the nearest key.

Options of plug-ins (a codec's widths, a sampler's knobs) are free mappings here and are checked against the
plug-in's signature by :mod:`medgen.registry` before the first stage runs.
"""

import difflib
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from medgen.errors import InputError

Triple = tuple[float, float, float]
IntTriple = tuple[int, int, int]
Options = dict[str, Any]
Positive = Annotated[int, Field(gt=0)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]
Share = Annotated[float, Field(ge=0, lt=1)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PhantomConfig(_Section):
    """The embedded cohort, used where no data is given."""

    n: Positive = 64
    spacing_mm: Annotated[float, Field(ge=1, le=8)] = 3.0
    seed: Seed = 0
    missing: Share = 0.0


class DataConfig(_Section):
    """Where the cohort comes from: a folder or table, or the phantom."""

    root: Path | None = None
    phantom: PhantomConfig | None = None
    format: str | None = None
    options: Options = {}
    validation: Share = 0.2

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
    """Which columns condition the model, and columns derived from others."""

    use: tuple[str, ...] | None = None
    schema_file: Path | None = None
    derived: dict[str, str] = {}


class TrainingConfig(_Section):
    """What the two trainings share.

    ``minutes`` ends a training early by the clock, the learning rate following whichever of steps and minutes is
    nearer its end; without it a training is a pure function of the config and the machine.
    """

    steps: Positive = 2000
    minutes: Annotated[float, Field(gt=0)] | None = None
    batch: Positive = 2
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    warmup: Annotated[int, Field(ge=0)] = 50
    clip: Annotated[float, Field(gt=0)] = 1.0
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    log_every: Positive = 20
    validate_every: Positive = 250
    checkpoint_seconds: Annotated[float, Field(gt=0)] = 60.0


class AutoencoderConfig(_Section):
    """The codec and its training."""

    kind: str = "kl"
    options: Options = {}
    patch: IntTriple | None = None
    kl_weight: Annotated[float, Field(ge=0)] = 1e-4
    label_weight: Annotated[float, Field(ge=0)] = 1.0
    training: TrainingConfig = TrainingConfig()


class LatentsConfig(_Section):
    """Encoding of the cohort. ``mirror`` adds a left-right flipped encoding of every case (only where sides match)."""

    mirror: bool = False


class DiffusionConfig(_Section):
    """The process, its network and its training."""

    process: str = "flow"
    process_options: Options = {}
    network: str = "unet"
    network_options: Options = {}
    drop_all: Share = 0.1
    drop_each: Share = 0.1
    training: TrainingConfig = TrainingConfig(batch=8)


class GenerateConfig(_Section):
    """The synthetic dataset."""

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
    batch: Positive = 1
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
    data: DataConfig = DataConfig()
    prepare: PrepareConfig = PrepareConfig()
    covariates: CovariatesConfig = CovariatesConfig()
    autoencoder: AutoencoderConfig = AutoencoderConfig()
    latents: LatentsConfig = LatentsConfig()
    diffusion: DiffusionConfig = DiffusionConfig()
    generate: GenerateConfig = GenerateConfig()
    report: ReportConfig = ReportConfig()

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
