"""medgen: from a cohort of 3D medical images to a vetted synthetic dataset.

The Python API: :func:`read_cohort`, :class:`Generator`, :func:`export`, :func:`datalist`. Heavy imports wait until a
name is used.
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["Generator", "__version__", "datalist", "export", "read_cohort"]

if TYPE_CHECKING:
    from medgen.formats.detect import read_cohort
    from medgen.generation.export import datalist, export
    from medgen.generation.generator import Generator

_HOMES = {
    "read_cohort": "medgen.formats.detect",
    "Generator": "medgen.generation.generator",
    "export": "medgen.generation.export",
    "datalist": "medgen.generation.export",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        import importlib

        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'medgen' has no attribute '{name}'")
