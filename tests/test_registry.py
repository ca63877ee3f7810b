"""A new file is found because it is there, and its options are checked against its signature."""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from medgen.errors import InputError
from medgen.registry import check_options, kinds, options_of, resolve

SAMPLER = """
def sample(
    model, x, sigmas, cond, *, noise,
    churn=0.0, steps=4, exact=False, mode="fast", shape=None, scale: float = 1, widths=(8, 16),
):
    return x
"""


@pytest.fixture
def room(tmp_path: Path) -> Iterator[str]:
    """A room of its own inside the package, so that the test depends on no other."""
    import medgen

    folder = tmp_path / "testroom"
    folder.mkdir()
    (folder / "__init__.py").write_text('"""A room."""\n')
    (folder / "leapfrog.py").write_text(SAMPLER)
    (folder / "helper.py").write_text("value = 1\n")
    (folder / "_hidden.py").write_text(SAMPLER)
    (folder / "broken.py").write_text("import a_module_that_is_not_there\n")
    medgen.__path__.append(str(tmp_path))
    importlib.invalidate_caches()
    yield "testroom"
    medgen.__path__.remove(str(tmp_path))
    for name in [n for n in sys.modules if n.startswith("medgen.testroom")]:
        del sys.modules[name]


def test_a_new_file_is_found(room: str) -> None:
    assert resolve(room, "leapfrog", "sample").__name__ == "sample"


def test_kinds_lists_what_defines_the_function(room: str, tmp_path: Path) -> None:
    (tmp_path / room / "broken.py").unlink()
    assert kinds(room, "sample") == ["leapfrog"]


def test_the_samplers_of_the_package_are_found() -> None:
    assert {"euler", "heun"} <= set(kinds("sampling", "sample"))


def test_an_unknown_kind_names_the_nearest(room: str, tmp_path: Path) -> None:
    (tmp_path / room / "broken.py").unlink()
    with pytest.raises(
        InputError, match=r"unknown testroom kind 'leapfrogg' \(known: leapfrog\); did you mean 'leapfrog'"
    ):
        resolve(room, "leapfrogg", "sample")


@pytest.mark.parametrize("kind", ["helper", "_hidden", "__init__", "os.path", "..volume", "Leapfrog", "", "a/b", "a b"])
def test_only_plug_ins_can_be_named(kind: str, room: str, tmp_path: Path) -> None:
    (tmp_path / room / "broken.py").unlink()
    with pytest.raises(InputError, match="unknown testroom kind"):
        resolve(room, kind, "sample")


def test_a_plug_in_that_fails_to_import_says_what_it_lacks(room: str) -> None:
    with pytest.raises(ModuleNotFoundError, match="a_module_that_is_not_there"):
        resolve(room, "broken", "sample")


def test_options_are_keywords_with_a_default(room: str) -> None:
    assert list(options_of(resolve(room, "leapfrog", "sample"))) == [
        "churn",
        "steps",
        "exact",
        "mode",
        "shape",
        "scale",
        "widths",
    ]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"churn": 0.5},
        {"churn": 1},
        {"steps": 8},
        {"exact": True},
        {"mode": "slow"},
        {"shape": [1, 2, 3]},
        {"scale": 0.5},
        {"widths": [4, 8]},
        {"churn": 0.1, "steps": 2, "exact": False},
    ],
)
def test_good_options_pass(options: dict[str, object], room: str) -> None:
    check_options(room, "leapfrog", "sample", options)


@pytest.mark.parametrize(
    "options,says",
    [
        ({"chrun": 0.5}, "has no option 'chrun' .*did you mean 'churn'"),
        ({"noise": None}, "has no option 'noise'"),
        ({"x": 1}, "has no option 'x'"),
        ({"churn": "0.5"}, "must be a number"),
        ({"churn": True}, "must be a number"),
        ({"churn": float("nan")}, "must be a finite number"),
        ({"steps": 2.5}, "must be a whole number"),
        ({"exact": 1}, "must be true or false"),
        ({"exact": "yes"}, "must be true or false"),
        ({"mode": 3}, "must be text"),
        ({"widths": 8}, "must be a list"),
    ],
)
def test_bad_options_are_named(options: dict[str, object], says: str, room: str) -> None:
    with pytest.raises(InputError, match=says):
        check_options(room, "leapfrog", "sample", options)
