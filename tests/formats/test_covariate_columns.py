from pathlib import Path

import pytest
from cohort_builders import SCHEMA, text_at

from medgen.errors import InputError
from medgen.formats.columns import Columns, covariates, describe
from medgen.formats.tables import read_label_names, read_table

HERE = Path("participants.tsv")


def of(**columns: list[str]) -> dict[str, dict[str, str]]:
    n = len(next(iter(columns.values())))
    return {f"c{i}": {k: v[i] for k, v in columns.items()} for i in range(n)}


def read(described: dict | None = None, **columns: list[str]) -> Columns:
    return covariates(of(**columns), said_in=HERE, described=described)


def values(found: Columns, name: str) -> list[object]:
    return [row[name] for row in found.rows.values()]


def test_age_and_sex_under_other_names() -> None:
    found = read(Gender=["male", "F", "n/a"], **{"Age at scan (years)": ["20", "89+", ""]})
    assert found.schema.names == ("sex", "age")
    assert values(found, "sex") == ["M", "F", None]
    assert values(found, "age") == [20, 89, None]
    assert found.schema["sex"].levels == ("F", "M")
    assert (found.schema["age"].unit, found.schema["age"].minimum, found.schema["age"].maximum) == ("year", 20, 89)


def test_age_in_months_by_name_or_by_units() -> None:
    assert values(read(age_months=["6", "18"]), "age") == [0.5, 1.5]
    assert values(read({"age": {"Units": "months"}}, age=["6", "18"]), "age") == [0.5, 1.5]


def test_levels_say_what_numbers_mean() -> None:
    swapped = {"sex": {"Levels": {"1": "female", "2": "male", "0": {"Description": "male"}}}}
    assert values(read(swapped, sex=["1", "2", "0"]), "sex") == ["F", "M", "M"]
    with pytest.raises(InputError, match="Levels"):
        read(sex=["0", "1"])


def test_kinds() -> None:
    found = read(
        {"grade": {"Levels": {"1": "low", "2": "high"}}, "score": {"Levels": {"999": "refused"}}},
        grade=["1", "2", "1"] * 5,
        score=[*map(str, range(14)), "999"],
        site=["A", "B", "A"] * 5,
        iq=["100", "n/a", "90.5"] * 5,
    )
    kinds = {c.name: c.kind for c in found.schema.covariates}
    assert kinds == {"grade": "categorical", "score": "continuous", "site": "categorical", "iq": "continuous"}
    assert values(found, "score")[-1] is None
    assert values(found, "iq")[:3] == [100, None, 90.5]
    assert not found.notes


@pytest.mark.parametrize(
    ("column", "cells"),
    [
        ("notes", ["ok", "ok", "moved", "ok"]),
        ("patient_name", ["A", "A", "B", "B"]),
        ("MRN", ["1", "2", "3", "4"]),
        ("scanner_id", ["11", "12", "13", "14"]),
        ("exam", ["2001-02-03", "2001-02-03", "2004-05-06", "n/a"]),
        ("diagnosis", ["one", "two", "three", "four"]),
        ("mmse", ["29", "28", "27", "not done"]),
        ("empty", ["n/a", "", "NA", "nan"]),
    ],
)
def test_what_is_no_covariate_is_left_out_and_said(column: str, cells: list[str]) -> None:
    found = read(age=["1", "2", "3", "4"], **{column: cells})
    assert found.schema.names == ("age",)
    assert len(found.notes) == 1
    assert column in found.notes[0]


def test_too_many_texts() -> None:
    found = read(place=[f"town{i % 13}" for i in range(30)])
    assert not found.schema.names and "13 different texts" in found.notes[0]


def test_second_spelling_of_sex_is_left_out() -> None:
    found = read(gender=["x", "y"], sex=["F", "M"])
    assert values(found, "sex") == ["F", "M"]


def test_only_some_columns_are_checked() -> None:
    rows = of(age=["1", "2"], sex=["0", "1"])
    assert covariates(rows, said_in=HERE, only=("age",)).schema.names == ("age",)
    with pytest.raises(InputError, match="no column 'weight'"):
        covariates(rows, said_in=HERE, only=("weight",))


def test_a_wrong_cell_names_row_and_column() -> None:
    with pytest.raises(InputError, match=r"participants\.tsv, row c1, column age: 'old'"):
        read(age=["1", "old"])
    with pytest.raises(InputError, match="finite"):
        read(iq=["1", "inf"])


def test_what_is_described_reads_back() -> None:
    described = describe(SCHEMA)
    found = read(
        described,
        age=["20", "80.5"],
        sex=["F", "M"],
        ventricles_ml=["10.25", "30.125"],
        grade=["mid", "low"],
        hour=["1", "23"],
    )
    assert found.schema == SCHEMA


def test_tables_of_all_kinds(tmp_path: Path) -> None:
    bom = text_at(tmp_path / "a.tsv", b"\xef\xbb\xbfx\ty\r\n1\t2\t\t\r\n\r\n3\r\n")
    assert read_table(bom).rows == ({"x": "1", "y": "2"}, {"x": "3", "y": ""})
    semicolon = text_at(tmp_path / "b.csv", 'x;"y, z"\n1,5;"a;b"\n')
    assert read_table(semicolon).rows == ({"x": "1,5", "y, z": "a;b"},)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"a\ta\n1\t2\n", "two columns named 'a'"),
        (b"a\tb\n1\t2\t3\n", "line 2 has 3 cells"),
        ("a\tb\nM\xfcller\t2\n".encode("latin-1"), "UTF-8"),
        (b"a\0\tb\n", "not a text table"),
    ],
)
def test_broken_tables(tmp_path: Path, content: bytes, said: str) -> None:
    with pytest.raises(InputError, match=said):
        read_table(text_at(tmp_path / "t.tsv", content))


def test_label_names(tmp_path: Path) -> None:
    path = text_at(tmp_path / "dseg.tsv", "index\tname\tcolor\n0\tbackground\t#000\n17\tcore\t#fff\n")
    assert read_label_names(path) == {17: "core"}
    for content, said in (("index\tlabel\n", "'name'"), ("index\tname\nx\ta\n", "integer"), ("name\na\n", "'index'")):
        with pytest.raises(InputError, match=said):
            read_label_names(text_at(path, content))


def test_codes_that_a_table_wrote_as_floats_are_their_levels() -> None:
    """pandas does so where entries are missing; without this, 2.0 would be a woman and 1.0 a man, said or not."""
    described = {"sex": {"Levels": {"1": "Female", "2": "Male"}}, "group": {"Levels": {"1": "ill", "2": "well"}}}
    found = read(described, sex=["1.0", "", "2.0"], group=["1.0", "n/a", "2.0"])
    assert values(found, "sex") == ["F", None, "M"]
    assert found.schema["group"].levels == ("1", "2") and values(found, "group") == ["1", None, "2"]
    coded = {"drinks": {"Levels": {str(c): "refused" for c in range(990, 1030)}}}
    assert values(read(coded, drinks=["999.0", "12.5"]), "drinks") == [None, 12.5]


@pytest.mark.parametrize("name", ["pid", "RID", "PTID", "subject", "SubjectID", "uid", "ScanDate", "date_of_scan"])
def test_numbers_that_say_who_or_when_are_no_covariates(name: str) -> None:
    found = read(**{name: ["4711", "4726", "4730"], "x": ["1", "2", "3"]})
    assert found.schema.names == ("x",) and name in found.notes[0]


def test_days_without_separators_are_dates() -> None:
    found = read(visit=["20190412", "20190113", "n/a"], x=["20", "19", "18"])
    assert found.schema.names == ("x",) and "it holds dates" in found.notes[0]


def test_names_of_any_script_stay_apart() -> None:
    assert read(**{"年齢": ["40", "50"], "型": ["1", "3"], "Größe (cm)": ["170", "180"]}).schema.names == (
        "年齢",
        "型",
        "Größe_cm",
    )
    assert read(**{"%": ["40", "50"]}).schema.names == ("column",)
