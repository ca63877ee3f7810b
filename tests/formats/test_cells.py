import pytest

from medgen.errors import InputError
from medgen.formats.cells import age_years, safe_name, sex


@pytest.mark.parametrize(
    ("text", "unit", "years"),
    [
        ("71", "year", 71),
        ("71,5", "year", 71.5),
        ("89+", "year", 89),
        (">89", "year", 89),
        (">= 90", "year", 90),
        ("60-65", "year", 62.5),
        ("6 months", "year", 0.5),
        ("18mo", "year", 1.5),
        ("P6M", "year", 0.5),
        ("P1Y6M", "year", 1.5),
        ("071Y", "year", 71),
        ("018M", "year", 1.5),
        ("030 W", "year", 30 * 7 / 365.25),
        ("18", "month", 1.5),
        ("365.25", "day", 1),
        ("72 years", "month", 72),
        ("n/a", "year", None),
        ("", "year", None),
    ],
)
def test_ages_become_years(text: str, unit: str, years: float | None) -> None:
    assert age_years(text, unit) == (years if years is None else pytest.approx(years))


@pytest.mark.parametrize("text", ["abc", "-3", "1200", "P", "12 parsecs", "inf"])
def test_no_age(text: str) -> None:
    with pytest.raises(InputError):
        age_years(text)


def test_sex_spellings() -> None:
    assert {sex(t) for t in ("m", "Male", "MAN", "1", " M ")} == {"M"}
    assert {sex(t) for t in ("f", "female", "Woman", "2", "2.0")} == {"F"}
    assert (sex("other"), sex("n/a")) == ("O", None)
    for text in ("0", "3", "Femle"):
        with pytest.raises(InputError):
            sex(text)


def test_safe_name() -> None:
    assert safe_name(" T1 (MPRAGE) + C/é ") == "T1_MPRAGE_C"
