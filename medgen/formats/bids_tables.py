"""participants.tsv and sessions.tsv, as raw text rows by case."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medgen.cohort.case import SUBJECT
from medgen.errors import InputError
from medgen.files import inside
from medgen.formats import cells
from medgen.formats.bids_names import Session
from medgen.formats.columns import Columns, covariates, read_described, subjects
from medgen.formats.tables import read_table


def read_covariates(
    root: Path,
    cases: Sequence[Session],
    only: Sequence[str] | None,
    texts: Sequence[str] | None = None,
    *,
    ours: bool = False,
) -> tuple[Columns, dict[str, str]]:
    """Covariates of every case, a session's own cell before the participant's; and subjects that a table tells.

    Args:
        root: of the dataset.
        cases: its sessions.
        only: the columns to take; every usable one by default.
        texts: columns of free words for a text encoder.
        ours: medgen wrote the dataset, so that a column ``subject`` says which cases belong to one person.

    Raises:
        InputError: a table that cannot be read, names someone twice, or matches no subject folder.
    """
    table = root / "participants.tsv"
    notes: list[str] = []
    participants = _participants(root, cases, notes) if table.is_file() else {}
    described: dict[str, Mapping[str, Any]] = {
        **read_described(root / "sessions.json"),
        **read_described(root / "participants.json"),
    }
    rows = {}
    known = {sub for sub, _ in participants}
    without = [c for c in cases if c.sub in known and not {(c.sub, c.ses), (c.sub, "")} & participants.keys()]
    if without:
        notes.append(_no_session(table, without))
    lost = []
    for case in cases:
        row = dict(participants.get((case.sub, case.ses), participants.get((case.sub, ""), {})))
        told = _session(root, case)
        if told is None:
            lost.append(case)
        for column, cell in (told or {}).items():
            if not cells.missing(cell) or column not in row:
                row[column] = cell
        rows[case.case_id] = row
    if lost:
        notes.append(_no_session(root / f"sub-{lost[0].sub}" / f"sub-{lost[0].sub}_sessions.tsv", lost))
    skip = ("participant_id", "session_id", *([SUBJECT] if ours else []))
    found = covariates(rows, said_in=table, described=described, skip=skip, only=only, texts=texts)
    return Columns(found.schema, found.rows, tuple(notes) + found.notes), subjects(rows) if ours else {}


def _participants(root: Path, cases: Sequence[Session], notes: list[str]) -> dict[tuple[str, str], Mapping[str, str]]:
    """Rows by (subject, session); session is empty where the table has one row a participant."""
    path = root / "participants.tsv"
    inside(root, path.name, said_in=root)
    table = read_table(path)
    if "participant_id" not in table.columns:
        hint = "; separate columns by tabs" if len(table.columns) == 1 else ""
        raise InputError(f"{path} has no column 'participant_id' (it has: {', '.join(table.columns)}){hint}")
    rows: dict[tuple[str, str], Mapping[str, str]] = {}
    for row in table.rows:
        sub = row["participant_id"].removeprefix("sub-")
        said = row.get("session_id", "")
        ses = "" if cells.missing(said) else said.removeprefix("ses-")
        if not sub:
            raise InputError(f"{path} has a row without participant_id; fill it in or remove the row")
        if (sub, ses) in rows:
            raise InputError(f"{path} names participant_id 'sub-{sub}' twice; keep one row")
        rows[sub, ses] = row
    with_images, with_rows = {c.sub for c in cases}, {sub for sub, _ in rows}
    if rows and not with_images & with_rows:
        raise InputError(f"{path}: no participant_id is the name of a sub-* folder of {root}; mend the ids")
    if without := len(with_rows - with_images):
        notes.append(f"{path}: {without} participants have no image and are left out")
    if without := len(with_images - with_rows):
        notes.append(f"{path}: {without} subjects with images have no row; their covariates are missing")
    return rows


def _no_session(path: Path, cases: Sequence[Session]) -> str:
    return (
        f"{path}: {len(cases)} sessions of subjects that it knows have no row there, for example ses-{cases[0].ses} of "
        f"sub-{cases[0].sub}; what it says of sessions is missing for them (write session_id as the folders do)"
    )


def _session(root: Path, case: Session) -> Mapping[str, str] | None:
    """The cells of a case's session in ``sub-*/sub-*_sessions.tsv``; None where there is one that does not know it."""
    path = root / f"sub-{case.sub}" / f"sub-{case.sub}_sessions.tsv"
    if not case.ses or not path.is_file():
        return {}
    inside(root, path.relative_to(root), said_in=root)
    keyed = {k.removeprefix("ses-"): row for k, row in read_table(path).keyed("session_id").items()}
    if case.ses not in keyed:
        return None
    return {k: v for k, v in keyed[case.ses].items() if k not in ("participant_id", "session_id")}
