"""Which columns condition the model, and their values for every case."""

from collections.abc import Collection, Mapping

from medgen.cohort import derive
from medgen.cohort.joint import Joint
from medgen.cohort.requests import RequestPlan, plan
from medgen.cohort.schema import Covariate, Schema, Value, volume_column, with_ranges
from medgen.errors import InputError
from medgen.models.condition import ConditionEncoder
from medgen.stages.run import Run

_MAX_LABEL_VOLUMES = 8


def conditions(run: Run) -> tuple[Schema, list[dict[str, Value]]]:
    """The columns that condition the model, and their value for every prepared case."""
    c, store = run.config.covariates, run.store
    volumes = [volume_column(name) for name in store.label_names[1:]]
    check_derived(c.derived, store.schema, store.label_values)
    rows: list[dict[str, Value]] = []
    for case in store.cases:
        by_value = {
            value: float(volume)
            for value, name in zip(store.label_values[1:], volumes, strict=True)
            if (volume := case.covariates.get(name)) is not None
        }
        rows.append(derive.derive(c.derived, by_value, case.covariates))
    known = store.schema.joined(Schema(tuple(Covariate(name) for name in c.derived)))
    use = c.use
    if use is None:
        many = len(volumes) > _MAX_LABEL_VOLUMES
        use = tuple(n for n in known.names if not (many and n in volumes))
    training = [rows[i] for i in run.train_cases()]
    chosen = with_ranges(known.only(use), training)
    # A column without any value in training can be asked for by nobody.
    kept = [n for n in chosen.names if any(row.get(n) is not None for row in training)]
    return chosen.only(kept), rows


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
    joint = fit_joint(run)
    plan_of(run, joint)
    volume, known = run.config.report.volume, joint.schema.names
    if volume is not None and volume not in known:
        raise InputError(f"report.volume '{volume}' is no condition of the model (they are: {', '.join(known)})")


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
        row: dict[str, Value] = {"has_label": "yes" if case.has_label else "no"}
        row |= {
            f"has_{n}": "yes" if there else "no" for n, there in zip(store.channels, case.channels_present, strict=True)
        }
        flags.append(row)
    mixed = [n for n in (flags[0] if flags else {}) if len({row[n] for row in flags}) > 1]
    return Schema(tuple(Covariate(n, "categorical", levels=("no", "yes")) for n in mixed)), flags


def fit_encoder(run: Run) -> tuple[ConditionEncoder, list[dict[str, Value]]]:
    """The condition encoder fitted on training cases, and the rows of all cases."""
    schema, rows = conditions(run)
    flags_schema, flags = presence(run)
    whole = [{**row, **flag} for row, flag in zip(rows, flags, strict=True)]
    return ConditionEncoder.fit(schema.joined(flags_schema), [whole[i] for i in run.train_cases()]), whole
