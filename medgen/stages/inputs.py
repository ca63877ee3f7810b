"""What each stage's result depends on: its part of the config, and what it reads from outside the run folder."""

from typing import Any

from medgen.edit import chain as edits
from medgen.files import read_json, sha256_file
from medgen.generation.masks import given_identity
from medgen.stages import copies, data, folds, quality
from medgen.stages.ancestor import hashed, is_frozen
from medgen.stages.masks import follows_masks, label_run
from medgen.stages.run import Run
from medgen.steering import chain
from medgen.store.run_state import STATE
from medgen.training.distributed import world

_SAMPLING = {"sampler", "sampler_options", "steps", "guidance", "steering", "gates"}
# They change no weight of a training that reaches its end.
_UNHASHED = {"log_every", "validate_every", "checkpoint_seconds", "rollbacks"}


def phantom(run: Run) -> Any:
    """Of stage cohort."""
    return run.phantom.model_dump(exclude={"n"}) if run.phantom else None


def _training(section: Any) -> Any:
    raw = section.model_dump(mode="json", exclude={"accept"})
    raw["training"] = {k: v for k, v in raw["training"].items() if k not in _UNHASHED}
    if raw["training"]["accumulate"] == 1:
        del raw["training"]["accumulate"]  # what is off adds nothing, so that older runs are not trained again
    # Ranks take batches of their own: more processes are another training.
    return raw if world().size == 1 else {**raw, "processes": world().size}


def prepared(run: Run) -> Any:
    """Of stage prepared."""
    if run.fold is not None:
        hidden = [sorted(run.fold.hidden)] if run.fold.hidden else []
        return [read_json(run.fold.shared / "prepared" / "index.json"), sorted(run.fold.sides.items()), *hidden]
    later = {"phantom", "root", "folds", "unlabelled", "segmenter_steps"}  # of other stages
    source = run.config.data.model_dump(mode="json", exclude=later)
    columns = run.config.covariates.schema_file
    schema = sha256_file(columns) if columns and columns.is_file() else None
    return {
        "data": source,
        "schema": schema,
        "files": data.fingerprint(run),
        "prepare": run.prepare_options().to_json(),
        "seed": run.config.seed,
    }


def codec(run: Run) -> Any:
    """Of stage autoencoder."""
    # A codec that is kept as it is depends on nothing that the config says of its training.
    how = "frozen" if is_frozen(run) else _training(run.config.autoencoder)
    weights = run.config.autoencoder.losses.perceptual_weights
    by_content = [sha256_file(weights)] if weights and weights.is_file() else []
    return [how, run.config.seed, *by_content, *hashed(run, "autoencoder"), *_route(run)]


def _route(run: Run) -> list[str]:
    """What adds nothing to a hash where image and label share the latent, as they always did."""
    return [run.config.pairs] if follows_masks(run) else []


def label_model(run: Run) -> Any:
    """All that the label model's own stages depend on, beside the prepared cohort."""
    inner = label_run(run)
    sampling = inner.config.generate.model_dump(mode="json", include=_SAMPLING)
    return [codec(inner), latents(inner), diffusion(inner), sampling, run.config.licence]


def latents(run: Run) -> Any:
    """Of stage latents."""
    copied = bool(run.config.latents.copies)
    mine = run.config.latents.model_dump(mode="json", exclude=set() if copied else {"copies", "augment"})
    more = [*([copies.VERSION] if copied else []), *hashed(run, "latents")]
    return [mine, *more] if more else mine


def diffusion(run: Run) -> Any:
    """Of stage diffusion."""
    d = run.config.diffusion
    # Which weights are kept depends on when they are validated.
    how = [_training(d), d.training.validate_every]
    return [how, run.covariate_options(), run.config.seed, *hashed(run, "diffusion")]


def model(run: Run) -> Any:
    """Of stage model."""
    # What its card says beside that. Thresholds that a codec passes change no model.
    return [
        run.config.generate.model_dump(mode="json", include=_SAMPLING),
        chain.recorded(run.config.generate.steering),  # another model in the same folder is another steering
        run.config.licence,
        quality.shortfall(run),
    ]


def distilled(run: Run) -> Any:
    """Of stage distilled."""
    return [_training(run.config.distil), run.config.seed] if run.config.distil else []


def synthetic(run: Run) -> Any:
    """Of stage synthetic."""
    g = run.config.generate
    table = sha256_file(g.requests) if g.requests and g.requests.is_file() else None
    how = g.model_dump(mode="json", exclude={"batch", "n", "writers", "masks", "edits"})
    masks: list[Any] = [given_identity(g.masks.expanduser())] if g.masks else []
    masks += [edits.recorded(g.edits)] if g.edits else []
    return [how, chain.recorded(g.steering), table, run.gate_setting().recorded(), *masks]


def report(run: Run) -> Any:
    """Of stage report."""
    off = set() if run.config.report.fidelity else {"fidelity"}
    return [run.config.report.model_dump(mode="json", exclude=off), quality.shortfall(run)]


def combined(run: Run) -> Any:
    """Of the dataset of all folds."""
    samples = [read_json(fold.folder / STATE)["synthetic"]["result"] for fold in folds.fold_runs(run)]
    store = read_json(run.folder / "prepared" / "index.json")
    return [run.config.generate.format, samples, folds.outer(run), data.fingerprint(run), store]
