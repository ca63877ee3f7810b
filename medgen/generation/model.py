"""A model is a folder: ``model.json``, two safetensors files and a README. Nothing is unpickled."""

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from medgen import __version__
from medgen.cohort.joint import Joint
from medgen.cohort.schema import Schema
from medgen.diffusion.process import Process
from medgen.errors import InputError, reason
from medgen.files import atomic, read_json, sha256_file, write_json, write_text
from medgen.generation.card import model_card
from medgen.models.codec import Codec
from medgen.models.condition import ConditionEncoder
from medgen.models.mask import MaskInput
from medgen.models.text import TextEncoderSpec, TextStates
from medgen.registry import resolve
from medgen.steering import chain
from medgen.store.latents import LatentStatistics

FORMAT = 1
WEIGHTS = ("codec.safetensors", "network.safetensors")
TEXT_ENCODER = "texts/encoder.json"
"""In a run folder: where the encoder of its texts lies on this machine."""
LABELS = "labels"
"""Folder of the label model inside the folder of a model whose images follow masks."""


@dataclass(frozen=True)
class Kind:
    """A plug-in and its options, as the registry resolves them."""

    kind: str
    options: Mapping[str, Any]


@dataclass(frozen=True)
class ModelSpec:
    """All of a model but its weights, JSON-able.

    Attributes:
        name: of the experiment.
        channels: image channels in order.
        label_values: original label values by id, background first; empty for a model without labels.
        label_names: their names by id.
        spacing_mm: of the grid the model works on.
        shape: of that grid.
        latent_shape: (C, x, y, z).
        codec: kind and options.
        process: kind and options.
        network: kind and options.
        encoder: the condition encoder (the columns it was trained on, presence flags included).
        schema: the covariates users may ask for.
        joint: their joint distribution over the training cases.
        derived: columns computed from others and from label volumes, as expressions.
        statistics: mean and standard deviation of each latent channel.
        records: geometry and intensity of the training cases, without their names.
        sampling: default sampler, options, steps, guidance, steering (paths in it are relative to the folder).
        trained_on: counts for the model card.
        gates: what gates know of the training cases, plain figures by gate (:mod:`medgen.generation.gates`).
        mask: of a model whose images follow masks: ``stride``, voxels per latent, and ``centre``, the voxel in which
            masks lie; empty for one that draws image and label together.
    """

    name: str
    channels: tuple[str, ...]
    label_values: tuple[int, ...]
    label_names: tuple[str, ...]
    spacing_mm: tuple[float, float, float]
    shape: tuple[int, int, int]
    latent_shape: tuple[int, int, int, int]
    codec: Kind
    process: Kind
    network: Kind
    encoder: Mapping[str, Any]
    schema: list[dict[str, Any]]
    joint: Mapping[str, Any]
    derived: Mapping[str, str]
    statistics: Mapping[str, Any]
    records: list[dict[str, Any]]
    sampling: Mapping[str, Any]
    trained_on: Mapping[str, Any]
    gates: Mapping[str, Any] = field(default_factory=dict)
    mask: Mapping[str, Any] = field(default_factory=dict)

    @property
    def effective_resolution_mm(self) -> tuple[float, ...]:
        """What the codec was measured to keep; the grid's voxel size for models of which it was not measured."""
        measured = self.trained_on.get("codec", {}).get("effective_resolution_mm")
        return tuple(float(mm) for mm in measured) if measured else self.spacing_mm

    @property
    def codec_labels(self) -> int:
        """Label ids that the codec carries beside the image."""
        return 0 if self.mask else len(self.label_values)

    @property
    def mask_input(self) -> MaskInput | None:
        """The masks that its images follow; None where they follow none."""
        return MaskInput(len(self.label_values), int(self.mask["stride"])) if self.mask else None


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to sample: networks in evaluation mode on the device.

    ``labels`` is the label model, where images follow masks.
    """

    spec: ModelSpec
    codec: Codec
    network: torch.nn.Module
    process: Process
    encoder: ConditionEncoder
    schema: Schema
    joint: Joint
    statistics: LatentStatistics
    device: torch.device
    sha256: str
    labels: "LoadedModel | None" = None


def save_model(
    folder: Path, spec: ModelSpec, codec: Mapping[str, torch.Tensor], network: Mapping[str, torch.Tensor]
) -> None:
    """Write a model folder; ``model.json`` last, with the SHA-256 of every other file.

    Where images follow masks, the label model's folder is there already.
    """
    for name, state in zip(WEIGHTS, (codec, network), strict=True):
        with atomic(folder / name) as temporary:
            save_file({key: t.detach().cpu().contiguous() for key, t in state.items()}, temporary)
    write_text(folder / "README.md", model_card(asdict(spec)))
    others = (f"{LABELS}/model.json",) if spec.mask else ()  # which knows the hashes of its own files
    hashes = {name: sha256_file(folder / name) for name in (*WEIGHTS, "README.md", *others)}
    write_json(folder / "model.json", {"format": FORMAT, "medgen": __version__, **asdict(spec), "sha256": hashes})


def read_spec(folder: Path) -> tuple[ModelSpec, str]:
    """The spec of a model folder and the SHA-256 of its ``model.json``.

    Raises:
        InputError: not a model folder, made by a newer medgen, or a file that is missing or was changed.
    """
    path = folder / "model.json"
    if not path.exists():
        raise InputError(f"{folder} is not a model folder: it holds no model.json; give runs/NAME/model")
    raw = read_json(path)
    if not isinstance(raw, dict) or raw.get("format") != FORMAT:
        raise InputError(f"{path} has another format than this medgen ({__version__}) reads; train or convert it again")
    with _damage_named(path):
        return _spec(folder, raw), sha256_file(path)


@contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    """Say of which file it is that keys or types in it are wrong."""
    try:
        yield
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise InputError(f"{path} is damaged ({type(error).__name__}: {error}); copy the model again") from None


def _spec(folder: Path, raw: Mapping[str, Any]) -> ModelSpec:
    for name, expected in raw["sha256"].items():
        if not (folder / name).is_file() or sha256_file(folder / name) != expected:
            raise InputError(f"{folder / name} is missing or not the file model.json describes; copy the model again")
    newer = {"gates", "mask"}  # models made before there were these know nothing of them
    fields = {key: raw[key] for key in ModelSpec.__dataclass_fields__ if key not in newer}
    fields |= {key: raw.get(key, {}) for key in newer}
    for key in ("channels", "label_values", "label_names", "spacing_mm", "shape", "latent_shape"):
        fields[key] = tuple(fields[key])
    for key in ("codec", "process", "network"):
        fields[key] = Kind(**fields[key])
    steering = chain.moved(raw["sampling"].get("steering", ()), lambda path: folder / path)
    fields["sampling"] = {**raw["sampling"], "steering": steering}
    return ModelSpec(**fields)


def load_model(folder: Path, device: torch.device, *, text_encoder: Path | None = None) -> LoadedModel:
    """Load a model folder, weights strictly.

    Args:
        folder: of the model.
        device: where its networks run.
        text_encoder: folder of its text encoder, where that is no longer where it was in training.

    Raises:
        InputError: see :func:`read_spec`; or weights that do not fit the networks.
    """
    spec, sha256 = read_spec(folder)
    with _damage_named(folder / "model.json"):
        encoder, schema = ConditionEncoder.from_json(spec.encoder), Schema.from_json(spec.schema)
        encoder = _with_text_encoder(folder, encoder, text_encoder)
        joint = Joint.from_json(spec.joint)
        statistics = LatentStatistics(tuple(spec.statistics["mean"]), tuple(spec.statistics["std"]))
        codec = build_codec(spec.codec, len(spec.channels), spec.codec_labels)
        network = build_network(spec.network, spec.latent_shape[0], encoder.schema, spec.mask_input)
        process = resolve("diffusion", spec.process.kind, "build")(**spec.process.options)
    for name, module in zip(WEIGHTS, (codec, network), strict=True):
        try:
            module.load_state_dict(load_file(folder / name), strict=True)
        except (SafetensorError, RuntimeError) as error:
            raise InputError(
                f"{folder / name} does not fit the network model.json describes ({reason(error)})"
            ) from None
        module.to(device).eval().requires_grad_(False)
    return LoadedModel(
        spec=spec,
        codec=codec,
        network=network,
        process=process,
        encoder=encoder,
        schema=schema,
        joint=joint,
        statistics=statistics,
        device=device,
        sha256=sha256,
        labels=load_model(folder / LABELS, device, text_encoder=text_encoder) if spec.mask else None,
    )


def remember_text_encoder(run_folder: Path, spec: TextEncoderSpec) -> None:
    """Write down where a run's text encoder lies: beside its models, in none of them."""
    write_json(run_folder / TEXT_ENCODER, {"folder": spec.folder})


def _with_text_encoder(folder: Path, encoder: ConditionEncoder, found: Path | None) -> ConditionEncoder:
    if found is None and encoder.text is not None:
        # A label model lies in a model's folder, a model in its run's.
        beside = (place / TEXT_ENCODER for place in folder.resolve().parents[:2])
        found = next((Path(read_json(path)["folder"]) for path in beside if path.is_file()), None)
    if found is None:
        return encoder
    if encoder.text is None:
        raise InputError(f"{folder} has no text among its conditions, so leave --text-encoder out")
    return replace(encoder, states=TextStates(encoder.text, found))


def build_codec(kind: Kind, image_channels: int, labels: int) -> Codec:
    """A codec with fresh weights."""
    codec: Codec = resolve("models", kind.kind, "build")(image_channels, labels, **kind.options)
    return codec


def build_network(kind: Kind, latent_channels: int, schema: Schema, mask: MaskInput | None = None) -> torch.nn.Module:
    """A denoiser network with fresh weights.

    Raises:
        InputError: it is to follow masks, and its kind follows none.
    """
    build = resolve("models", kind.kind, "build")
    if mask is None:
        network: torch.nn.Module = build(latent_channels, schema, **kind.options)
        return network
    if "mask" not in inspect.signature(build).parameters:
        raise InputError(f"network '{kind.kind}' follows no masks; take diffusion.network adaln_unet, or pairs: joint")
    following: torch.nn.Module = build(latent_channels, schema, mask, **kind.options)
    return following
