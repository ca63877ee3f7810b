import numpy as np
import pytest
from scipy.stats import chi2

from medgen.cohort import coverage
from medgen.cohort.given import Fixed
from medgen.cohort.joint import Joint
from medgen.cohort.requests import parse_where, resolve
from medgen.cohort.schema import Covariate, Schema

SCHEMA = Schema(
    (
        Covariate("age", unit="year"),
        Covariate("ventricles_ml", unit="ml"),
        Covariate("sex", "categorical", levels=("F", "M")),
        Covariate("report", "text"),
    )
)


def cohort(n: int = 400) -> list[dict]:
    rng = np.random.default_rng(0)
    z = rng.multivariate_normal([0, 0], [[1, 0.9], [0.9, 1]], n)
    sex = rng.choice(["F", "M"], n)
    return [
        {"age": 50 + 10 * a, "ventricles_ml": 30 + 8 * b, "sex": s, "report": f"patient {i}"}
        for i, ((a, b), s) in enumerate(zip(z, sex, strict=True))
    ]


@pytest.fixture(scope="module")
def joint() -> Joint:
    return Joint.fit(SCHEMA, cohort())


def test_it_is_the_mahalanobis_tail_of_a_gaussian_cohort(joint):
    for a, b in ((0.0, 0.0), (1.0, 1.0), (1.5, 0.0), (-1.0, 0.5)):
        truth = chi2.sf((a * a + b * b - 1.8 * a * b) / (1 - 0.81), 2)
        found = coverage.plausibility(joint, {"age": Fixed(50 + 10 * a), "ventricles_ml": Fixed(30 + 8 * b)})
        assert found == pytest.approx(truth, abs=0.15)


def test_a_share_of_the_cohorts_own_draws_is_as_unlikely_as_it_says(joint):
    rows = joint.many(np.random.default_rng(1), 2000)
    given = [{n: Fixed(v) for n, v in row.items() if v is not None} for row in rows]
    p = np.array([coverage.plausibility(joint, g) for g in given])
    for share in (0.1, 0.5, 0.9):
        assert (p < share).mean() == pytest.approx(share, abs=0.06)
    assert (p < coverage.UNLIKELY).mean() < 0.01


def test_ordinary_values_together_can_be_unlike_any_case(joint):
    row = resolve(parse_where("age=34,ventricles_ml=43", SCHEMA), joint, 0, 0)
    assert row.extrapolated == () and row.unlike_cohort and "taken together" in row.extrapolation
    row = resolve(parse_where("age=66,ventricles_ml=43,sex=F", SCHEMA), joint, 0, 0)
    assert not row.unlike_cohort and row.extrapolation == ""


def test_texts_are_no_part_of_the_joint_and_silence_the_rest(joint):
    assert "patient" not in str(joint.to_json()) and "report" not in joint.covered
    assert joint.draw(np.random.default_rng(0))["report"] is None
    row = resolve(parse_where('report="a, b = c",age=40..60', SCHEMA), joint, 0, 0)
    assert row.values["report"] == "a, b = c" and 40 <= row.values["age"] <= 60
    assert row.values["sex"] is None and row.values["ventricles_ml"] is None and row.extrapolation == ""
    assert resolve(parse_where("age=50", SCHEMA), joint, 0, 0).values["sex"] in ("F", "M")
