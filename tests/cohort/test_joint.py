"""The joint against closed forms: what a conditional draw must be when the truth is known."""

import json

import numpy as np
import pytest
from scipy.stats import kstest, norm

from medgen.cohort import columns
from medgen.cohort.compare import compare
from medgen.cohort.given import Fixed, OneOf, Range
from medgen.cohort.joint import Joint
from medgen.cohort.schema import Covariate, Schema, with_ranges

RHO = 0.7


def table(**data):
    names = list(data)
    return [
        dict(zip(names, (v.item() if hasattr(v, "item") else v for v in row), strict=True))
        for row in zip(*data.values(), strict=True)
    ]


def numeric(rows, *names, **kinds):
    cols = [Covariate(n) for n in names]
    cols += [Covariate(n, "categorical", levels=levels) for n, levels in kinds.items()]
    return with_ranges(Schema(tuple(cols)), rows)


def pair(n=2000, seed=0, rho=RHO):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=n)
    return x, rho * x + np.sqrt(1 - rho**2) * rng.normal(size=n)


@pytest.fixture(scope="module")
def binormal():
    x, y = pair()
    rows = table(x=50 + 10 * x, y=200 + 40 * y)
    return rows, Joint.fit(numeric(rows, "x", "y"), rows)


def column(rows, name):
    return np.array([r[name] for r in rows])


def test_conditional_mean_and_spread_of_a_binormal(binormal):
    _, joint = binormal
    y = column(joint.many(np.random.default_rng(1), 8000, {"x": Fixed(62.0)}), "y")
    assert y.mean() == pytest.approx(200 + 40 * RHO * 1.2, abs=3)
    assert y.std() == pytest.approx(40 * np.sqrt(1 - RHO**2), rel=0.06)


def test_range_conditions_as_a_truncated_normal(binormal):
    _, joint = binormal
    rng = np.random.default_rng(2)
    rows = [joint.draw(rng, {"x": Range(60, 65)}) for _ in range(1500)]
    x = column(rows, "x")
    assert x.min() >= 60 and x.max() <= 65
    truncated = (norm.pdf(1.0) - norm.pdf(1.5)) / (norm.cdf(1.5) - norm.cdf(1.0))
    assert x.mean() == pytest.approx(50 + 10 * truncated, abs=0.2)
    assert column(rows, "y").mean() == pytest.approx(200 + 40 * RHO * truncated, abs=4)


def test_draws_follow_the_marginals_and_stay_in_the_cohorts_range(binormal):
    rows, joint = binormal
    drawn = joint.many(np.random.default_rng(3), 5000)
    for name in ("x", "y"):
        real, fake = column(rows, name), column(drawn, name)
        assert kstest(fake, real).statistic < 0.04
        assert fake.min() >= real.min() and fake.max() <= real.max()


def test_skewed_columns_keep_their_shape_and_dependence():
    x, y = pair(3000, rho=-0.6)
    rows = table(x=np.exp(x), y=y**3)
    figures = compare(Joint.fit(numeric(rows, "x", "y"), rows), rows, n=5000)
    assert figures["ks_max"] < 0.04 and figures["spearman_max"] < 0.06


def test_level_probabilities_given_a_number_follow_bayes():
    rng = np.random.default_rng(0)
    female = rng.random(4000) < 0.3
    rows = table(y=rng.normal(size=4000) + female, s=np.where(female, "F", "M"))
    joint = Joint.fit(numeric(rows, "y", s=("F", "M")), rows)
    for y in (-1.0, 0.5, 2.0):
        truth = 0.3 * norm.pdf(y - 1) / (0.3 * norm.pdf(y - 1) + 0.7 * norm.pdf(y))
        drawn = joint.many(np.random.default_rng(1), 6000, {"y": Fixed(y)})
        assert (column(drawn, "s") == "F").mean() == pytest.approx(truth, abs=0.04)
    drawn = joint.many(np.random.default_rng(1), 6000, {"s": Fixed("F")})
    assert column(drawn, "y").mean() == pytest.approx(1.0, abs=0.1)


def test_level_probabilities_given_a_level():
    rng = np.random.default_rng(0)
    a = rng.random(3000) < 0.5
    b = rng.random(3000) < np.where(a, 0.8, 0.2)
    rows = table(a=np.where(a, "x", "y"), b=np.where(b, "p", "q"))
    joint = Joint.fit(numeric(rows, a=("x", "y"), b=("p", "q")), rows)
    drawn = column(joint.many(np.random.default_rng(1), 6000, {"a": Fixed("x")}), "b")
    assert (drawn == "p").mean() == pytest.approx(0.8, abs=0.03)


@pytest.mark.parametrize("seed", [0, 1])
def test_values_missing_at_random_are_recovered(seed):
    x, y = pair(1200, seed)
    gone = (x > 0) & (np.random.default_rng(9).random(1200) < 0.8)
    rows = [{**r, "y": None} if g else r for r, g in zip(table(x=x, y=y), gone, strict=True)]
    joint = Joint.fit(numeric(rows, "x", "y"), rows)
    drawn = joint.many(np.random.default_rng(1), 8000)
    naive = abs(y[~gone].mean() - y.mean())
    assert naive > 0.3  # what leaving the gaps out would give
    assert column(drawn, "y").mean() == pytest.approx(y.mean(), abs=0.08)
    assert column(drawn, "y").std() == pytest.approx(y.std(), rel=0.08)
    assert np.corrcoef(column(drawn, "x"), column(drawn, "y"))[0, 1] == pytest.approx(RHO, abs=0.06)


def test_missing_levels_are_recovered():
    rng = np.random.default_rng(0)
    female = rng.random(2000) < 0.4
    y = rng.normal(size=2000) + 2 * female
    gone = (y > 1) & (rng.random(2000) < 0.7)
    rows = [{"y": float(v), "s": None if g else "F" if f else "M"} for v, f, g in zip(y, female, gone, strict=True)]
    joint = Joint.fit(numeric(rows, "y", s=("F", "M")), rows)
    drawn = column(joint.many(np.random.default_rng(1), 8000), "s")
    assert (drawn == "F").mean() == pytest.approx(0.4, abs=0.04)
    assert female[~gone].mean() < 0.3


def test_a_periodic_column_keeps_its_circle():
    rng = np.random.default_rng(0)
    hour = rng.random(2500) * 24
    rows = table(hour=hour, level=np.cos(2 * np.pi * hour / 24) + 0.3 * rng.normal(size=2500))
    schema = Schema((Covariate("hour", "periodic", "h", period=24.0), Covariate("level")))
    joint = Joint.fit(with_ranges(schema, rows), rows)
    for h in (0.0, 6.0, 12.0, 23.5):
        level = column(joint.many(np.random.default_rng(1), 3000, {"hour": Fixed(h)}), "level").mean()
        assert level == pytest.approx(np.cos(2 * np.pi * h / 24), abs=0.1)
    rng = np.random.default_rng(2)
    night = column([joint.draw(rng, {"hour": Range(22, 4)}) for _ in range(300)], "hour")
    assert ((night >= 22) | (night <= 4)).all() and (night >= 22).any() and (night <= 4).any()
    assert kstest(column(joint.many(rng, 4000), "hour"), hour).statistic < 0.04


def test_an_ordinal_column_is_drawn_and_conditioned_on():
    x, y = pair(4000)
    stage = np.array(["mild", "moderate", "severe"])[np.digitize(y, [0.0, 1.0])]
    rows = table(x=x, stage=stage)
    schema = Schema((Covariate("x"), Covariate("stage", "ordinal", levels=("mild", "moderate", "severe"))))
    joint = Joint.fit(with_ranges(schema, rows), rows)
    drawn = joint.many(np.random.default_rng(1), 8000)
    for level in np.unique(stage):
        assert (column(drawn, "stage") == level).mean() == pytest.approx((stage == level).mean(), abs=0.02)
        fake = column(drawn, "x")[column(drawn, "stage") == level].mean()
        assert fake == pytest.approx(x[stage == level].mean(), abs=0.1)
    fixed = joint.many(np.random.default_rng(1), 4000, {"stage": Fixed("severe")})
    assert column(fixed, "x").mean() == pytest.approx(x[stage == "severe"].mean(), abs=0.1)
    either = {joint.draw(np.random.default_rng(i), {"stage": OneOf(("mild", "severe"))})["stage"] for i in range(40)}
    assert either == {"mild", "severe"}


def test_shared_values_and_whole_numbers_survive():
    rng = np.random.default_rng(0)
    lesions = np.maximum(rng.poisson(2, 600) - 1, 0).astype(float)
    rows = table(lesions=lesions, age=np.round(rng.normal(60, 10, 600)))
    drawn = Joint.fit(numeric(rows, "lesions", "age"), rows).many(rng, 4000)
    assert set(column(drawn, "lesions")) <= set(range(int(lesions.max()) + 1))
    assert (column(drawn, "lesions") == 0).mean() == pytest.approx((lesions == 0).mean(), abs=0.05)
    assert np.array_equal(column(drawn, "age"), np.round(column(drawn, "age")))


def test_small_correlated_cohorts_give_a_valid_covariance():
    rng = np.random.default_rng(0)
    base = rng.normal(size=6)
    rows = table(**{f"v{i}": base * (i + 1) + 1e-9 * rng.normal(size=6) for i in range(9)})
    joint = Joint.fit(numeric(rows, *rows[0]), rows)
    assert np.linalg.eigvalsh(joint.location.covariance).min() > 0
    row = joint.draw(rng, {"v0": Fixed(float(base[0]))})
    assert all(np.isfinite(v) for v in row.values())


def test_noise_correlations_are_shrunk():
    rng = np.random.default_rng(0)
    rows = table(**{f"v{i}": rng.normal(size=20) for i in range(6)})
    S = Joint.fit(numeric(rows, *rows[0]), rows).location.covariance
    raw = np.corrcoef(np.array([[r[n] for n in rows[0]] for r in rows]).T)
    off = ~np.eye(6, dtype=bool)
    assert np.abs(S[off]).mean() < 0.5 * np.abs(raw[off]).mean()


@pytest.mark.parametrize("rows", [[{"x": 3.0}], [{"x": 3.0}] * 5, [{"x": None}, {"x": None}], [{}]])
def test_degenerate_cohorts(rows):
    joint = Joint.fit(Schema((Covariate("x"),)), rows)
    assert joint.draw(np.random.default_rng(0))["x"] == rows[0].get("x")
    assert Joint.fit(Schema(), rows).draw(np.random.default_rng(0)) == {}


def test_a_draw_is_a_function_of_the_generators_state(binormal):
    _, joint = binormal
    for given in ({}, {"x": Fixed(50.0)}, {"x": Range(70, None)}):
        a, b = (joint.draw(np.random.default_rng(7), given) for _ in range(2))
        assert a == b
    assert joint.draw(np.random.default_rng(7)) != joint.draw(np.random.default_rng(8))


def test_json_round_trip_draws_the_same_and_holds_no_row(binormal):
    rows, joint = binormal
    text = json.dumps(joint.to_json(), allow_nan=False)
    again = Joint.from_json(json.loads(text))
    assert again.draw(np.random.default_rng(5), {"y": Range(150, 180)}) == joint.draw(
        np.random.default_rng(5), {"y": Range(150, 180)}
    )
    for name in ("x", "y"):
        inner = sorted(column(rows, name))[1:-1]
        knots = joint.to_json()["marginals"][name]["q"]
        assert len(knots) <= 33
        assert not set(knots) & set(inner)
        assert not any(repr(v) in text for v in inner)


def test_thin_and_uncovered_ranges_are_still_honoured(binormal):
    rows, joint = binormal
    top = max(column(rows, "x"))
    thin = Range(top - 1e-6, top)
    assert thin.holds(joint.draw(np.random.default_rng(0), {"x": thin})["x"])
    y = [joint.draw(np.random.default_rng(i), {"x": Range(120, 130)}) for i in range(200)]
    assert all(120 <= r["x"] <= 130 for r in y)
    assert column(y, "y").mean() > 250 and max(column(y, "y")) <= max(column(rows, "y"))
    assert joint.draw(np.random.default_rng(0), {"x": Range(120, None)})["x"] == 120


def test_covers_names_the_cohorts_range():
    rows = [{"age": 18.0, "site": "A"}, {"age": 90.0, "site": "B"}]
    schema = Schema(
        (Covariate("age", unit="year"), Covariate("site", "categorical", levels=("A", "B", "C")), Covariate("z"))
    )
    joint = Joint.fit(with_ranges(schema, rows), rows)
    assert joint.covers({"age": Fixed(90.0), "site": Fixed("A")}) is None
    assert joint.covers({"age": Range(80, 120)}) is None
    assert joint.covers({"age": Fixed(95.0)}) == "the cohort's age runs from 18 to 90 year; 95 lies outside it"
    assert "100.." in joint.covers({"age": Range(100, None)})
    assert joint.covers({"site": Fixed("C")}) == "the cohort has no case with site=C (it has A, B)"
    assert joint.covers({"site": OneOf(("B", "C"))}) is None
    assert "no value of 'z'" in joint.covers({"z": Fixed(1.0)})
    assert joint.draw(np.random.default_rng(0), {"site": Fixed("C")})["site"] == "C"
    assert all(joint.draw(np.random.default_rng(i))["site"] != "C" for i in range(50))
    assert all(joint.draw(np.random.default_rng(i), {"site": OneOf(("B", "C"))})["site"] == "B" for i in range(20))


def test_too_many_cells_leave_columns_loose():
    rng = np.random.default_rng(0)
    levels = tuple("abcdefghij")
    data = {f"c{i}": rng.choice(levels, 80) for i in range(5)}
    rows = table(x=rng.normal(size=80), **data)
    joint = Joint.fit(numeric(rows, "x", **{n: levels for n in data}), rows)
    assert joint.location.probabilities.size <= columns.MAX_CELLS and len(joint.loose) == 2
    loose = next(iter(joint.loose))
    assert joint.draw(rng, {loose: Fixed("c")})[loose] == "c"
    assert compare(joint, rows, n=4000)["levels_max"] < 0.05


def test_oasis(data_dir):
    import csv

    with (data_dir("oasis") / "participants.tsv").open() as stream:
        rows = [{"age": float(r["age"]), "sex": r["sex"]} for r in csv.DictReader(stream, delimiter="\t")]
    schema = Schema((Covariate("age", unit="year"), Covariate("sex", "categorical", levels=("F", "M"))))
    figures = compare(Joint.fit(with_ranges(schema, rows), rows), rows)
    assert figures["ks_max"] < 0.08 and figures["levels_max"] < 0.03 and figures["shift_max"] < 0.3
