from pathlib import Path

import pytest

from medgen.cohort import schema_file
from medgen.cohort.case import Case, Cohort
from medgen.cohort.schema import Covariate, Schema
from medgen.errors import InputError
from medgen.formats.columns import covariates, describe

TABLE = Path("participants.tsv")
ROWS = {
    "a": {"age": "30", "comments": "small  ventricles", "note": "x"},
    "b": {"age": "60", "comments": "n/a", "note": "y"},
    "c": {"age": "61", "comments": "7", "note": "z"},
}


def test_a_text_is_read_only_where_the_user_says_so():
    assert covariates(ROWS, said_in=TABLE).schema.names == ("age",)
    for told in ({"texts": ["comments"]}, {"described": {"comments": {"Kind": "text"}}}):
        found = covariates(ROWS, said_in=TABLE, **told)
        assert found.schema.names == ("age", "comments") and found.schema["comments"] == Covariate("comments", "text")
        assert [found.rows[k]["comments"] for k in "abc"] == ["small ventricles", None, "7"]
    with pytest.raises(InputError, match="has no column 'remarks'"):
        covariates(ROWS, said_in=TABLE, texts=["remarks"])


def test_what_a_dataset_says_of_a_text_column_is_read_back():
    schema = Schema((Covariate("age", unit="year"), Covariate("comments", "text")))
    described = describe(schema)
    assert described["comments"] == {"Description": "comments", "Kind": "text"}
    assert covariates(ROWS, said_in=TABLE, described=described).schema["comments"].is_text


def test_the_schema_file_knows_texts(tmp_path):
    schema = Schema((Covariate("age"), Covariate("comments", "text")))
    path = tmp_path / "columns.yaml"
    schema_file.write(path, schema)
    assert schema_file.read(path) == schema
    cohort = Cohort("c", tmp_path, (Case("a", "a", {}, covariates={"age": 3.0, "comments": "old"}),), schema, ("T1w",))
    assert schema_file.apply(cohort, path).cases[0].covariates["comments"] == "old"
    path.write_text("covariates:\n  comments: {kind: text, levels: [a]}\n")
    with pytest.raises(InputError, match="has the key 'levels', but text takes kind"):
        schema_file.read(path)


def test_a_schema_of_older_runs_reads_as_it_was():
    raw = Schema((Covariate("age", minimum=1.0, maximum=2.0),)).to_json()
    assert set(raw[0]) == {"name", "kind", "unit", "minimum", "maximum", "levels", "period"}
    text = Schema((Covariate("report", "text", tokens=8, width=16),))
    assert Schema.from_json(text.to_json()) == text
