"""medgen: from a cohort of 3D medical images to a vetted synthetic dataset.

The Python API: :func:`read_cohort`, :class:`Generator`, :func:`export`, :func:`datalist`, :class:`MixedDataset`,
:func:`mixed_datalist`. Heavy imports wait until a name is used.
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["Generator", "MixedDataset", "__version__", "datalist", "export", "mixed_datalist", "read_cohort"]

if TYPE_CHECKING:
    from medgen.formats.detect import read_cohort
    from medgen.generation.export import datalist, export
    from medgen.generation.generator import Generator
    from medgen.generation.mixing import MixedDataset, mixed_datalist

_HOMES = {
    "read_cohort": "medgen.formats.detect",
    "Generator": "medgen.generation.generator",
    "export": "medgen.generation.export",
    "datalist": "medgen.generation.export",
    "MixedDataset": "medgen.generation.mixing",
    "mixed_datalist": "medgen.generation.mixing",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        import importlib

        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'medgen' has no attribute '{name}'")
