"""The experiment file as a whole."""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from medgen.config.base import (
    Positive,
    Section,
    Seed,
)
from medgen.config.codec import AutoencoderConfig, LatentsConfig
from medgen.config.data import CovariatesConfig, DataConfig, PrepareConfig
from medgen.config.diffusion import DiffusionConfig, DistilConfig
from medgen.config.product import GenerateConfig, ReportConfig


class InitConfig(Section):
    """A model folder to start from, in place of random weights; ``init: MODEL`` alone fine-tunes codec and network.

    ``codec: frozen`` keeps the codec as it is; ``network: fresh`` takes the codec only.
    """

    model: Path
    codec: Literal["train", "frozen"] = "train"
    network: Literal["train", "fresh"] = "train"


class Config(Section):
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
