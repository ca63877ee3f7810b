"""The scripts in ``workflows``, which are no package, as modules."""

import importlib.util
from pathlib import Path
from types import ModuleType

WORKFLOWS = Path(__file__).resolve().parents[1] / "workflows"


def load(name: str) -> ModuleType:
    """A recipe by the name of its file."""
    spec = importlib.util.spec_from_file_location(name, WORKFLOWS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
