"""What a format yields: cases with their channels, labels and covariates, and the cohort they form."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from medgen.cohort.schema import Schema, Value

ORIGIN = "origin"
REAL, SYNTHETIC = "real", "synthetic"
"""A column that says of each case of a combined dataset where it comes from, and what stands in it."""
SUBJECT = "subject"
"""Column and key of a sidecar that say which cases of a dataset are of one person."""


def numbered(subjects: Iterable[str]) -> dict[str, int]:
    """Each subject with a running number from 0, in the order in which they come first."""
    return {subject: k for k, subject in enumerate(dict.fromkeys(subjects))}


@dataclass(frozen=True)
class Source:
    """Where the voxels of one image or label lie.

    Attributes:
        path: a NIfTI file, or a folder that holds one DICOM series.
        component: the channel of a 4D file, None for a 3D file.
        series: the SeriesInstanceUID of a DICOM series, where the folder holds several; never written anywhere.
    """

    path: Path
    component: int | None = None
    series: str | None = None


@dataclass(frozen=True)
class LabelFile:
    """One label file of a case.

    Attributes:
        source: where it lies.
        value: None where the file's integers are the labels; otherwise the label that its non-zero voxels get.
    """

    source: Source
    value: int | None = None


@dataclass(frozen=True)
class Case:
    """One scan session of one subject.

    Attributes:
        case_id: unique in the cohort.
        subject_id: cases of one subject never fall on two sides of a split.
        images: channel name -> source; a channel of the cohort may be missing here.
        label: label files, merged in order, later over earlier; empty where the case has no label.
        mask: a foreground mask, where the cohort has one.
        covariates: name -> number, level or None (missing). Names missing here count as None.
        split: "train", "val" or "test" where the cohort fixes it, else None.
        synthetic: whether a model made it; such a case trains and never judges.
    """

    case_id: str
    subject_id: str
    images: Mapping[str, Source]
    label: tuple[LabelFile, ...] = ()
    mask: Source | None = None
    covariates: Mapping[str, Value] = field(default_factory=dict)
    split: str | None = None
    synthetic: bool = False

    @property
    def has_label(self) -> bool:
        """Whether any label file is there."""
        return bool(self.label)


@dataclass(frozen=True)
class Cohort:
    """Cases with what they share.

    Attributes:
        name: of the dataset.
        root: the folder it was read from.
        cases: sorted by case_id.
        schema: the covariates' kinds, units, ranges and levels.
        channels: channel names in order; the union over the cases.
        label_names: original integer value -> name, background (0) left out; values found only in the voxels get
            names such as ``label_7`` when the cohort is prepared.
        format: the kind that read it.
        notes: what was left out while reading and why, one sentence each (columns, rows, files).
    """

    name: str
    root: Path
    cases: tuple[Case, ...]
    schema: Schema
    channels: tuple[str, ...]
    label_names: Mapping[int, str] = field(default_factory=dict)
    format: str = "bids"
    notes: tuple[str, ...] = ()

    def with_cases(self, cases: tuple[Case, ...]) -> "Cohort":
        """The same cohort with other cases."""
        return replace(self, cases=cases)
