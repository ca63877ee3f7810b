"""Which columns condition the model, and their values for every case."""

from collections.abc import Collection, Mapping
from dataclasses import replace

from medgen.cohort import derive
from medgen.cohort.joint import Joint
from medgen.cohort.requests import RequestPlan, plan
from medgen.cohort.schema import SPACING_COLUMNS, Covariate, Schema, Value, volume_column, with_ranges
from medgen.errors import InputError
from medgen.evaluation.reference import LEAST
from medgen.models.condition import ConditionEncoder
from medgen.models.text import TextStates
from medgen.prepare.grid import GeometryRecord
from medgen.stages.ancestor import start_encoder
from medgen.stages.masks import follows_masks
from medgen.stages.run import Run
from medgen.steering import chain
from medgen.steering.context import Known

_MAX_LABEL_VOLUMES = 8


def conditions(run: Run) -> tuple[Schema, list[dict[str, Value]]]:
    """The columns that condition the model, and their value for every prepared case."""
    c, store = run.config.covariates, run.store
    volumes = [volume_column(name) for name in store.label_names[1:]]
    check_derived(c.derived, store.schema, store.label_values)
    rows = [derived_row(run, case.covariates) for case in store.cases]
    known = store.schema.joined(Schema(tuple(Covariate(name) for name in c.derived)))
    use = c.use
    if c.spacing:
        varying = _spacing(run, rows)
        known = known.joined(Schema(varying))
        use = None if use is None else tuple(dict.fromkeys([*use, *(v.name for v in varying)]))
    if use is None:
        many = len(volumes) > _MAX_LABEL_VOLUMES
        use = tuple(n for n in known.names if not (many and n in volumes))
    training = [rows[i] for i in run.train_cases()]
    chosen = with_ranges(_read_texts(run, known.only(use)), training)
    # A column without any value in training can be asked for by nobody.
    kept = [n for n in chosen.names if any(row.get(n) is not None for row in training)]
    return chosen.only(kept), rows


def derived_row(run: Run, covariates: Mapping[str, Value]) -> dict[str, Value]:
    """A case's covariates with the columns derived from them."""
    store = run.store
    by_value = {
        value: float(volume)
        for value, name in zip(store.label_values[1:], store.label_names[1:], strict=True)
        if (volume := covariates.get(volume_column(name))) is not None
    }
    return derive.derive(run.config.covariates.derived, by_value, covariates)


def _spacing(run: Run, rows: list[dict[str, Value]]) -> tuple[Covariate, ...]:
    """Put the cases' native spacing into their rows; the columns of the axes along which it varies."""
    if twins := [n for n in SPACING_COLUMNS if n in run.store.schema]:
        raise InputError(f"covariates.spacing: the cohort has a column '{twins[0]}' of its own; use one of the two")
    known = [bool(case.geometry) for case in run.store.cases]  # the doctor foresees a store without
    if not all(known):
        return ()
    sizes = [GeometryRecord.from_json(case.geometry).native_spacing_mm for case in run.store.cases]
    training = [sizes[i] for i in run.train_cases()]
    vary = [axis for axis in range(3) if len({size[axis] for size in training}) > 1]
    if not vary and training:
        same = " x ".join(f"{s:g}" for s in training[0])
        raise InputError(f"covariates.spacing: every training case has voxels of {same} mm; set it to false")
    for row, size in zip(rows, sizes, strict=True):
        row |= {SPACING_COLUMNS[axis]: size[axis] for axis in vary}
    return tuple(Covariate(SPACING_COLUMNS[axis], unit="mm") for axis in vary)


def _read_texts(run: Run, schema: Schema) -> Schema:
    """The schema with its text columns as the text encoder reads them."""
    encoder = run.text_encoder
    texts = [c.name for c in schema.covariates if c.is_text]
    if texts and encoder is None:
        raise InputError(
            f"the condition '{texts[0]}' is a text, and covariates.text_encoder names no folder of a text encoder; "
            "name one, or leave the column out with covariates.use"
        )
    if encoder is None:
        return schema
    if not texts:
        raise InputError(
            "covariates.text_encoder is set, but no condition is a text; name text columns in data.options.texts or "
            "give them the kind text in covariates.schema_file"
        )
    tokens, width = encoder.tokens, encoder.width
    return Schema(tuple(replace(c, tokens=tokens, width=width) if c.is_text else c for c in schema.covariates))


def fit_joint(run: Run) -> Joint:
    """The joint distribution of the conditions over the training cases."""
    schema, rows = conditions(run)
    return Joint.fit(schema, [rows[i] for i in run.train_cases()])


def plan_of(run: Run, joint: Joint) -> RequestPlan:
    """What the config asks of the samples."""
    g = run.config.generate
    return plan(joint.schema, joint, where=g.where, table=g.requests, match=g.match, balance=g.balance, force=g.force)


def check_requests(run: Run) -> None:
    """Refuse conditions, requests and bounds that cannot be met, before anything is trained.

    Raises:
        InputError: naming the key of the config.
    """
    g, joint = run.config.generate, fit_joint(run)
    asked = plan_of(run, joint).columns
    texts = [c.name for c in conditions(run)[0].covariates if c.is_text]
    if run.config.distil is not None and texts:
        raise InputError(f"distil: the condition '{texts[0]}' is a text, and texts cannot be distilled; remove distil")
    labels = () if follows_masks(run) else tuple(run.store.label_names)
    chain.check(g.steering, g.guidance, Known(joint, labels, told_by_masks(run)))
    _check_decided(run, joint, asked)
    volume, known = run.config.report.volume, joint.schema.names
    if volume is not None and volume not in known:
        raise InputError(f"report.volume '{volume}' is no condition of the model (they are: {', '.join(known)})")
    _check_fidelity(run)


def _check_decided(run: Run, joint: Joint, asked: Collection[str]) -> None:
    """Refuse what steering decides and something else would have to."""
    decided = chain.decides(run.config.generate.steering, joint.schema)
    if both := sorted(decided.intersection(asked)):
        raise InputError(f"'{both[0]}' is asked for by the request and by generate.steering; ask for it in one of them")
    if decided and run.config.distil is not None:
        raise InputError(
            f"distil: generate.steering decides '{min(decided)}', which a student could not be asked about; remove one"
        )


def _check_fidelity(run: Run) -> None:
    """Refuse what the protocol of the report cannot measure; a label model has no images to measure."""
    store = run.store
    if run.config.report.fidelity is None or not store.channels:
        return
    if len(store.label_values) < 2:
        raise InputError("report.fidelity needs a cohort with labels, for its segmenter; remove the key")
    fewest = min(len(run.train_cases()), len(run.held_out_cases()))
    if fewest < LEAST or run.config.generate.n < LEAST:
        what = f"{fewest} cases are on one side" if fewest < LEAST else f"generate.n is {run.config.generate.n}"
        raise InputError(
            f"report.fidelity compares at least {LEAST} training cases, held-out cases and samples, but {what}; raise "
            "data.validation or generate.n, or remove the key"
        )


def check_derived(expressions: Mapping[str, str], schema: Schema, labels: Collection[int] | None) -> None:
    """Check every derived covariate; a later one may name an earlier one.

    Raises:
        InputError: see :func:`medgen.cohort.derive.check`.
    """
    columns = [c.name for c in schema.covariates if c.is_numeric]
    for name, expression in expressions.items():
        derive.check(expression, columns, labels)
        columns.append(name)


def presence(run: Run) -> tuple[Schema, list[dict[str, Value]]]:
    """Flags of what a case has, for cohorts where that differs; generation asks for "yes" everywhere."""
    store = run.store
    flags: list[dict[str, Value]] = []
    for case in store.cases:
        # A mask says by itself that it is not known.
        row: dict[str, Value] = {} if follows_masks(run) else {"has_label": "yes" if case.has_label else "no"}
        row |= {
            f"has_{n}": "yes" if there else "no" for n, there in zip(store.channels, case.channels_present, strict=True)
        }
        flags.append(row)
    mixed = [n for n in (flags[0] if flags else {}) if len({row[n] for row in flags}) > 1]
    return Schema(tuple(Covariate(n, "categorical", levels=("no", "yes")) for n in mixed)), flags


def told_by_masks(run: Run) -> frozenset[str]:
    """What a label map says, its volumes and what is derived from them, where images follow masks; else nothing."""
    if not follows_masks(run):
        return frozenset()
    volumes = (volume_column(name) for name in run.store.label_names[1:])
    return frozenset(volumes).union(run.config.covariates.derived)


def fit_encoder(run: Run) -> tuple[ConditionEncoder, list[dict[str, Value]]]:
    """The condition encoder fitted on training cases, and the rows of all cases.

    What a label map says is no condition of images that follow masks: two answers to one question could differ.
    """
    schema, rows = conditions(run)
    told = told_by_masks(run)
    schema = schema.only([name for name in schema.names if name not in told])
    flags_schema, flags = presence(run)
    whole = [{**row, **flag} for row, flag in zip(rows, flags, strict=True)]
    fitted = ConditionEncoder.fit(schema.joined(flags_schema), [whole[i] for i in run.train_cases()])
    if run.text_encoder is not None:
        states = TextStates(run.text_encoder, cache=run.folder / "texts" / "states.safetensors")
        fitted = replace(fitted, text=run.text_encoder, states=states)
    return start_encoder(run, fitted), whole
