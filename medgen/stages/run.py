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
from medgen.config import Config, PhantomConfig, TrainingConfig
from medgen.errors import InputError
from medgen.generation.model import Kind, build_codec, build_network
from medgen.prepare.options import PrepareOptions
from medgen.registry import check_options, resolve
from medgen.store.prepared import Prepared
from medgen.training.loop import Progress, Schedule
from medgen.training.precision import device_of

StageProgress = Callable[[str, int, int, str], None]
"""(stage, done, total, remark) -> None."""


@dataclass(frozen=True)
class Run:
    """One experiment under way."""

    config: Config
    folder: Path
    progress: StageProgress
    known_store: Prepared | None = None
    """A prepared cohort that does not lie in the run folder, where there is one (the doctor foresees one)."""

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

    def stage_progress(self, stage: str) -> Progress:
        """Progress of one stage."""

        def tell(done: int, total: int, remark: str = "") -> None:
            self.progress(stage, done, total, remark)

        return tell

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
        return [c.model_dump(mode="json"), text]

    def config_text(self) -> str:
        """The resolved config as YAML."""
        return yaml.safe_dump(self.config.model_dump(mode="json"), sort_keys=False)

    @cached_property
    def store(self) -> Prepared:
        """The prepared cohort."""
        if self.known_store is not None:
            return self.known_store
        return Prepared.open(self.folder / "prepared")

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
    resolve("formats", c.generate.format, "open")
    if run.phantom is None and not run.root.exists():
        raise InputError(f"data.root {run.root} does not exist; name the folder of your cohort")
    multiple, stride = run.grid_multiple(), c.prepare.stride
    if stride and stride % multiple:
        raise InputError(
            f"prepare.stride {stride} must be a multiple of {multiple} (codec stride times network levels)"
        )
    for expression in c.covariates.derived.values():
        derive.check(expression)
    if c.prepare.shape and any(n % multiple for n in c.prepare.shape):
        raise InputError(f"prepare.shape {list(c.prepare.shape)} must be multiples of {multiple} along each axis")
    run.prepare_options()  # looks at the rest of them
    patch, codec_stride = c.autoencoder.patch, run.codec_stride()
    if patch and any(n % codec_stride for n in patch):
        raise InputError(f"autoencoder.patch {list(patch)} must be multiples of {codec_stride}, the codec's stride")
    _build_networks(run)
    if c.threads:
        torch.set_num_threads(c.threads)
    device_of(c.device)


def _build_networks(run: Run) -> None:
    """Build both networks without memory: options that do not fit each other are refused before anything runs."""
    some = Schema((Covariate("age"),))
    for section, build in (
        ("autoencoder.options", lambda: build_codec(run.codec_kind(), 1, 2)),
        ("diffusion.network_options", lambda: build_network(run.network_kind(), 1, some)),
    ):
        try:
            with torch.device("meta"):
                build()
        except InputError:
            raise
        except (ValueError, TypeError, ZeroDivisionError, IndexError, RuntimeError) as error:
            reason = str(error).strip().split("\n")[0][:160]
            raise InputError(f"{section} do not make a network ({reason}); mend them") from None


def schedule_of(t: TrainingConfig) -> Schedule:
    """A config section as the loop takes it."""
    return Schedule(
        t.steps, t.minutes, t.warmup, t.clip, t.precision, t.log_every, t.validate_every, t.checkpoint_seconds
    )
