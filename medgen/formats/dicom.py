"""Folders of DICOM series, read through SimpleITK (GDCM). Reading only.

One case a study. Of the tags only the age, the sex and the geometry stay; cases are ``case0001``, ... in the order of
StudyInstanceUID and subjects ``subject0001``, ... likewise, so no identifier enters.

A series becomes a channel by these rules, in order:

1. Where every study has one series, the channel is the modality (``CT``, ``MR``).
2. A description that says T1, T2, FLAIR, PD, ADC, DWI or SWI gives that name, ``_ce`` added for contrast medium, if no
   other series of the study does.
3. The description itself, made safe, if at least two subjects have it: what one subject alone has may be a name.
4. Else modality and rank in the study, by SeriesNumber (``MR_1``).

Series with fewer than ``min_slices`` (localisers) and those that are no images (SR, SEG, ...) are left out and counted.
"""

import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from medgen.cohort.case import Case, Cohort, Source
from medgen.cohort.dicom_series import is_dicom, read_tags, series_in
from medgen.errors import InputError
from medgen.files import inside
from medgen.formats.cells import safe_name
from medgen.formats.columns import covariates

_STUDY, _SERIES_NUMBER, _MODALITY, _DESCRIPTION = "0020|000d", "0020|0011", "0008|0060", "0008|103e"
_PATIENT, _AGE, _SEX, _FRAMES = "0010|0020", "0010|1010", "0010|0040", "0028|0008"
_TAGS = (_STUDY, _SERIES_NUMBER, _MODALITY, _DESCRIPTION, _PATIENT, _AGE, _SEX, _FRAMES)
_NO_IMAGE = frozenset({"SR", "SEG", "RTSTRUCT", "RTPLAN", "RTDOSE", "PR", "KO", "DOC", "REG", "FID", "ECG", "PLAN"})
_SEQUENCES = {
    "FLAIR": r"flair|dark.?fluid",
    "ADC": r"\badc\b|apparent.?diff",
    "SWI": r"\bswi\b|suscept",
    "T2starw": r"t2 ?(?:\*|star)|hemo|\bgre\b.*t2|t2 fl2d",
    "T1map": r"t1 ?map|molli|t1 ?rho",
    "T2map": r"t2 ?map",
    "DWI": r"dwi|diffusion|\bep2d_diff",
    "T1w": r"t1|mp.?rage|spgr|bravo",
    "T2w": r"t2",
    "PDw": r"\bpd\b|pdw|proton",
}
_CONTRAST = re.compile(r"\+ ?c\b|\bgd\b|gado|contrast|\bpost\b|\bce\b|\bkm\b")
_LOOK_AT_FILES = 2000


@dataclass(frozen=True)
class _Series:
    """What is needed of a series until the cohort is made."""

    source: Source
    study: str
    number: int
    modality: str
    description: str
    patient: str
    age: str
    sex: str


def detect(path: Path) -> bool:
    """Whether a folder holds DICOM files and nothing that another format would own (NIfTI, ``dataset.json``)."""
    if not path.is_dir():
        return False
    found = False
    for number, file in enumerate(_files(path)):
        if file.name.endswith((".nii", ".nii.gz")) or file.name in ("dataset.json", "dataset_description.json"):
            return False
        found = found or is_dicom(file)
        if number > _LOOK_AT_FILES:
            break
    return found


def read(path: Path, *, channels: Sequence[str] | None = None, min_slices: int = 5) -> Cohort:
    """Read the DICOM series below a folder; see the rules above.

    Args:
        path: the folder, with any folders below it; one folder may hold several series, a series only one folder.
        channels: channels to read, in this order; all by default.
        min_slices: series with fewer are left out.

    Raises:
        InputError: no series, one series in two folders, or an unknown channel.
    """
    notes: list[str] = []
    found = _find(path, min_slices, notes)
    if not found:
        raise InputError(f"{path} holds no DICOM image series with at least {min_slices} slices")
    named = _channels(found)
    known = sorted(set(named))
    if channels is not None and (unknown := sorted(set(channels) - set(known))):
        raise InputError(f"{path} has no channel '{unknown[0]}' (it has: {', '.join(known)}); mend channels")
    wanted = tuple(channels) if channels is not None else tuple(known)
    studies: dict[str, list[tuple[str, _Series]]] = {}
    for channel, series in zip(named, found, strict=True):
        if channel in wanted:
            studies.setdefault(series.study, []).append((channel, series))
    ids = {study: f"case{i:04d}" for i, study in enumerate(sorted(studies), start=1)}
    subjects: dict[str, str] = {}
    for study in sorted(studies):
        subjects.setdefault(_subject_key(studies[study][0][1]), f"subject{len(subjects) + 1:04d}")
    rows = {
        ids[study]: {tag: next((getattr(s, tag) for _, s in pairs if getattr(s, tag)), "") for tag in ("age", "sex")}
        for study, pairs in studies.items()
    }
    table = covariates(rows, said_in=path)
    cases = []
    for study, pairs in sorted(studies.items()):
        images = {c: next(s.source for name, s in pairs if name == c) for c in wanted if c in [n for n, _ in pairs]}
        subject = subjects[_subject_key(pairs[0][1])]
        cases.append(Case(ids[study], subject, images, covariates=table.rows[ids[study]]))
    return Cohort("dicom", path, tuple(cases), table.schema, wanted, {}, "dicom", tuple(notes))


def _files(path: Path) -> Iterator[Path]:
    for folder, folders, files in os.walk(path):
        folders.sort()
        yield from (Path(folder) / f for f in sorted(files) if not f.startswith("."))


def _find(root: Path, min_slices: int, notes: list[str]) -> list[_Series]:
    found: list[_Series] = []
    where: dict[str, Path] = {}
    short, other = 0, 0
    for folder in sorted({f.parent for f in _files(root) if is_dicom(f)}):
        in_folder = series_in(folder)
        for series, files in in_folder.items():
            for file in files:
                inside(root, Path(file).relative_to(root), said_in=root)
            if series in where:
                raise InputError(
                    f"{folder} and {where[series]} hold slices of one DICOM series; put them in one folder"
                )
            where[series] = folder
            tags = read_tags(files[0], _TAGS)
            if tags[_MODALITY] in _NO_IMAGE:
                other += 1
            elif max(len(files), _whole(tags[_FRAMES])) < min_slices:
                short += 1
            else:
                found.append(
                    _Series(
                        Source(folder, series=series if len(in_folder) > 1 else None),
                        tags[_STUDY],
                        _whole(tags[_SERIES_NUMBER]),
                        safe_name(tags[_MODALITY]) or "OT",
                        tags[_DESCRIPTION],
                        tags[_PATIENT],
                        tags[_AGE],
                        tags[_SEX],
                    )
                )
    if short:
        notes.append(f"{short} DICOM series have fewer than {min_slices} slices and are left out")
    if other:
        notes.append(f"{other} DICOM series are no images (SR, SEG, ...) and are left out")
    # A study's series in a stable order; a series without a study is a study of its own.
    found = [s if s.study else replace(s, study=f"{s.source.path}") for s in found]
    return sorted(found, key=lambda s: (s.study, s.number, s.source.series or "", str(s.source.path)))


def _subject_key(series: _Series) -> str:
    return series.patient or series.study


def _whole(text: str) -> int:
    return int(text) if text.isdigit() else 0


def _sequence(description: str) -> str | None:
    """The sequence a description names, with ``_ce`` for contrast medium."""
    lower = description.lower().replace("_", " ")
    for name, pattern in _SEQUENCES.items():
        if re.search(pattern, lower):
            return f"{name}_ce" if _CONTRAST.search(lower) else name
    return None


def _channels(found: Sequence[_Series]) -> list[str]:
    """The channel of every series, by the rules of this module."""
    per_study = Counter(s.study for s in found)
    if max(per_study.values()) == 1:
        return [s.modality for s in found]
    same = Counter((s.study, _sequence(s.description)) for s in found)
    repeated = Counter((s.study, s.description) for s in found)
    owners: dict[str, set[str]] = {}
    for s in found:
        owners.setdefault(s.description, set()).add(_subject_key(s))
    names = []
    rank: Counter[str] = Counter()
    for s in found:
        rank[s.study] += 1
        sequence, clean = _sequence(s.description), safe_name(s.description)
        if sequence and same[s.study, sequence] == 1:
            names.append(sequence)
        elif clean and len(owners[s.description]) > 1 and repeated[s.study, s.description] == 1:
            names.append(clean)
        else:
            names.append(f"{s.modality}_{rank[s.study]}")
    return names
