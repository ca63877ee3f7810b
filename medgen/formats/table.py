"""A CSV or TSV with one row a case: paths of images and labels, and covariates. Reading only.

Column rules (names are compared in lower case):

- ``image`` or ``path``: the image of a cohort with one channel, called ``image``. ``t1w_path``, ``flair_path``, ...:
  one image a channel, called by what stands before ``_path`` as written. An empty cell is a missing channel.
- ``label`` (or ``seg``, ``segmentation``; with or without ``_path``): an integer label map. ``label_3``: a mask whose
  non-zero voxels get label 3. ``label_lesion``: a mask of a structure, numbered in column order after the highest
  number above; not together with an integer label map, whose numbers a table does not know. Later columns lie over
  earlier ones.
- ``mask`` (or ``brain_mask``; with or without ``_path``): a foreground mask.
- ``case`` (or ``case_id``): unique; the first image's file name by default, and ``case0001``, ... where that repeats.
- ``subject`` (or ``subject_id``, ``participant_id``, ``patient_id``): the case by default.
- ``split``: train, val or test.
- every other column is a covariate (see :mod:`medgen.formats.columns`), described in a JSON beside the table.

Paths are relative to the table's folder, or to ``root``, and must stay inside it. A path is a NIfTI file or a folder
that holds one DICOM series. Label names are read from ``dseg.tsv`` beside the table.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from medgen.cohort.case import Case, Cohort, LabelFile, Source
from medgen.errors import InputError
from medgen.files import inside
from medgen.formats import cells
from medgen.formats.columns import covariates, read_described
from medgen.formats.folder import stem
from medgen.formats.tables import Table, read_label_names, read_table

_ENDINGS = (".csv", ".tsv")
_IMAGE = ("image", "path", "image_path", "img", "img_path")
_LABEL = ("label", "label_path", "seg", "seg_path", "segmentation", "segmentation_path", "labelmap", "labelmap_path")
_MASK = ("mask", "mask_path", "brain_mask", "brain_mask_path", "brainmask", "brainmask_path")
_NO_CHANNEL = re.compile(r"(^|[^a-z])(seg|dseg|aseg|segmentation|labels?|masks?|lesions?|roi)([^a-z]|$)")
_CASE = ("case", "case_id")
_SUBJECT = ("subject", "subject_id", "participant_id", "patient_id", "patient")
_SPLITS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


def detect(path: Path) -> bool:
    """Whether a path is a table, or a folder whose only table has a column of images."""
    found = _find(path)
    return found is not None and (path.is_file() or bool(_image_columns(read_table(found))))


def read(
    path: Path, *, root: str = "", columns: Sequence[str] | None = None, texts: Sequence[str] | None = None
) -> Cohort:
    """Read a table of cases; see the rules above.

    Args:
        path: a ``.csv`` or ``.tsv``, or a folder that holds exactly one.
        root: the folder that paths are relative to and stay inside; the table's own by default.
        columns: columns to take as covariates; every usable one by default.
        texts: columns of free words for a text encoder; none by default.

    Raises:
        InputError: no image column, a path that leads nowhere or outside, an id twice, or a cell that is wrong.
    """
    found = _find(path)
    if found is None:
        raise InputError(f"{path} is no CSV or TSV and holds not exactly one; give the table's path")
    base = Path(root) if root else found.parent
    table = read_table(found)
    images = _image_columns(table)
    if not images:
        raise InputError(f"{found} has no column 'image' or '<channel>_path' (it has: {', '.join(table.columns)})")
    if not table.rows:
        raise InputError(f"{found} has a header but no rows; write one row a case")
    label_map, masks = _label_columns(table, images)
    mask, case, subject, split = (_one(table, names) for names in (_MASK, _CASE, _SUBJECT, ("split",)))
    lookup = found.parent / "dseg.tsv"
    names = read_label_names(lookup) if lookup.is_file() and lookup != found else {}
    case_ids = _case_ids(table, case, list(images.values()))
    rows = dict(zip(case_ids, table.rows, strict=True))
    used = {c for c in (*images.values(), label_map, *masks, mask, case, subject, split) if c}
    described = read_described(found.with_suffix(".json"))
    covariate_columns = covariates(
        rows, said_in=found, described=described, skip=tuple(used), only=columns, texts=texts
    )
    cases = []
    for case_id, row in rows.items():
        sources = {c: _source(base, row[column], found) for c, column in images.items() if _filled(row[column])}
        if not sources:
            raise InputError(f"{found}: row {case_id} names no image; fill one in or remove the row")
        labels = [LabelFile(_source(base, row[label_map], found))] if label_map and _filled(row[label_map]) else []
        labels += [LabelFile(_source(base, row[c], found), value) for c, value in masks.items() if _filled(row[c])]
        side = row[split].lower() if split and _filled(row[split]) else None
        if side is not None and side not in _SPLITS:
            raise InputError(f"{found}: row {case_id} has split '{side}'; write train, val or test")
        cases.append(
            Case(
                case_id=case_id,
                subject_id=row[subject] if subject and _filled(row[subject]) else case_id,
                images=sources,
                label=tuple(labels),
                mask=_source(base, row[mask], found) if mask and _filled(row[mask]) else None,
                covariates=covariate_columns.rows[case_id],
                split=_SPLITS[side] if side else None,
            )
        )
    own = {value: f"label_{value}" if _structure(c).isdigit() else _structure(c) for c, value in masks.items()}
    return Cohort(
        name=found.stem,
        root=base,
        cases=tuple(sorted(cases, key=lambda c: c.case_id)),
        schema=covariate_columns.schema,
        channels=tuple(images),
        label_names=dict(sorted({**own, **names}.items())),
        format="table",
        notes=covariate_columns.notes,
    )


def _find(path: Path) -> Path | None:
    if path.is_file():
        return path if path.suffix.lower() in _ENDINGS else None
    home = path.resolve()
    there = (p for p in path.iterdir() if p.suffix.lower() in _ENDINGS and p.is_file() and p.name != "dseg.tsv")
    tables = [p for p in there if p.resolve().is_relative_to(home)]
    return tables[0] if len(tables) == 1 else None


def _filled(cell: str) -> bool:
    return not cells.missing(cell)


def _one(table: Table, names: Sequence[str]) -> str | None:
    """The column with one of these names.

    Raises:
        InputError: there are several.
    """
    found = [c for c in table.columns if c.lower() in names]
    if len(found) > 1:
        raise InputError(f"{table.path} has the columns {', '.join(found)}, which mean the same; keep one")
    return found[0] if found else None


def _image_columns(table: Table) -> dict[str, str]:
    """Channel -> column."""
    taken = {*_IMAGE, *_LABEL, *_MASK}
    named = {
        cells.safe_name(c[: -len("_path")]): c
        for c in table.columns
        if c.lower().endswith("_path") and c.lower() not in taken and not c.lower().startswith("label_")
    }
    for channel, column in named.items():
        if _NO_CHANNEL.search(channel.lower()):
            raise InputError(
                f"{table.path}: is '{column}' a label map or an image? Call a label map 'label', a mask of one "
                "structure 'label_<name>', a foreground mask 'mask', and an image by its sequence"
            )
    single = _one(table, _IMAGE)
    return ({"image": single} if single else {}) | named


def _label_columns(table: Table, images: Mapping[str, str]) -> tuple[str | None, dict[str, int]]:
    """The column of integer label maps, and mask columns with the value each gets."""
    label_map = _one(table, _LABEL)
    columns = [c for c in table.columns if c.lower().startswith("label_") and c.lower() not in _LABEL]
    numbered = {c: int(_structure(c)) for c in columns if _structure(c).isdigit()}
    named = [c for c in columns if c not in numbered]
    if label_map and named:
        raise InputError(f"{table.path}: beside '{label_map}' call '{named[0]}' by its number, such as label_3")
    if 0 in numbered.values():
        raise InputError(f"{table.path}: label_0 is the background; number structures from 1")
    if len(set(numbered.values())) < len(numbered):
        raise InputError(f"{table.path} gives two label columns the same number; renumber one")
    first = max(numbered.values(), default=0) + 1
    values = numbered | {c: first + i for i, c in enumerate(named)}
    return label_map, {c: values[c] for c in columns}


def _structure(column: str) -> str:
    """What ``label_lesion`` or ``label_lesion_path`` outlines."""
    return column[len("label_") :].removesuffix("_path")


def _case_ids(table: Table, case: str | None, images: Sequence[str]) -> list[str]:
    if case:
        return list(table.keyed(case))
    firsts = [next((row[c] for c in images if _filled(row[c])), "") for row in table.rows]
    stems = [stem(f) or Path(f).name for f in firsts]
    return (
        stems if all(stems) and len(set(stems)) == len(stems) else [f"case{i:04d}" for i in range(1, len(firsts) + 1)]
    )


def _source(base: Path, cell: str, said_in: Path) -> Source:
    inside(base, cell, said_in=said_in)
    path = base / cell
    if not path.is_dir() and stem(path) is None:
        raise InputError(f"{said_in} names '{cell}'; medgen reads .nii.gz and .nii files or DICOM folders: convert it")
    return Source(path)
