import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from medgen.cohort.given import Fixed, OneOf, Range
from medgen.cohort.joint import Joint
from medgen.cohort.requests import Request, check, from_values, parse_where, plan, resolve
from medgen.cohort.schema import Covariate, Schema, with_ranges
from medgen.errors import InputError

SCHEMA = Schema(
    (
        Covariate("age", unit="year"),
        Covariate("ventricles_ml", unit="ml"),
        Covariate("sex", "categorical", levels=("F", "M")),
        Covariate("site", "categorical", levels=("A", "B", "New York, NY", "yes|no")),
        Covariate("stage", "ordinal", levels=("mild", "severe")),
        Covariate("hour", "periodic", "h", period=24.0),
    )
)


@pytest.fixture(scope="module")
def joint():
    rng = np.random.default_rng(0)
    n = 300
    age = np.round(np.clip(rng.normal(45, 18, n), 18, 90))
    sex = np.where(rng.random(n) < 0.7, "F", "M")
    rows = [
        {"age": float(a), "sex": str(s), "site": str(rng.choice(["A", "B"], p=[0.8, 0.2])), "ventricles_ml": float(v)}
        for a, s, v in zip(age, sex, 10 + 0.5 * age + rng.normal(0, 4, n), strict=True)
    ]
    schema = SCHEMA.only(["age", "ventricles_ml", "sex", "site"])
    return Joint.fit(with_ranges(schema, rows), rows)


def test_where_in_words():
    request = parse_where("age=60..80, sex=f,ventricles_ml=40,site=A|B,hour=22..4", SCHEMA, force=True)
    assert request.given == {
        "age": Range(60, 80),
        "sex": Fixed("F"),
        "ventricles_ml": Fixed(40.0),
        "site": OneOf(("A", "B")),
        "hour": Range(22, 4),
    }
    assert request.force
    assert parse_where("", SCHEMA).given == {}
    assert parse_where("age=60..", SCHEMA).given == {"age": Range(60, None)}
    assert parse_where("age=..-1.5e1", SCHEMA).given == {"age": Range(None, -15)}
    assert parse_where('site="New York, NY"|"yes|no"', SCHEMA).given == {"site": OneOf(("New York, NY", "yes|no"))}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("agee=60", ["unknown covariate 'agee'", "age, ventricles_ml, sex", "did you mean 'age'"]),
        ("Age=60", ["did you mean 'age'"]),
        ("colour=60", ["unknown covariate 'colour'", "known"]),
        ("age", ["name=value"]),
        ("60..80", ["name=value"]),
        ("age=sixty", ["'age' is a number", "'sixty'"]),
        ("age=60y", ["'60y'"]),
        ("age=80..60", ["80 down to 60", "swap"]),
        ("age=..", ["no bound"]),
        ("age=", ["no value"]),
        ("age=n/a", ["no value"]),
        ("age=inf", ["finite"]),
        ("age=60|70", ["range such as"]),
        ("age=1,age=2", ["twice"]),
        ("sex=X", ["no level 'X'", "F, M"]),
        ("sex=", ["no level"]),
        ("sex=F|X", ["no level 'X'"]),
        ("sex=F..M", ["no level"]),
        ("age=1=2", ["'1=2'"]),
    ],
)
def test_where_that_is_not_understood(text, words):
    with pytest.raises(InputError) as caught:
        parse_where(text, SCHEMA)
    for word in ["--where", *words]:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


finite = st.floats(allow_nan=False, allow_infinity=False)
numbers = st.one_of(
    finite.map(Fixed),
    st.tuples(finite, finite).map(lambda p: Range(*sorted(p))),
    finite.map(lambda v: Range(v, None)),
    finite.map(lambda v: Range(None, v)),
)


def levels(name):
    every = SCHEMA[name].levels
    some = st.lists(st.sampled_from(every), min_size=1, unique=True)
    return some.map(lambda v: Fixed(v[0]) if len(v) == 1 else OneOf(tuple(v)))


@given(
    st.fixed_dictionaries(
        {}, optional={"age": numbers, "ventricles_ml": numbers, "sex": levels("sex"), "site": levels("site")}
    )
)
def test_a_request_in_words_reads_back_as_itself(asked):
    request = Request(asked)
    assert parse_where(str(request), SCHEMA).given == asked


@given(st.text(max_size=40) | st.from_regex(r"(age|sex|site|hour)=[0-9.AFM|,=\"]{0,12}", fullmatch=True))
@settings(max_examples=300)
def test_any_text_is_understood_or_refused_in_one_sentence(text):
    try:
        assert set(parse_where(text, SCHEMA).given) <= set(SCHEMA.names)
    except InputError as error:
        assert str(error).startswith("--where")


def test_python_values():
    request = from_values(
        {"age": (60, None), "sex": "F", "site": ["New York, NY", "A"], "hour": None},
        SCHEMA,
        volumes_ml={"ventricles": 40},
    )
    assert request.given == {
        "age": Range(60, None),
        "sex": Fixed("F"),
        "site": OneOf(("New York, NY", "A")),
        "ventricles_ml": Fixed(40.0),
    }
    with pytest.raises(InputError, match=r"unknown covariate 'ventricle_ml'.*did you mean 'ventricles_ml'"):
        from_values({}, SCHEMA, volumes_ml={"ventricle": 40})
    with pytest.raises(InputError, match="is a number"):
        from_values({"age": [1, 2, 3]}, SCHEMA)


def test_rows_are_functions_of_seed_and_index(joint):
    request = parse_where("age=60..80,sex=F", joint.schema)
    rows = [resolve(request, joint, 5, i) for i in range(40)]
    assert rows[::-1] == [resolve(request, joint, 5, i) for i in reversed(range(40))]
    assert len({json.dumps(r.values) for r in rows}) == 40
    assert rows[0] != resolve(request, joint, 6, 0) and rows[0] != resolve(request, joint, 5, 0, attempt=1)
    for row in rows:
        assert 60 <= row.values["age"] <= 80 and row.values["sex"] == "F" and row.values["site"] in ("A", "B")
        assert row.asked == {"age", "sex"} and row.extrapolated == () and row.request == "age=60.0..80.0,sex=F"


@given(low=st.floats(18, 89), width=st.floats(0, 30), seed=st.integers(-5, 2**70))
@settings(max_examples=40, deadline=None)
def test_ranges_are_always_honoured(joint, low, width, seed):
    asked = Range(low, low + width)
    row = resolve(Request({"age": asked, "ventricles_ml": Range(None, 60)}), joint, seed, 0)
    assert asked.holds(row.values["age"]) and row.values["ventricles_ml"] <= 60


def test_beyond_the_cohort_needs_force(joint):
    with pytest.raises(InputError, match=r"age runs from 18 to \d+ year; 120 lies outside it.*--force"):
        resolve(parse_where("age=120", joint.schema), joint, 0, 0)
    with pytest.raises(InputError, match=r"no case with site=New York, NY \(it has A, B\).*--force"):
        check(parse_where('site="New York, NY"', joint.schema), joint.schema, joint)
    row = resolve(parse_where("age=120,sex=M", joint.schema, force=True), joint, 0, 0)
    assert row.values["age"] == 120 and row.extrapolated == ("age",)
    oldest = np.mean(
        [
            resolve(parse_where("age=90..", joint.schema, force=True), joint, 0, i).values["ventricles_ml"]
            for i in range(30)
        ]
    )
    assert oldest > 45


def test_balance_flattens_the_strata(joint):
    balanced = plan(joint.schema, joint, balance="age:10y,sex")
    n = 8 * len(balanced.strata)
    rows = [balanced.row(i, 3).values for i in range(n)]
    cells = [(r["age"] // 10, r["sex"]) for r in rows]
    counts = [cells.count(c) for c in set(cells)]
    assert counts == [8] * len(balanced.strata)
    assert chisquare(counts).pvalue == 1.0
    free = [resolve(Request(), joint, 3, i).values for i in range(n)]
    by_decade = np.bincount([int(r["age"] // 10) for r in free])
    assert chisquare(by_decade[by_decade > 0]).pvalue < 1e-6
    assert balanced.row(5, 3) == balanced.row(5, 3) and balanced.row(5, 3).asked == {"age", "sex"}
    assert [balanced.request(i, 3) for i in range(20)] != [balanced.request(i, 4) for i in range(20)]


def test_balance_within_a_request(joint):
    balanced = plan(joint.schema, joint, where="age=45..68,sex=F", balance="age:10,sex,site")
    rows = [balanced.row(i, 0).values for i in range(2 * len(balanced.strata))]
    assert len(balanced.strata) == 6
    assert all(45 <= r["age"] <= 68 and r["sex"] == "F" for r in rows)
    assert sorted({r["age"] // 10 for r in rows}) == [4, 5, 6]


def test_match_real_keeps_proportions_closer_than_chance(joint):
    matched = plan(joint.schema, joint, match="real")
    share = sum(s for g, s in matched.strata if g["sex"] == Fixed("F"))
    for start in (0, 1000):
        drawn = np.mean([matched.row(i, 0).values["sex"] == "F" for i in range(start, start + 100)])
        assert drawn == pytest.approx(share, abs=0.03)
    assert share == pytest.approx(0.7, abs=0.06)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"balance": "agee:10"}, "unknown covariate 'agee'"),
        ({"balance": "age"}, "needs the width"),
        ({"balance": "age:0"}, "needs the width"),
        ({"balance": "age:-3"}, "needs the width"),
        ({"balance": "age:10kg"}, "is in 'kg', but the cohort has it in year"),
        ({"balance": "age:0.001"}, "widen"),
        ({"balance": "age:1,ventricles_ml:0.1"}, "widen|too fine"),
        ({"balance": "sex:2"}, "takes no width"),
        ({"balance": "sex,sex"}, "twice"),
        ({"balance": ""}, "unknown covariate ''"),
        ({"match": "fake"}, "match has 'real', not 'fake'"),
        ({"match": "real", "balance": "sex"}, "exclude each other"),
        ({"where": "age=200.."}, "--force"),
        ({"where": "age=200..300", "balance": "age:10", "force": True}, "too few cases"),
    ],
)
def test_plans_that_are_refused(joint, options, words):
    with pytest.raises(InputError, match=words):
        plan(joint.schema, joint, **options)


def test_a_table_of_requests(joint, tmp_path):
    path = tmp_path / "want.csv"
    path.write_text("\ufeffage,sex,site\n60..80,F,\n,n/a,A|B\n33,M,B\n", encoding="utf-8")
    planned = plan(joint.schema, joint, table=path, where="ventricles_ml=..50")
    assert planned.length == 3
    assert planned.request(0, 0).given == {"ventricles_ml": Range(None, 50), "age": Range(60, 80), "sex": Fixed("F")}
    assert planned.request(4, 0) == planned.request(1, 0) and planned.row(4, 0) != planned.row(1, 0)
    assert planned.row(2, 0).values["age"] == 33.0
    tabs = tmp_path / "want.tsv"
    tabs.write_text("age\tsex\n60\tF\n")
    assert plan(joint.schema, joint, table=tabs).row(0, 0).values["sex"] == "F"


@pytest.mark.parametrize(
    "text",
    [
        "participant_id,age,sex\r\nsub-01,60,F\r\nsub-02,,M\r\n",
        "\ufeffage;sex\r\n60;F\r\n;M\r\n",
        '"age","sex"\n"60","F"\n"n/a","M"\n',
        "ID\tage\tsex\n1\t60\tf\n2\tNA\tm\n",
        "age,sex,,\n60,F,,\n,M,,\n\n",
        " age , sex \n 60 , F \n , M \n",
    ],
)
def test_tables_as_spreadsheets_write_them(joint, tmp_path, text):
    path = tmp_path / "want.csv"
    path.write_bytes(text.encode())
    planned = plan(joint.schema, joint, table=path)
    assert [r.given for r in planned.requests] == [{"age": Fixed(60.0), "sex": Fixed("F")}, {"sex": Fixed("M")}]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is empty"),
        ("age;sex\n50,5;F\n", r"line 2: covariate 'age' is a number, but '50,5' is not one; write 50\.5"),
        ("id,case_id\n1,2\n", "no column of covariates; add some of: age"),
        ("age,sex\n50,F,3\n", "line 2 has 3 cells"),
        ("age,sex\n", "no line of requests"),
        ("age,colour\n1,2\n", "unknown covariate 'colour'"),
        ("age,age\n1,2\n", "two columns 'age'"),
        ("age,sex\n50\n", "line 2 has 1 cells"),
        ("age,sex\n50,F\nfifty,F\n", "line 3: covariate 'age' is a number"),
        ("age,sex\n50,X\n", "line 2: 'sex' has no level 'X'"),
        ("age\n500\n", "line 2: the cohort's age runs from"),
        ('age,sex\n50,"F\n', "not a valid table"),
        ("site\nA\n", "keep one of the two"),
        (b"\xff\xfe\x00age", "cannot be read"),
    ],
)
def test_malformed_tables(joint, tmp_path, text, words):
    path = tmp_path / "want.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=words) as caught:
        plan(joint.schema, joint, table=path, where="site=A")
    assert "want.csv" in str(caught.value)


def test_missing_table(joint, tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        plan(joint.schema, joint, table=tmp_path / "no.csv")


def test_describe_is_json_and_tells_plans_apart(joint, tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("age\n50\n")
    plans = [
        plan(joint.schema, joint),
        plan(joint.schema, joint, where="age=50"),
        plan(joint.schema, joint, table=path),
        plan(joint.schema, joint, balance="sex"),
        plan(joint.schema, joint, match="real"),
    ]
    texts = {json.dumps(p.describe(), sort_keys=True) for p in plans}
    assert len(texts) == 5
    assert json.loads(json.dumps(plans[1].describe())) == plan(joint.schema, joint, where=" age=50").describe()
