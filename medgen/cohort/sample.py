"""One synthetic case on its way to an exporter."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from medgen.cohort.schema import Value
from medgen.volume import Volume


@dataclass(frozen=True)
class Sample:
    """A generated image and label pair.

    Attributes:
        sample_id: letters and digits only, unique in the dataset, for example ``syn000012``.
        images: channel name -> volume of one channel, float32 or integer as the cohort's files were.
        label: integer label map with the cohort's original values, or None.
        covariates: what was asked for and measured, one row of ``participants.tsv``.
        sidecar: JSON-able provenance; the file that holds it is written last and commits the sample.
    """

    sample_id: str
    images: Mapping[str, Volume]
    label: Volume | None
    covariates: Mapping[str, Value] = field(default_factory=dict)
    sidecar: Mapping[str, Any] = field(default_factory=dict)
