"""The one experiment file, as pydantic models. Unknown keys are errors that name the nearest key.

Options of plug-ins (a codec's widths, a sampler's knobs) are free mappings here and are checked against the
plug-in's signature by :mod:`medgen.registry` before the first stage runs.
"""

from medgen.config.codec import AutoencoderConfig
from medgen.config.data import PhantomConfig
from medgen.config.diffusion import DistilConfig
from medgen.config.experiment import Config
from medgen.config.load import build, load
from medgen.config.training import TrainingConfig
from medgen.config.utility import UtilityConfig

__all__ = [
    "AutoencoderConfig",
    "Config",
    "DistilConfig",
    "PhantomConfig",
    "TrainingConfig",
    "UtilityConfig",
    "build",
    "load",
]
