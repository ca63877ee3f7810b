"""What the nnU-Net and Decathlon layouts share: dataset.json, imagesTr, labelsTr, and medgen's table of covariates.

Neither format has a place for covariates. ``covariates.tsv`` beside ``dataset.json`` is medgen's: a column ``case_id``,
optionally ``subject`` (cases of one subject never fall on two sides of a split), the rest covariates as described in
``covariates.json``. The writers make it; a user may add one to a cohort.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medgen.cohort.case import SUBJECT
from medgen.cohort.schema import Schema
from medgen.errors import InputError
from medgen.files import inside, read_json
from medgen.formats import cells
from medgen.formats.bids_write import covariate_rows
from medgen.formats.columns import Columns, covariates, describe, read_described, subjects
from medgen.formats.tables import read_table, tsv_text
from medgen.formats.writer import LABEL_MAP, SIDECARS, DatasetInfo, refresh, refuse_others

DATASET_JSON = "dataset.json"
TABLE = "covariates.tsv"
_NIFTI = (".nii.gz", ".nii")


def read_dataset_json(root: Path) -> dict[str, Any]:
    """``dataset.json`` as a mapping.

    Raises:
        InputError: not there, not JSON, or not an object.
    """
    content = read_json(root / DATASET_JSON)
    if not isinstance(content, dict):
        raise InputError(f"{root / DATASET_JSON} must be a JSON object; see the format's documentation")
    return content


def stem(path: str | Path) -> str | None:
    """A NIfTI file's name without its ending; None for other files."""
    name = Path(path).name
    return next((name.removesuffix(e) for e in _NIFTI if name.endswith(e) and name != e), None)


def has_numbered_channels(root: Path, channels: int) -> bool:
    """Whether every file of ``imagesTr`` ends in a channel number, as nnU-Net names them (``case_0000.nii.gz``)."""
    folder = root / "imagesTr"
    files = [p for p in folder.iterdir() if not p.name.startswith(".")] if folder.is_dir() else []
    numbers = [re.search(r"_(\d{4})\.[a-z.]+$", p.name) for p in files]
    return bool(numbers) and all(m is not None and int(m[1]) < max(channels, 1) for m in numbers)


def numbered_names(content: Mapping[str, Any], key: str, said_in: Path) -> list[str]:
    """Names under "0", "1", ... in order.

    Raises:
        InputError: the key is missing, is empty, or its numbers do not run from 0.
    """
    names = content.get(key)
    if not isinstance(names, dict) or not names:
        raise InputError(f'{said_in} needs "{key}" such as {{"0": "T1w"}}')
    if set(names) != {str(i) for i in range(len(names))}:
        raise InputError(f'{said_in}: the keys of "{key}" must be "0", "1", ... without gaps, not {", ".join(names)}')
    return [str(names[str(i)]) for i in range(len(names))]


def read_covariates(
    root: Path, case_ids: Sequence[str], texts: Sequence[str] | None = None
) -> tuple[Columns, dict[str, str]]:
    """Covariates and subjects from ``covariates.tsv``; neither where there is none.

    Raises:
        InputError: the table cannot be read or names no case of the folder.
    """
    path = root / TABLE
    if not path.exists():
        return Columns(Schema(), {i: {} for i in case_ids}), {}
    inside(root, TABLE, said_in=root)
    table = read_table(path).keyed("case_id")
    if not set(table) & set(case_ids):
        raise InputError(f"{path}: no case_id is the name of an image (such as {case_ids[0]}); mend the ids")
    rows = {i: table.get(i, {}) for i in case_ids}
    lost, others = [i for i in case_ids if i not in table], sorted(set(table) - set(case_ids))
    notes = [f"{path}: {len(lost)} cases have no row, so no covariates; for example {lost[0]}"] if lost else []
    notes += [f"{path}: {len(others)} rows name no image and are left out, for example {others[0]}"] if others else []
    if lost and any(not cells.missing(row.get(SUBJECT, "")) for row in rows.values()):
        raise InputError(f"{path} says in '{SUBJECT}' who cases are of, but not of {lost[0]}; add its row")
    found = covariates(
        rows,
        said_in=path,
        described=read_described(path.with_suffix(".json")),
        skip=("case_id", SUBJECT),
        texts=texts,
    )
    return Columns(found.schema, found.rows, (*notes, *found.notes)), subjects(rows)


def write_covariates(root: Path, info: DatasetInfo, sidecars: Mapping[str, Mapping[str, Any]]) -> None:
    """Write ``covariates.tsv`` and ``covariates.json`` from the sidecars."""
    columns, rows = covariate_rows(info, sidecars)
    refresh(root / TABLE, tsv_text(["case_id", *columns], [[i, *row] for i, row in rows.items()]))
    write_manifest((root / TABLE).with_suffix(".json"), describe(info.schema))


def write_manifest(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON manifest unless it already reads so."""
    refresh(path, json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def check_free(root: Path, *, numbered: bool) -> None:
    """Refuse to write into what medgen did not make, or made in another format.

    Args:
        root: of the dataset.
        numbered: whether images end in the number of their channel, as nnU-Net's do.

    Raises:
        InputError: naming the folder.
    """
    if not (root / SIDECARS).is_dir():
        refuse_others(root)
        return
    if (root / "dataset_description.json").exists():
        raise InputError(f"{root} holds a BIDS dataset too; choose an empty folder")
    for path in sorted((root / SIDECARS).glob("*.json")):
        record = read_json(path)
        if path.name != LABEL_MAP and record.get("files"):
            first = str(record["files"][0])
            if first.endswith(f"/{record.get('sample_id')}_0000.nii.gz") != numbered:
                raise InputError(f"{root} holds samples in another format already; choose an empty folder")
            return
