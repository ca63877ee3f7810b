"""``init: MODEL``: an experiment that starts from a model instead of random weights."""

from collections.abc import Mapping, Sequence
from typing import Any

from medgen.config import Config
from medgen.errors import InputError
from medgen.files import plain
from medgen.generation.model import Kind, ModelSpec, read_spec
from medgen.models.codec import Codec
from medgen.models.condition import ConditionEncoder
from medgen.models.inherit import codec_state, inherit_encoder, network_state, same_columns, same_labels
from medgen.registry import options_of, resolve
from medgen.stages.run import Run
from medgen.store.latents import LatentStatistics

_NO_WEIGHTS = ("checkpointing", "dropout")  # options of how a network trains: a config may say them otherwise


def with_ancestor(config: Config) -> Config:
    """The config with codec, network and process of the model that ``init`` names.

    Raises:
        InputError: no such model, or the config asks for another kind or option than the model has.
    """
    if config.init is None:
        return config
    spec, _ = read_spec(config.init.model.expanduser())
    a, d = config.autoencoder, config.diffusion
    _agree(spec, a.model_fields_set, "autoencoder", ("kind", "options"), Kind(a.kind, a.options), spec.codec)
    a = a.model_copy(update={"kind": spec.codec.kind, "options": _carried(spec.codec, a.options)})
    if config.init.network == "train":
        said = d.model_fields_set
        network, process = Kind(d.network, d.network_options), Kind(d.process, d.process_options)
        _agree(spec, said, "diffusion", ("network", "network_options"), network, spec.network)
        _agree(spec, said, "diffusion", ("process", "process_options"), process, spec.process)
        d = d.model_copy(
            update={
                "network": spec.network.kind,
                "network_options": _carried(spec.network, d.network_options),
                "process": spec.process.kind,
                "process_options": dict(spec.process.options),
            }
        )
    return config.model_copy(update={"autoencoder": a, "diffusion": d})


def _carried(theirs: Kind, asked: Mapping[str, Any]) -> dict[str, Any]:
    """The model's options, with the config's own of those that change no weight."""
    return {**theirs.options, **{name: value for name, value in asked.items() if name in _NO_WEIGHTS}}


def _agree(spec: ModelSpec, said: set[str], section: str, keys: tuple[str, str], asked: Kind, theirs: Kind) -> None:
    """Refuse what the config says (``said``) otherwise than the model; a kind said otherwise, or one of its options."""
    kind_key, options_key = keys
    if kind_key in said and asked.kind != theirs.kind:
        _differ(spec, f"{section}.{kind_key}", asked.kind, theirs.kind)
    room = "diffusion" if kind_key == "process" else "models"
    defaults = {name: p.default for name, p in options_of(resolve(room, theirs.kind, "build")).items()}
    for name, value in asked.options.items() if options_key in said else ():
        if name in _NO_WEIGHTS:
            continue
        has = theirs.options.get(name, defaults.get(name))
        if plain(value) != plain(has):
            _differ(spec, f"{section}.{options_key}.{name}", value, plain(has))


def _differ(spec: ModelSpec, key: str, asked: object, has: object) -> None:
    raise InputError(
        f"{key} is {asked}, but the model that init names ({spec.name}) has {has}; remove the key or say the same"
    )


def check_ancestor(run: Run) -> None:
    """Refuse a cohort that the model cannot be carried over to.

    Raises:
        InputError: other image channels, or labels that a frozen codec never saw.
    """
    ancestor, init = run.ancestor, run.config.init
    if ancestor is None or init is None:
        return
    theirs, ours = ancestor.spec.channels, run.store.channels
    if theirs != ours:
        raise InputError(
            f"init: the model {ancestor.spec.name} has the image channels {', '.join(theirs)} and the cohort "
            f"{', '.join(ours)}; name the model's in its order in prepare.channels, or take another model"
        )
    d, without_null = run.config.diffusion, getattr(ancestor.network, "without_null", ())
    if init.network == "train" and without_null and (d.drop_all > 0 or d.drop_each > 0):
        raise InputError(
            f"init: the model {ancestor.spec.name} has no null for {', '.join(without_null)}, so nothing can be "
            "dropped in its training; set diffusion.drop_all and diffusion.drop_each to 0"
        )
    if init.codec == "frozen":
        names = run.store.label_names
        known = _codec_labels(ancestor.spec, names)
        strange = [name for i, name in enumerate(names) if i and i not in known]
        if strange:
            raise InputError(
                f"init.codec is frozen, but the codec of {ancestor.spec.name} knows no label {', '.join(strange)} (it "
                f"has {', '.join(ancestor.spec.label_names[1:]) or 'none'}{_elsewhere(ancestor.spec)}); take "
                "init.codec: train"
            )


def _codec_labels(spec: ModelSpec, ours: Sequence[str]) -> dict[int, int]:
    """Our label ids -> those of the model's codec: where images follow masks, it codes none."""
    return same_labels(spec.label_names, ours) if spec.codec_labels else {}


def _elsewhere(spec: ModelSpec) -> str:
    return ", in a label model of its own" if spec.label_names and not spec.codec_labels else ""


def is_frozen(run: Run) -> bool:
    """Whether the codec is kept as the model has it."""
    return run.config.init is not None and run.config.init.codec == "frozen"


def trains_network(run: Run) -> bool:
    """Whether the denoiser starts from the model."""
    return run.config.init is not None and run.config.init.network == "train"


def start_codec(run: Run, fresh: Codec) -> Codec:
    """``fresh``, with the model's weights where there is one."""
    if run.ancestor is not None:
        spec = run.ancestor.spec
        labels = _codec_labels(spec, run.store.label_names) if fresh.labels else {}
        fresh.load_state_dict(codec_state(run.ancestor.codec, fresh, labels), strict=True)
    return fresh


def start_network(run: Run, fresh: Any, encoder: ConditionEncoder) -> Any:
    """``fresh``, with the model's weights where the network starts from one."""
    if run.ancestor is not None and trains_network(run):
        state = network_state(run.ancestor.network, fresh, run.ancestor.encoder, encoder)
        fresh.load_state_dict(state, strict=True)
    return fresh


def start_encoder(run: Run, fitted: ConditionEncoder) -> ConditionEncoder:
    """``fitted``, with the model's centre and scale for the columns whose embedding is taken over."""
    keeps = run.ancestor is not None and trains_network(run)
    return inherit_encoder(fitted, run.ancestor.encoder) if keeps and run.ancestor else fitted


def start_statistics(run: Run) -> LatentStatistics | None:
    """The model's latent statistics where they are kept: for a frozen codec under the model's network.

    Equal latents are then equal for the network. A codec that trains moves its latents, and the old statistics would
    be those of another space.
    """
    return run.ancestor.statistics if run.ancestor is not None and _keeps_statistics(run) else None


def _keeps_statistics(run: Run) -> bool:
    return is_frozen(run) and trains_network(run)


def carried_over(run: Run, ours: ConditionEncoder) -> str:
    """What of a cohort the model knows, as a sentence."""
    assert run.ancestor is not None, "an experiment without init"
    spec, encoder = run.ancestor.spec, run.ancestor.encoder
    labels = _codec_labels(spec, run.store.label_names)
    columns = same_columns(encoder, ours) if trains_network(run) else {}
    new = [n for i, n in enumerate(run.store.label_names) if i and i not in labels]
    new += [n for k, n in enumerate(ours.schema.names) if k not in columns]
    known = f"{len(labels) - (0 in labels)} labels and {len(columns)} columns of the cohort are known to it"
    return f"starts from {spec.name}: {known}" + (f"; new to it: {', '.join(new)}" if new else "")


def lineage(run: Run) -> list[Mapping[str, Any]]:
    """Name, SHA-256 and licence of the model it started from, and of those before it."""
    if run.ancestor is None:
        return []
    spec = run.ancestor.spec
    licence = spec.trained_on.get("licence") or ("the source's" if spec.trained_on.get("imported") else "")
    mine = {"name": spec.name, "sha256": run.ancestor.sha256, "licence": licence}
    return [mine, *spec.trained_on.get("ancestors", [])]


def hashed(run: Run, part: str) -> list[Any]:
    """What ``init`` adds to a stage's part of the config: nothing without it."""
    says = {"autoencoder": True, "latents": _keeps_statistics(run), "diffusion": trains_network(run)}
    return [{"init": run.ancestor_sha256}] if run.ancestor_sha256 and says[part] else []
