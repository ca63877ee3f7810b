"""Whether conditions are obeyed: requested against measured, one condition moved alone, composition, missing entries.

    python benchmarks/conditions.py --data DATA/oasis --minutes 30 [--parts requests sweep readback] [--json FILE]

Our model is trained once on the cohort, and once more for "missing" on a cohort that lacks 30% of its entries at
random. Volumes are measured twice: on the generated label, and by a segmenter trained on the real training cases.

- requests: volumes asked uniformly between the cohort's 5th and 95th percentile against those measured.
- sweep: one column (age) raised while all other conditions and the noise stay those of a case; the slope of a
  tissue's volume, beside the cohort's own at fixed other conditions (least squares over all cases).
- readback: columns that are no volumes, read from images by ridge regression on the segmenter's features and volumes,
  fitted on the training cases; how well that reads held-out cases and samples, as it is.
- and: one volume asked to be large and another small, as two conditions composed, against nothing asked; "joint" asks
  both in one request. Paired by the noise.
- not: the stratum of a volume's upper third asked away; the share of samples in it, against nothing asked.
- missing: what the missing entries cost in CCC, on the same requests with the same noise.

Intervals are of 95%, by bootstrap over samples (or cases). A part that the cohort cannot answer is null.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from diffusion_bench import Bench, arm, loaded, open_bench, parser, shared_codec, yardstick
from diffusion_draw import SEED, Drawn, answered, label_volumes_ml, our_samples, uniform_requests
from sklearn.linear_model import RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from medgen.cohort.requests import Row
from medgen.cohort.schema import volume_column
from medgen.evaluation.reference import Measured, Reference, measure_images
from medgen.files import write_json
from medgen.generation.generator import Generator
from medgen.measure.agreement import agreement
from medgen.measure.bootstrap import bootstrap
from medgen.models.codec import Codec
from medgen.sampling.noise import Key
from medgen.store.prepared import Prepared

PARTS = ("requests", "sweep", "readback", "and", "not", "missing")
AGREEMENT = ("ccc", "r", "slope", "mae", "bias")
MISSING = 0.3
AGES = 5
_LEAST = 4  # held-out cases, on which volumes and ages are read
LARGE, SMALL, UPPER_THIRD = 80.0, 20.0, 100 * 2 / 3


class Arm:
    """Our trained model with all that is needed to draw from it and to measure what comes."""

    def __init__(self, bench: Bench, reference: Reference, codec: Codec, name: str, store: Prepared | None) -> None:
        self.bench, self.reference, self.codec = bench, reference, codec
        self.model = arm(bench, name, store=store)
        self.generator = loaded(bench, self.model)

    def drawn(
        self, name: str, rows: Sequence[Row], keys: Sequence[Key] | None = None, steering: Sequence[Any] = ()
    ) -> Drawn:
        """Samples, one a row."""
        g = self.generator
        if steering:
            g = Generator(g.model, replace(g.drawing, steering=(*g.drawing.steering, *steering)), g.context)
        return our_samples(self.bench, g, self.model.parent, name, rows, self.codec, keys)

    def nothing(self, n: int) -> list[Row]:
        """Rows that ask nothing."""
        return [Row({name: None for name in self.generator.schema.names}, frozenset()) for _ in range(n)]

    def measured(self, drawn: Drawn) -> Measured:
        """Features and volumes by the segmenter."""
        r = self.reference
        n, labels = len(drawn.images), list(drawn.labels)
        return measure_images(list(drawn.images), labels, [r.voxel_ml()] * n, r.segmenter, r.inside, block=r.block)

    def volumes(self, drawn: Drawn) -> dict[str, dict[str, np.ndarray]]:
        """Way of measuring -> volume column -> (n,) ml."""
        own, found = label_volumes_ml(self.reference, drawn), self.measured(drawn).found_ml
        names = self.bench.store.label_names[1:]
        return {
            "generated_label": {volume_column(name): own[name] for name in names},
            "segmenter": {volume_column(name): found[:, i] for i, name in enumerate(names)},
        }


def agreements(asked: np.ndarray, measured: np.ndarray) -> dict[str, Any]:
    """Figures of pairs with their intervals."""
    known = np.isfinite(asked) & np.isfinite(measured)
    x, y = asked[known], measured[known]

    def statistic(name: str) -> Callable[[np.ndarray], float]:
        return lambda rows: float(getattr(agreement(x[rows], y[rows]), name))

    return {"n": len(x), **{name: bootstrap(statistic(name), len(x)).to_json() for name in AGREEMENT}}


def mean_of(values: np.ndarray) -> dict[str, float | None]:
    """A mean with its interval."""
    return bootstrap(lambda rows: float(values[rows].mean()), len(values)).to_json()


def requests(ours: Arm) -> dict[str, Any]:
    """Requested against measured, by volume and way of measuring; and what the segmenter reaches on real cases."""
    asked = uniform_requests(ours.bench, ours.bench.options.n)
    found = ours.volumes(ours.drawn("requests", answered(ours.generator, asked)))
    real, names = ours.reference.held_out, [volume_column(n) for n in ours.bench.store.label_names[1:]]
    out: dict[str, Any] = {}
    for column in ours.bench.volumes:
        wanted, i = np.array([r[column] for r in asked]), names.index(column)
        out[column] = {by: agreements(wanted, volumes[column]) for by, volumes in found.items()}
        out[column]["segmenter_on_real"] = agreements(real.label_ml[:, i], real.found_ml[:, i])
    return out


def numbers(bench: Bench, names: Sequence[str], cases: Sequence[int]) -> np.ndarray:
    """(n, len(names)) covariates as numbers: levels as their index, NaN where missing."""
    columns = [bench.store.schema[name] for name in names]
    rows = [[bench.store.cases[i].covariates.get(c.name) for c in columns] for i in cases]

    def number(cell: Any, levels: Sequence[str]) -> float:
        return float("nan") if cell is None else float(levels.index(str(cell))) if levels else float(cell)

    return np.array(
        [[number(cell, c.levels) for cell, c in zip(row, columns, strict=True)] for row in rows], dtype=np.float64
    )


def sweep(ours: Arm) -> dict[str, Any] | None:
    """A tissue's slope on one column, of samples with the same noise and of the cohort."""
    bench, o = ours.bench, ours.bench.options
    column, tissue = volume_or_none(o.sweep, bench), volume_column(o.tissue)
    if column is None or tissue not in bench.store.schema or tissue in bench.columns:
        return None
    values = np.percentile(bench.training_values(column), np.linspace(5, 95, AGES))
    training = [bench.store.cases[i].covariates for i in bench.store.indices("train")]
    whole = [row for row in training if all(row.get(c) is not None for c in bench.columns)]
    chosen = [whole[i % len(whole)] for i in range(max(2, o.n // AGES))]
    asked = [{**{c: row[c] for c in bench.columns}, column: float(v)} for row in chosen for v in values]
    keys = [Key(SEED, i) for i in range(len(chosen)) for _ in values]
    found = ours.volumes(ours.drawn("sweep", answered(ours.generator, asked), keys))
    slopes = {
        by: np.polyfit(values, volumes[tissue].reshape(len(chosen), AGES).T, 1)[0] for by, volumes in found.items()
    }
    return {
        "column": column,
        "tissue": tissue,
        "values": [round(float(v), 3) for v in values],
        "subjects": len(chosen),
        **{by: mean_of(each) for by, each in slopes.items()},
        "falling": {by: round(float((each < 0).mean()), 3) for by, each in slopes.items()},
        "cohort": cohort_slope(bench, column, tissue),
    }


def volume_or_none(column: str, bench: Bench) -> str | None:
    """The column where it is a numeric condition that is no volume."""
    usable = column in bench.columns and column not in bench.volumes and bench.store.schema[column].is_numeric
    return column if usable else None


def cohort_slope(bench: Bench, column: str, tissue: str) -> dict[str, float | None]:
    """Least squares of the tissue on the column and all other conditions, over all cases with a label."""
    cases = [i for i, case in enumerate(bench.store.cases) if case.has_label]
    others = [c for c in bench.columns if c != column]
    table = numbers(bench, [tissue, column, *others], cases)
    table = table[np.isfinite(table).all(axis=1)]

    def slope(rows: np.ndarray) -> float:
        design = np.column_stack([table[rows, 1:], np.ones(len(rows))])
        return float(np.linalg.lstsq(design, table[rows, 0], rcond=None)[0][0])

    return {**bootstrap(slope, len(table)).to_json(), "n": len(table)}


def readback(ours: Arm) -> dict[str, Any] | None:
    """Numeric conditions that are no volumes, read from images."""
    bench, reference = ours.bench, ours.reference
    columns = [c for c in bench.columns if volume_or_none(c, bench)]
    if not columns:
        return None
    rows = answered(ours.generator, uniform_requests(bench, bench.options.n))
    made = ours.measured(ours.drawn("requests", rows))
    out: dict[str, Any] = {}
    for column in columns:
        truth = [numbers(bench, [column], cases)[:, 0] for cases in (reference.train_cases, reference.held_out_cases)]
        known = np.isfinite(truth[0])
        reader = make_pipeline(StandardScaler(), RidgeCV(np.logspace(-2, 4, 25)))
        reader.fit(_seen(reference.train)[known], truth[0][known])
        asked = np.array([float("nan") if row.values[column] is None else row.values[column] for row in rows], float)
        out[column] = {
            "held_out": agreements(truth[1], reader.predict(_seen(reference.held_out))),
            "samples": agreements(asked, reader.predict(_seen(made))),
        }
    return out


def _seen(measured: Measured) -> np.ndarray:
    return np.concatenate([measured.features, measured.found_ml], axis=1)


def both(ours: Arm) -> dict[str, Any] | None:
    """Two volumes, one asked to be large and one small, as composed conditions."""
    bench, n = ours.bench, ours.bench.options.n
    if len(bench.volumes) < 2:
        return None
    first, second = bench.volumes[:2]
    asked = {
        first: float(np.percentile(bench.training_values(first), LARGE)),
        second: float(np.percentile(bench.training_values(second), SMALL)),
    }
    conditions = [{"where": {name: value}, "weight": 1.0} for name, value in asked.items()]
    found = {
        "nothing": ours.volumes(ours.drawn("nothing", ours.nothing(n))),
        "and": ours.volumes(
            ours.drawn("and", ours.nothing(n), steering=[{"kind": "composition", "conditions": conditions}])
        ),
        "joint": ours.volumes(ours.drawn("joint", answered(ours.generator, [asked] * n))),
    }
    out: dict[str, Any] = {"asked": asked}
    for by in ("generated_label", "segmenter"):
        out[by] = {how: {c: mean_of(volumes[by][c]) for c in asked} for how, volumes in found.items()}
        for how in ("and", "joint"):
            shift = {c: found[how][by][c] - found["nothing"][by][c] for c in asked}
            out[by][f"{how}_shift"] = {c: mean_of(values) for c, values in shift.items()}
        up, down = (out[by]["and_shift"][c] for c in (first, second))
        out[by]["shifts_as_asked"] = bool(up["low"] > 0 and down["high"] < 0)
    return out


def but_not(ours: Arm) -> dict[str, Any]:
    """The upper third of a volume asked away."""
    bench, n = ours.bench, ours.bench.options.n
    column, weight = bench.volumes[0], bench.options.not_weight
    values = bench.training_values(column)
    edge = float(np.percentile(values, UPPER_THIRD))
    inside = float(np.median(values[values >= edge]))
    conditions = [{"where": {column: inside}, "weight": weight}]
    found = {
        "nothing": ours.volumes(ours.drawn("nothing", ours.nothing(n))),
        "not": ours.volumes(
            ours.drawn("not", ours.nothing(n), steering=[{"kind": "composition", "conditions": conditions}])
        ),
    }
    out: dict[str, Any] = {"column": column, "from_ml": edge, "asked_away_ml": inside, "weight": weight}
    out["share_of_cohort"] = round(float((values >= edge).mean()), 3)
    for by in ("generated_label", "segmenter"):
        shares = {how: (volumes[by][column] >= edge).astype(float) for how, volumes in found.items()}
        shift = mean_of(shares["not"] - shares["nothing"])
        out[by] = {**{how: mean_of(share) for how, share in shares.items()}, "shift": shift}
        out[by]["shifts_as_asked"] = bool(shift["high"] is not None and shift["high"] < 0)
    return out


def lacking(store: Prepared, columns: Sequence[str], share: float) -> Prepared:
    """The cohort with a share of the training cases' entries missing at random."""
    entries = [(i, c) for i in store.indices("train") for c in columns]
    chosen = np.random.default_rng(SEED).permutation(len(entries))[: round(share * len(entries))]
    gone = {entries[k] for k in chosen}
    cases = [
        replace(case, covariates={c: None if (i, c) in gone else v for c, v in case.covariates.items()})
        for i, case in enumerate(store.cases)
    ]
    return replace(store, cases=tuple(cases))


def missing(ours: Arm) -> dict[str, Any]:
    """CCC of a model trained on what is left, over that of the model trained on all."""
    bench = ours.bench
    if bench.config.latents.copies:
        raise SystemExit("part missing needs latents.copies 0: copies of a case measure its volumes again")
    store = lacking(bench.store, bench.columns, MISSING)
    less = Arm(bench, ours.reference, ours.codec, "missing", store)
    asked = uniform_requests(bench, bench.options.n)
    found = {
        name: one.volumes(one.drawn("requests", answered(ours.generator, asked)))
        for name, one in (("all", ours), ("missing", less))
    }
    training = [case for case in store.cases if case.split == "train"]
    gone = np.mean([[case.covariates.get(c) is None for c in bench.columns] for case in training])
    out: dict[str, Any] = {"share_missing": round(float(gone), 3)}
    for by in ("generated_label", "segmenter"):

        def ccc(name: str, rows: np.ndarray, by: str = by) -> float:
            pairs = [(np.array([r[c] for r in asked]), found[name][by][c]) for c in bench.volumes]
            return float(np.mean([agreement(x[rows], y[rows]).ccc for x, y in pairs]))

        def cost(rows: np.ndarray) -> float:
            whole = ccc("all", rows)
            return (whole - ccc("missing", rows)) / whole if whole > 0 else float("nan")

        n = len(asked)
        out[by] = {
            "all": bootstrap(lambda rows: ccc("all", rows), n).to_json(),
            "missing": bootstrap(lambda rows: ccc("missing", rows), n).to_json(),
            "cost": bootstrap(cost, n).to_json(),
        }
        value = out[by]["cost"]["value"]
        out[by]["at_most_a_tenth"] = value is not None and value <= 0.1
    return out


def say(value: Any, indent: int = 2) -> None:
    """Print nested figures, intervals on one line."""
    for key, inner in value.items():
        if isinstance(inner, Mapping) and "low" in inner:
            print(f"{' ' * indent}{key:18}{inner['value']} [{inner['low']}, {inner['high']}]")
        elif isinstance(inner, Mapping):
            print(f"{' ' * indent}{key}")
            say(inner, indent + 2)
        else:
            print(f"{' ' * indent}{key:18}{inner}")


def main() -> None:
    """Train, measure each part, print and write JSON."""
    made = parser(__doc__)
    made.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    made.add_argument("--sweep", default="age", help="the numeric condition that is raised alone")
    made.add_argument("--tissue", default="GM", help="the label whose volume is watched meanwhile")
    made.add_argument("--not-weight", type=float, default=-0.5, help="of the condition asked away")
    options = made.parse_args()
    began, bench = time.monotonic(), open_bench(options)
    arms = 2 if "missing" in options.parts else 1
    drawn = options.n * (4 + arms)
    print(f"foreseen: {options.codec_minutes:.0f} minutes for the codec, {arms} x {options.minutes:.0f} for our model,")
    print(
        f"{options.segmenter_steps} steps of the segmenter, and {drawn} samples at most, drawn and measured", flush=True
    )
    if not bench.volumes:
        raise SystemExit("no condition is a volume; name one with --columns")
    reference, codec = yardstick(bench, least=_LEAST), shared_codec(bench)
    ours = Arm(bench, reference, codec, "ours", None)
    work: dict[str, Callable[[Arm], Any]] = {
        "requests": requests,
        "sweep": sweep,
        "readback": readback,
        "and": both,
        "not": but_not,
        "missing": missing,
    }
    result: dict[str, Any] = {}
    for part in options.parts:
        result[part] = work[part](ours)
        print(f"\n{part}" + ("" if result[part] else ": this cohort or these columns cannot say"), flush=True)
        say(result[part] or {})
    print(f"{(time.monotonic() - began) / 60:.1f} minutes in all")
    if options.json:
        write_json(options.json, {**result, "minutes": options.minutes, "samples": options.n})


if __name__ == "__main__":
    main()
