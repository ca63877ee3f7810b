"""One experiment under way: what every stage reads, and what is refused before the first one runs."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import yaml

from medgen.cohort import derive
from medgen.cohort.schema import Covariate, Schema
from medgen.config import Config, DistilConfig, PhantomConfig, TrainingConfig
from medgen.edit import chain as edits
from medgen.errors import InputError, reason
from medgen.generation import distil
from medgen.generation.gates.setting import Setting
from medgen.generation.model import Kind, LoadedModel, build_codec, build_network, load_model, read_spec
from medgen.models.condition import Condition
from medgen.models.discriminator import smallest_patch
from medgen.models.mask import MaskInput
from medgen.models.seam import Noise
from medgen.models.text import TextEncoderSpec
from medgen.prepare.options import PrepareOptions
from medgen.registry import check_options, resolve
from medgen.steering import chain
from medgen.store.prepared import INDEX, Prepared
from medgen.training.loop import Progress, Schedule
from medgen.training.precision import device_of

SEGMENTED = "segmented"
"""Folder, and stage, of the labels made for cases that came without."""
StageProgress = Callable[[str, int, int, str], None]
"""(stage, done, total, remark) -> None."""


@dataclass(frozen=True)
class Fold:
    """A view of a prepared cohort: what one fold of a run is about, or a model that may see few labels.

    Attributes:
        shared: the run folder whose prepared cohort the views share.
        sides: case id -> its side in the training of this view's model; what validates the fold is on ``test``.
        hidden: ids of cases whose label this view does not have.
    """

    shared: Path
    sides: Mapping[str, str]
    hidden: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Run:
    """One experiment under way."""

    config: Config
    folder: Path
    progress: StageProgress
    known_store: Prepared | None = None
    """A prepared cohort that does not lie in the run folder, where there is one (the doctor foresees one)."""
    force: bool = False
    """Go on with a codec below its thresholds."""
    fold: Fold | None = None
    """The fold that this is, where a run goes fold by fold."""

    @cached_property
    def phantom(self) -> PhantomConfig | None:
        """The embedded cohort, where no data is named."""
        data = self.config.data
        return None if data.root else (data.phantom or PhantomConfig())

    @property
    def root(self) -> Path:
        """Where the cohort lies."""
        return self.folder / "cohort" if self.phantom else Path(str(self.config.data.root)).expanduser()

    @cached_property
    def device(self) -> torch.device:
        """Where networks run."""
        return device_of(self.config.device)

    @cached_property
    def ancestor(self) -> LoadedModel | None:
        """The model that ``init`` names, on the CPU."""
        init = self.config.init
        return load_model(init.model.expanduser(), torch.device("cpu")) if init else None

    @cached_property
    def ancestor_sha256(self) -> str | None:
        """Of the model that ``init`` names."""
        return read_spec(self.config.init.model.expanduser())[1] if self.config.init else None

    def stage_progress(self, stage: str) -> Progress:
        """Progress of one stage."""

        def tell(done: int, total: int, remark: str = "") -> None:
            self.progress(stage, done, total, remark)

        return tell

    def gate_setting(self) -> Setting:
        """What a draw must pass."""
        g = self.config.generate.gates
        return Setting(g.kinds, g.others, g.attempts, g.most)

    def codec_kind(self) -> Kind:
        """The codec."""
        return Kind(self.config.autoencoder.kind, self.config.autoencoder.options)

    def network_kind(self) -> Kind:
        """The denoiser network."""
        return Kind(self.config.diffusion.network, self.config.diffusion.network_options)

    def codec_stride(self) -> int:
        """Voxels a latent."""
        return _with_known(resolve("models", self.config.autoencoder.kind, "stride"), self.config.autoencoder.options)

    def grid_multiple(self) -> int:
        """What the prepared grid's extents must be multiples of."""
        network = resolve("models", self.config.diffusion.network, "factor")
        return self.codec_stride() * _with_known(network, self.config.diffusion.network_options)

    def prepare_options(self) -> PrepareOptions:
        """Options of the prepare stage."""
        c = self.config.prepare
        spacing = (c.spacing_mm,) * 3 if isinstance(c.spacing_mm, float | int) else c.spacing_mm
        return PrepareOptions(
            spacing_mm=spacing,
            shape=c.shape,
            stride=c.stride or self.grid_multiple(),
            n4=c.n4,
            register=c.register_to,
            template=c.template,
            crop=c.crop,
            channels=c.channels,
        )

    def covariate_options(self) -> Any:
        """What the conditions depend on, for hashing."""
        c = self.config.covariates
        text = c.schema_file.read_text() if c.schema_file and c.schema_file.exists() else None
        # What is off adds nothing, so that older runs are not trained again for a key they never used.
        newer = {"spacing": bool(c.spacing), "text_encoder": bool(c.text_encoder), "text_tokens": bool(c.text_encoder)}
        used = c.model_dump(mode="json", exclude={key for key, on in newer.items() if not on})
        encoder = self.text_encoder
        return [used, text] if encoder is None else [{**used, "text_encoder": encoder.key}, text]

    @cached_property
    def text_encoder(self) -> TextEncoderSpec | None:
        """The frozen encoder of text columns, where there is one."""
        c = self.config.covariates
        return TextEncoderSpec.of(c.text_encoder, c.text_tokens) if c.text_encoder else None

    def config_text(self) -> str:
        """The resolved config as YAML."""
        return yaml.safe_dump(self.config.model_dump(mode="json"), sort_keys=False)

    @cached_property
    def prepared(self) -> Prepared:
        """The prepared cohort, with the labels it came with."""
        return self.known_store or Prepared.open(self.folder / "prepared")

    @property
    def store(self) -> Prepared:
        """The prepared cohort, with the labels that stage segmented made where there are such."""
        made = self.known_store is None and self.config.data.unlabelled == "segment"
        return self._segmented if made and (self.folder / SEGMENTED / INDEX).is_file() else self.prepared

    @cached_property
    def _segmented(self) -> Prepared:
        return self.prepared.labelled_by(self.folder / SEGMENTED)

    def train_cases(self) -> list[int]:
        """Indices of training cases."""
        return list(self.store.indices("train"))

    def held_out_cases(self) -> list[int]:
        """Indices of validation cases."""
        return list(self.store.indices("val"))


def _with_known(function: Callable[..., int], options: Mapping[str, Any]) -> int:
    known = function.__kwdefaults__ or {}
    return function(**{k: v for k, v in options.items() if k in known})


def check(run: Run) -> None:
    """Everything that can be refused before the first stage runs."""
    c = run.config
    resolve("models", c.autoencoder.kind, "stride")  # what makes a module of that room a codec
    resolve("models", c.diffusion.network, "factor")  # and what makes one a denoiser
    check_options("models", c.autoencoder.kind, "build", c.autoencoder.options)
    check_options("models", c.diffusion.network, "build", c.diffusion.network_options)
    check_options("diffusion", c.diffusion.process, "build", c.diffusion.process_options)
    check_options("sampling", c.generate.sampler, "sample", c.generate.sampler_options)
    _check_drawing(run)
    if c.distil is not None:
        distil.check(distillation(c.distil, c.seed))
    chain.check(c.generate.steering, c.generate.guidance)
    edits.check(c.generate.edits)
    if c.generate.masks is not None and not c.generate.masks.expanduser().exists():
        raise InputError(f"generate.masks {c.generate.masks} does not exist; name label maps, or remove the key")
    run.gate_setting().check()
    resolve("formats", c.generate.format, "open")
    if run.phantom is None and not run.root.exists():
        raise InputError(f"data.root {run.root} does not exist; name the folder of your cohort")
    multiple, stride = run.grid_multiple(), c.prepare.stride
    if stride and stride % multiple:
        raise InputError(
            f"prepare.stride {stride} must be a multiple of {multiple} (codec stride times network levels)"
        )
    run.text_encoder  # noqa: B018 (looks at its folder)
    for expression in c.covariates.derived.values():
        derive.check(expression)
    if c.prepare.shape and any(n % multiple for n in c.prepare.shape):
        raise InputError(f"prepare.shape {list(c.prepare.shape)} must be multiples of {multiple} along each axis")
    run.prepare_options()  # looks at the rest of them
    patch, codec_stride = c.autoencoder.patch, run.codec_stride()
    if patch and any(n % codec_stride for n in patch):
        raise InputError(f"autoencoder.patch {list(patch)} must be multiples of {codec_stride}, the codec's stride")
    adversary = c.autoencoder.adversary
    if patch and adversary.weight > 0 and min(patch) < smallest_patch(adversary.layers):
        least = smallest_patch(adversary.layers)
        raise InputError(
            f"autoencoder.patch {list(patch)} is too small for the adversary: {adversary.layers} layers need {least} "
            "voxels along each axis; enlarge it or set autoencoder.adversary.weight to 0"
        )
    if patch and adversary.weight > 0 and any(n % 2 for n in patch):
        raise InputError(f"autoencoder.patch {list(patch)} must be even along each axis for the adversary's bands")
    perceptual = c.autoencoder.losses.perceptual_weights
    if perceptual is not None and not perceptual.is_file():
        raise InputError(f"autoencoder.losses.perceptual_weights {perceptual} does not exist; give a MedicalNet file")
    _check_crops(run)
    _build_networks(run)
    if c.threads:
        torch.set_num_threads(c.threads)
    device_of(c.device)


def _check_crops(run: Run) -> None:
    """Refuse latent patches that the network cannot take."""
    d = run.config.diffusion
    if d.patch is None:
        if d.full_share not in (1.0, type(d).model_fields["full_share"].default):
            raise InputError("diffusion.full_share says how often a step is whole beside patches; set diffusion.patch")
        return
    multiple = _with_known(resolve("models", d.network, "factor"), d.network_options)
    if any(n % multiple for n in d.patch):
        raise InputError(f"diffusion.patch {list(d.patch)} must be multiples of {multiple}, the network's factor")
    try:
        resolve("models", d.network, "coordinates")
    except InputError:
        raise InputError(
            f"diffusion.patch: network '{d.network}' is not told where a crop lies; remove the key or take network unet"
        ) from None


def distillation(c: DistilConfig, seed: int) -> distil.Distillation:
    """A config section as values."""
    return distil.Distillation(
        kind=c.kind,
        options=c.options,
        steps=c.steps,
        teacher_steps=c.teacher_steps,
        batch=c.training.batch,
        reuse=c.reuse,
        learning_rate=c.training.learning_rate,
        drop=c.drop,
        seed=seed,
    )


def _check_drawing(run: Run) -> None:
    """Build the process and draw without a step: both then say what they think of their options' values."""
    d, g = run.config.diffusion, run.config.generate
    process = resolve("diffusion", d.process, "build")(**d.process_options)
    solver = resolve("sampling", g.sampler, "sample")

    def first_level_only(model: Any, x: Any, sigmas: Any, cond: Condition, *, noise: Noise) -> Any:
        return solver(model, x, sigmas[:1], cond, noise=noise, **g.sampler_options)

    shape, nothing = (1, 1, 1, 1, 1), torch.zeros(1, 0)
    cond = Condition((), nothing, nothing.bool())
    process.sample(None, shape, cond, first_level_only, lambda step: torch.zeros(shape), steps=g.steps)


def _build_networks(run: Run) -> None:
    """Build both networks without memory: options that do not fit each other are refused before anything runs."""
    some = Schema((Covariate("age"),))
    mask = MaskInput(2, run.codec_stride()) if run.config.pairs == "mask" else None

    def some_codec() -> None:
        try:
            build_codec(run.codec_kind(), 1, 2)
        except InputError:
            build_codec(run.codec_kind(), 1, 0)  # a kind without labels: the cohort may have none

    for section, build in (
        ("autoencoder.options", some_codec),
        ("diffusion.network_options", lambda: build_network(run.network_kind(), 1, some, mask)),
    ):
        try:
            with torch.device("meta"):
                build()
        except InputError:
            raise
        except (ValueError, TypeError, ZeroDivisionError, IndexError, RuntimeError) as error:
            raise InputError(f"{section} do not make a network ({reason(error)}); mend them") from None


def schedule_of(t: TrainingConfig, profiles: tuple[str, ...] = ("long",)) -> Schedule:
    """A config section as the loop takes it, with the averages to be kept."""
    return Schedule(
        steps=t.steps,
        minutes=t.minutes,
        warmup=t.warmup,
        clip=t.clip,
        precision=t.precision,
        log_every=t.log_every,
        validate_every=t.validate_every,
        checkpoint_seconds=t.checkpoint_seconds,
        accumulate=t.accumulate,
        rollbacks=t.rollbacks,
        profiles=profiles,
    )
