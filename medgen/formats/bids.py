"""BIDS: raw and derivative datasets in, a derivative dataset out.

One case a subject, session and run. Images are the ``anat`` files, channels their suffixes. Covariates come from
``participants.tsv`` and ``sessions.tsv``, labels from a derivatives folder or from beside the images.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from medgen.cohort.case import Case, Cohort, Source
from medgen.errors import InputError
from medgen.files import inside, read_json
from medgen.formats import folds
from medgen.formats.bids_labels import Choice, read_labels
from medgen.formats.bids_names import (
    NOT_IMAGES,
    Name,
    Session,
    check_place,
    nifti_files,
    parse,
    sessions,
    subject_folders,
)
from medgen.formats.bids_names import (
    channels as name_channels,
)
from medgen.formats.bids_tables import read_covariates
from medgen.formats.bids_write import CHANNELS, BidsWriter, generated_by
from medgen.formats.writer import DatasetInfo, Writer


def detect(path: Path) -> bool:
    """Whether a folder is a BIDS dataset."""
    if not path.is_dir():
        return False
    described = (path / "dataset_description.json").is_file()
    return described or any(next(s.rglob("sub-*_*.nii*"), None) is not None for s in subject_folders(path))


def read(
    path: Path,
    *,
    channels: Sequence[str] | None = None,
    columns: Sequence[str] | None = None,
    texts: Sequence[str] | None = None,
    label_derivative: str | Sequence[str] | None = None,
    label_suffix: str | Sequence[str] | None = None,
    label_desc: str | Sequence[str] | None = None,
    label_entity: Mapping[str, str] | None = None,
    datatype: str = "anat",
    fold: int = 0,
) -> Cohort:
    """Read a BIDS dataset.

    Where medgen combined it, real and synthetic cases are on the sides of one fold of ``splits_final.json``, and those
    that other folds alone use on ``test``: a model that made them may have seen what validates here.

    Args:
        path: its root.
        channels: suffixes (``T1w``) or variants (``ce-gadolinium_T1w``) to read, in this order; all by default.
        columns: columns of the tables to take as covariates; every usable one by default.
        texts: columns of free words for a text encoder; none by default.
        label_derivative: folder(s) under ``derivatives`` that hold the labels; ``.`` is the dataset itself.
        label_suffix: ``dseg``, ``mask`` or ``roi``.
        label_desc: value(s) of the ``desc-`` entity; several are merged in this order.
        label_entity: further entities, for example ``{"seg": "aseg"}``.
        datatype: the folder that holds the images.
        fold: of ``splits_final.json``.

    Raises:
        InputError: no images, a name or table that is wrong, or labels that leave a choice open.
    """
    choice = Choice(_words(label_derivative), _words(label_suffix), _words(label_desc), dict(label_entity or {}))
    notes: list[str] = []
    found = sessions(_images(path, datatype, notes))
    own = _own_channels(path, found) if channels is None else {}
    picked, names = name_channels(found, _words(channels) or tuple(own.values()) or None)
    if own:
        said = {tail: channel for channel, tail in own.items()}
        picked, names = [{said[c]: n for c, n in p.items()} for p in picked], tuple(said[c] for c in names)
    kept = [(s, p) for s, p in zip(found, picked, strict=True) if p]
    if len(kept) < len(found):
        notes.append(f"{len(found) - len(kept)} cases have none of the channels {', '.join(names)} and are left out")
    variants = sorted({c for c in names if "_" in c})
    if variants and channels is None and not own:
        notes.append(f"some sessions hold several images of one kind, each a channel: {', '.join(variants)}")
    cases = [s for s, _ in kept]
    table, subjects = read_covariates(path, cases, columns, _words(texts), ours=bool(own))
    labels = read_labels(path, cases, choice, datatype)
    names_of = {f"sub-{s.sub}": s.case_id for s in cases}
    split = folds.split(path, fold, names_of.values(), lambda name: names_of.get(name, name)) if own else {}
    if split:
        notes.append(folds.of_fold(fold))
    return Cohort(
        name=_name(path),
        root=path,
        cases=tuple(
            Case(
                case_id=s.case_id,
                subject_id=subjects.get(s.case_id, f"sub-{s.sub}"),
                images={c: Source(images[c].path) for c in names if c in images},
                label=labels.files.get(s.case_id, ()),
                mask=labels.masks.get(s.case_id),
                covariates=table.rows[s.case_id],
                split=split.get(s.case_id),
            )
            for s, images in sorted(kept, key=lambda pair: pair[0].case_id)
        ),
        schema=table.schema,
        channels=names,
        label_names=labels.names,
        format="bids",
        notes=tuple(notes) + table.notes + labels.notes,
    )


def open(out: Path, info: DatasetInfo) -> Writer:
    """Open a BIDS derivative dataset for writing; see :mod:`medgen.formats.bids_write`."""
    return BidsWriter(out, info)


def _images(root: Path, datatype: str, notes: list[str]) -> list[Name]:
    names, odd = [], []
    for subject in subject_folders(root):
        for path in nifti_files(subject, datatype):
            if path.parent.name != datatype:
                continue
            name = parse(path)
            if name is None:
                odd.append(path)
            elif name.suffix not in NOT_IMAGES:
                check_place(name, subject)
                inside(root, path.relative_to(root), said_in=root)
                names.append(name)
    if not names:
        example = f"sub-01/{datatype}/sub-01_T1w.nii.gz"
        hint = f"; {odd[0].name} is no BIDS name" if odd else ""
        raise InputError(f"{root} holds no BIDS images such as {example}{hint}")
    if odd:
        notes.append(f"{len(odd)} files have no BIDS name and are left out, for example {odd[0].name}")
    return names


def _own_channels(root: Path, found: Sequence[Session]) -> dict[str, str]:
    """Channel -> variant or suffix of its files, in order, of a dataset that medgen wrote; empty for others."""
    path = root / "dataset_description.json"
    by = generated_by(read_json(path)) if path.is_file() else {}
    told = by.get(CHANNELS) if by.get("Name") == "medgen" else None
    there = {word for s in found for n in s.images for word in (n.variant, n.suffix)}
    if not isinstance(told, dict) or len(set(map(str, told.values()))) < len(told):
        return {}
    return {str(channel): str(tail) for channel, tail in told.items() if str(tail) in there}


def _name(root: Path) -> str:
    path = root / "dataset_description.json"
    if not path.is_file():
        return root.resolve().name
    description = read_json(path)
    if not isinstance(description, dict):
        raise InputError(f"{path} must be a JSON object with Name and BIDSVersion")
    return str(description.get("Name") or root.resolve().name)


def _words(option: str | Sequence[str] | None) -> tuple[str, ...]:
    return () if option is None else (option,) if isinstance(option, str) else tuple(option)
