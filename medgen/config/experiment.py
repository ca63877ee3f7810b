"""The experiment file as a whole."""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from medgen.config.base import (
    Positive,
    Section,
    Seed,
)
from medgen.config.codec import AutoencoderConfig, LatentsConfig
from medgen.config.data import CovariatesConfig, DataConfig, PrepareConfig
from medgen.config.diffusion import DiffusionConfig, DistilConfig
from medgen.config.product import GenerateConfig, ReportConfig
from medgen.config.utility import UtilityConfig


class InitConfig(Section):
    """A model folder to start from, in place of random weights; ``init: MODEL`` alone fine-tunes codec and network.

    ``codec: frozen`` keeps the codec as it is; ``network: fresh`` takes the codec only.
    """

    model: Path
    codec: Literal["train", "frozen"] = "train"
    network: Literal["train", "fresh"] = "train"


class LabelModelConfig(Section):
    """The label model of ``pairs: mask``: its codec and its diffusion; left out, as the experiment's own sections say.

    Of the thresholds in ``autoencoder.accept`` those about labels hold for it.
    """

    autoencoder: AutoencoderConfig | None = None
    diffusion: DiffusionConfig | None = None


class Config(Section):
    """One experiment: one YAML file, one run folder ``runs/NAME``.

    ``pairs`` is how an image gets its label. ``joint``: both share the latent. ``mask``: a label model draws label
    maps, and an image model follows them, or masks that are given (``generate.masks``).
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    seed: Seed = 0
    device: str = "auto"
    threads: Positive | None = None
    workers: Positive | None = None
    runs: Path = Path("runs")
    licence: str = ""
    init: InitConfig | None = None
    pairs: Literal["joint", "mask"] = "joint"
    labels: LabelModelConfig = LabelModelConfig()
    data: DataConfig = DataConfig()
    prepare: PrepareConfig = PrepareConfig()
    covariates: CovariatesConfig = CovariatesConfig()
    autoencoder: AutoencoderConfig = AutoencoderConfig()
    latents: LatentsConfig = LatentsConfig()
    diffusion: DiffusionConfig = DiffusionConfig()
    distil: DistilConfig | None = None
    generate: GenerateConfig = GenerateConfig()
    report: ReportConfig = ReportConfig()
    utility: UtilityConfig = UtilityConfig()

    @model_validator(mode="after")
    def _route(self) -> "Config":
        asked = "labels" in self.model_fields_set and self.labels != LabelModelConfig()
        if self.pairs == "joint" and (asked or self.generate.masks is not None or self.generate.edits):
            key = "labels" if asked else "generate.masks" if self.generate.masks is not None else "generate.edits"
            raise ValueError(f"{key} belongs to the route in which images follow masks; set pairs: mask")
        if self.pairs == "mask" and self.init is not None:
            raise ValueError("init starts from one model, and pairs: mask trains two; remove init")
        if self.pairs == "mask" and self.distil is not None:
            raise ValueError("distil learns from covariates, and with pairs: mask images follow masks; remove distil")
        return self

    def of_labels(self) -> "Config":
        """The experiment of the label model of ``pairs: mask``: what is about images is left out."""
        codec = self.labels.autoencoder or self.autoencoder
        images = {"min_psnr_db": None, "min_ssim": None, "max_l1": None, "min_sharpness": None}
        own = {
            "accept": codec.accept.model_copy(update=images),
            "adversary": codec.adversary.model_copy(update={"weight": 0.0}),
            "losses": codec.losses.model_copy(update={"perceptual": 0.0, "perceptual_weights": None}),
        }
        return self.model_copy(
            update={
                "pairs": "joint",
                "labels": LabelModelConfig(),
                "autoencoder": codec.model_copy(update=own),
                "diffusion": self.labels.diffusion or self.diffusion,
                "generate": self.generate.model_copy(update={"masks": None, "edits": (), "steering": ()}),
            }
        )

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
