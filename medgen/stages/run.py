"""One experiment under way: what every stage reads, and what is refused before the first one runs."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import yaml

from medgen.config import Config, DistilConfig, PhantomConfig, TrainingConfig
from medgen.errors import InputError
from medgen.generation import distil
from medgen.generation.gates.setting import Setting
from medgen.generation.model import Kind, LoadedModel, load_model, read_spec
from medgen.models.text import TextEncoderSpec
from medgen.prepare.options import PrepareOptions
from medgen.registry import resolve
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

    @cached_property
    def of_labels(self) -> "Run | None":
        """The label model's experiment as the config says it, where images follow masks; its cohort is none yet."""
        return replace(self, config=self.config.of_labels()) if self.config.pairs == "mask" else None

    def codec_kind(self) -> Kind:
        """The codec."""
        return Kind(self.config.autoencoder.kind, self.config.autoencoder.options)

    def network_kind(self) -> Kind:
        """The denoiser network."""
        return Kind(self.config.diffusion.network, self.config.diffusion.network_options)

    def codec_stride(self) -> int:
        """Voxels a latent."""
        return with_known(resolve("models", self.config.autoencoder.kind, "stride"), self.config.autoencoder.options)

    def grid_multiple(self) -> int:
        """What the prepared grid's extents must be multiples of."""
        network = resolve("models", self.config.diffusion.network, "factor")
        multiple = self.codec_stride() * with_known(network, self.config.diffusion.network_options)
        return math.lcm(multiple, self.of_labels.grid_multiple()) if self.of_labels else multiple

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
        there = self.known_store is None and (self.folder / SEGMENTED / INDEX).is_file()
        # What an earlier cohort lacked says nothing of one in which every case has its label by now.
        return self._segmented if there and self.lacks_labels else self.prepared

    @property
    def lacks_labels(self) -> bool:
        """Whether the config asks for labels where cases have none, and some training case has one and some has none.

        Raises:
            InputError: it is asked for, and no training case has a label to learn from.
        """
        if self.config.data.unlabelled != "segment":
            return False
        store = self.prepared
        labelled = {store.cases[i].has_label for i in store.indices("train")}
        if True not in labelled:
            raise InputError("data.unlabelled: segment needs labelled training cases to learn from, and there is none")
        return False in labelled

    @cached_property
    def _segmented(self) -> Prepared:
        return self.prepared.labelled_by(self.folder / SEGMENTED)

    def train_cases(self) -> list[int]:
        """Indices of training cases."""
        return list(self.store.indices("train"))

    def held_out_cases(self) -> list[int]:
        """Indices of validation cases."""
        return list(self.store.indices("val"))


def named(progress: StageProgress, name: str) -> StageProgress:
    """Progress of a run within a run."""
    return lambda stage, done, total, remark: progress(f"{name} {stage}", done, total, remark)


def with_known(function: Callable[..., int], options: Mapping[str, Any]) -> int:
    """A figure of a kind from those of its options that decide it."""
    known = function.__kwdefaults__ or {}
    return function(**{k: v for k, v in options.items() if k in known})


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
