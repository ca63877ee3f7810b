from pathlib import Path

import pytest

from medgen.cohort.case import Case, Cohort
from medgen.cohort.schema import Covariate, Schema
from medgen.cohort.schema_file import apply, apply_to_rows, read, write
from medgen.errors import InputError

SCHEMA = Schema(
    (
        Covariate("age", "continuous", "year", 18.0, 90.5),
        Covariate("sex", "categorical", levels=("F", "M")),
        Covariate("answer", "categorical", levels=("no", "yes", "1", "Ünïcode, with: signs")),
        Covariate("stage", "ordinal", levels=("mild", "severe")),
        Covariate("hour", "periodic", "h", 8.0, 18.0, period=24.0),
        Covariate("bare"),
    )
)


def test_what_is_written_reads_back(tmp_path):
    path = tmp_path / "covariates.yaml"
    write(path, SCHEMA)
    assert read(path) == SCHEMA
    assert "Edit" in path.read_text(encoding="utf-8")
    write(path, Schema())
    assert read(path) == Schema()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "one mapping 'covariates'"),
        ("- a\n", "one mapping 'covariates'"),
        ("covariates: {}\nmore: 1\n", "one mapping 'covariates'"),
        ("covariates: [a]\n", "one mapping 'covariates'"),
        ("covariates: {age: {kind: [}\n", "not valid YAML at line 1"),
        ("covariates: !!python/object/apply:os.system [id]\n", "not valid YAML"),
        ("covariates: {age: continuous}", "'age' needs a kind"),
        ("covariates: {age: {unit: year}}", "'age' needs a kind"),
        ("covariates: {age: {kind: continous}}", "did you mean 'continuous'"),
        ("covariates: {age: {kind: [a]}}", "has the kind"),
        ("covariates: {age: {kind: continuous, rnage: [1, 2]}}", "key 'rnage'.*did you mean 'range'"),
        ("covariates: {age: {kind: continuous, levels: [a]}}", "key 'levels', but continuous takes"),
        ("covariates: {age: {kind: continuous, range: [1]}}", "two numbers"),
        ("covariates: {age: {kind: continuous, range: [a, b]}}", "two numbers"),
        ("covariates: {age: {kind: continuous, range: [9, 1]}}", "9 down to 1"),
        ("covariates: {age: {kind: continuous, range: [.nan, 1]}}", "two numbers"),
        ("covariates: {age: {kind: continuous, unit: 3}}", "unit 3"),
        ("covariates: {sex: {kind: categorical}}", "needs levels"),
        ("covariates: {sex: {kind: categorical, levels: []}}", "needs levels"),
        ("covariates: {sex: {kind: categorical, levels: F}}", "needs levels"),
        ("covariates: {sex: {kind: categorical, levels: [yes, no]}}", "put it in quotes"),
        ("covariates: {sex: {kind: categorical, levels: [a, n/a]}}", "means a missing value"),
        ("covariates: {sex: {kind: categorical, levels: [a, a]}}", "'a' twice"),
        ("covariates: {hour: {kind: periodic}}", "period above 0"),
        ("covariates: {hour: {kind: periodic, period: -1}}", "period above 0"),
        ("covariates: {3: {kind: continuous}}", "not text"),
        ("covariates:\n  age: {kind: continuous}\n  age: {kind: ignore}\n", r"'age' twice \(line 3\)"),
    ],
)
def test_edits_that_are_not_understood(tmp_path, text, words):
    path = tmp_path / "covariates.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=words) as caught:
        read(path)
    assert "covariates.yaml" in str(caught.value) and "\n" not in str(caught.value)


def test_missing_and_binary_files(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        read(tmp_path / "no.yaml")
    (tmp_path / "b.yaml").write_bytes(b"\xff\x00\xfe")
    with pytest.raises(InputError, match="cannot be read"):
        read(tmp_path / "b.yaml")


def cohort(rows, schema):
    cases = tuple(Case(f"c{i}", f"s{i}", {}, covariates=row) for i, row in enumerate(rows))
    return Cohort("x", Path(), cases, schema, ("t1",))


def test_columns_are_dropped_and_kinds_changed(tmp_path):
    schema = Schema((Covariate("age"), Covariate("group"), Covariate("note", "categorical", levels=("a",))))
    rows = [{"age": 60.0, "group": 1.0, "note": "a"}, {"age": None, "group": 2.0}]
    path = tmp_path / "covariates.yaml"
    path.write_text(
        "covariates: {group: {kind: ordinal, levels: [2, 1]}, age: {kind: continuous}, note: {kind: ignore}}"
    )
    edited = apply(cohort(rows, schema), path)
    assert edited.schema.names == ("group", "age") and edited.schema["group"].levels == ("2", "1")
    assert [c.covariates for c in edited.cases] == [{"group": "1", "age": 60.0}, {"group": "2", "age": None}]


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ("age: {kind: continuous, range: [0, 50]}", "value 60, outside 0 to 50"),
        ("age: {kind: categorical, levels: [old]}", "levels old; '60' is none of them"),
        ("sex: {kind: continuous}", "'sex' is a number, but 'F'"),
        ("agee: {kind: continuous}", "has 'agee', which the cohort has not.*did you mean 'age'"),
    ],
)
def test_values_that_do_not_fit(tmp_path, entry, words):
    schema = Schema((Covariate("age"), Covariate("sex", "categorical", levels=("F",))))
    path = tmp_path / "covariates.yaml"
    path.write_text(f"covariates: {{{entry}}}")
    with pytest.raises(InputError, match=words) as caught:
        apply(cohort([{"age": 60.0, "sex": "F"}], schema), path)
    assert "covariates.yaml" in str(caught.value)


def test_rows_keep_missing_values():
    assert apply_to_rows(SCHEMA.only(["age", "sex"]), [{"sex": None, "other": 3.0}]) == [{"age": None, "sex": None}]
