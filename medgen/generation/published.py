"""Published weights, converted once to a model folder that :class:`~medgen.generation.generator.Generator` loads."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medgen.compat.imported import Imported
from medgen.compat.source import read_source
from medgen.errors import InputError
from medgen.files import PARTIAL, remove_partials, sha256_file
from medgen.generation.model import WEIGHTS, Kind, ModelSpec, save_model
from medgen.models.condition import ConditionEncoder
from medgen.registry import check_options, resolve

LICENCE = "the source's"


def import_model(
    source: Path, out: Path, *, layout: str, autoencoder: Path | None = None, **options: Any
) -> dict[str, float]:
    """Convert published weights to a model folder.

    Nothing is downloaded. The original networks and medgen's are run on the same input, and nothing is written where
    they differ by more than 1e-5.

    Args:
        source: weight file of both networks or of the denoiser, or a folder with one file of each.
        out: model folder to write.
        layout: kind of published model, a module of ``medgen.compat``: ``brain_ldm`` or ``maisi``.
        autoencoder: weight file of the autoencoder, where ``source`` does not hold it.
        **options: of the layout's ``convert``.

    Returns:
        The largest difference between the original's outputs and ours, by network.

    Raises:
        InputError: an unknown layout or option, ``out`` is not empty, or weights that do not fit.
    """
    convert = resolve("compat", layout, "convert")
    check_options("compat", layout, "convert", options)
    _must_be_free(out)
    read = read_source(source, autoencoder)
    imported: Imported = convert(read, **options)
    weights = {"network": sha256_file(read.network_file), "autoencoder": sha256_file(read.autoencoder_file)}
    save_model(out, _spec(imported, layout, weights), imported.codec_state, imported.network_state)
    return dict(imported.differences)


def _must_be_free(out: Path) -> None:
    """A new folder, an empty one, or what a killed import left: a model's files without ``model.json``."""
    if not out.exists():
        return
    ours = {*WEIGHTS, "README.md"}
    if not out.is_dir() or any(p.name not in ours and not p.name.startswith(PARTIAL) for p in out.iterdir()):
        raise InputError(f"{out} already holds something; give a new folder for the model")
    remove_partials(out)


def _spec(imported: Imported, layout: str, weights: Mapping[str, str]) -> ModelSpec:
    count = len(imported.schema.covariates)
    channels = imported.latent_shape[0]
    return ModelSpec(
        name=imported.name,
        channels=imported.channels,
        label_values=(),
        label_names=(),
        spacing_mm=imported.geometry.target.spacing_mm,
        shape=imported.shape,
        latent_shape=imported.latent_shape,
        codec=Kind(*imported.codec),
        process=Kind(*imported.process),
        network=Kind(*imported.network),
        # Published networks take their covariates as they are.
        encoder=ConditionEncoder(imported.schema, (0.0,) * count, (1.0,) * count).to_json(),
        schema=imported.schema.to_json(),
        joint=imported.joint.to_json(),
        derived={},
        statistics={"mean": [0.0] * channels, "std": [1.0 / imported.scale_factor] * channels},
        records=[
            {"geometry": imported.geometry.to_json(), "intensity": [record.to_json() for record in imported.intensity]}
        ],
        sampling=imported.sampling,
        trained_on={
            "imported": layout,
            "weights_sha256": dict(weights),
            "licence": LICENCE,
            "notes": list(imported.notes),
        },
    )
