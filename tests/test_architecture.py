"""What the house promises about its imports, read from the source itself."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1] / "medgen"

# From the top down. A room imports rooms of its own line and of the lines below.
LAYERS = (
    ("__init__", "__main__", "cli"),
    ("pipeline", "stages", "doctor", "progress", "summary"),
    ("evaluation", "generation"),
    ("training", "segment"),
    ("steering", "sampling", "diffusion", "models", "prepare", "formats", "edit", "compat"),
    ("store", "cohort", "measure"),
    ("volume", "registry", "files", "yaml_keys"),
    ("errors",),
)
LEVEL = {room: depth for depth, rooms in enumerate(LAYERS) for room in rooms}
# The experiment file is read at the edge; below training, values arrive unpacked.
MAY_IMPORT_CONFIG = {room for rooms in LAYERS[:4] for room in rooms}
FORBIDDEN_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"}

FILES = sorted(ROOT.rglob("*.py"))


def room_of(path: Path) -> str:
    relative = path.relative_to(ROOT)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


def imports_of(tree: ast.AST) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative imports hide where a name comes from"
            assert node.module is not None
            if node.module == "medgen":
                yield from ((node.lineno, f"medgen.{alias.name}") for alias in node.names)
            else:
                yield node.lineno, node.module


def parse(path: Path) -> ast.AST:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_down(path: Path) -> None:
    room = room_of(path)
    if room == "config":
        return
    assert room in LEVEL, f"{room} is in no layer: add it to LAYERS"
    for line, name in imports_of(parse(path)):
        parts = name.split(".")
        if parts[0] != "medgen" or len(parts) == 1 or parts[1] == "__version__":
            continue
        target = parts[1]
        if target == "config":
            assert room in MAY_IMPORT_CONFIG, f"{path}:{line} takes a config object; unpack the values above"
        else:
            assert LEVEL[target] >= LEVEL[room], f"{path}:{line}: {room} imports {target}, which lies above it"


def test_config_imports_nothing_of_medgen_but_errors_and_the_reading_of_yaml() -> None:
    files = sorted((ROOT / "config").glob("*.py"))
    names = {name for path in files for _, name in imports_of(parse(path)) if name.split(".")[0] == "medgen"}
    assert files and {n for n in names if not n.startswith("medgen.config.")} <= {"medgen.errors", "medgen.yaml_keys"}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_only_compat_imports_generative(path: Path) -> None:
    names = {name.split(".")[0] for _, name in imports_of(parse(path))}
    assert "generative" not in names or room_of(path) == "compat"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_nothing_is_unpickled_or_evaluated(path: Path) -> None:
    tree = parse(path)
    assert not FORBIDDEN_MODULES & {name.split(".")[0] for _, name in imports_of(tree)}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        assert called not in {"eval", "exec", "compile", "__import__", "pd.eval"}, f"{path}:{node.lineno}"
        keywords = {k.arg: ast.unparse(k.value) for k in node.keywords}
        if called == "torch.load":
            assert keywords.get("weights_only") == "True", f"{path}:{node.lineno} unpickles"
        assert keywords.get("allow_pickle", "False") == "False", f"{path}:{node.lineno} unpickles"


def test_walk_sees_the_house() -> None:
    assert {"volume", "registry", "files", "cohort"} <= {room_of(p) for p in FILES}
