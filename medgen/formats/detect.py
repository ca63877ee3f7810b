"""Which format a path holds, asked of every format module; no list of formats is kept anywhere."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from medgen.cohort.case import ORIGIN, SYNTHETIC, Cohort
from medgen.errors import InputError
from medgen.formats.writer import DatasetInfo, Writer
from medgen.registry import check_options, kinds, resolve

_ROOM = "formats"


def read_cohort(path: str | Path, *, format: str | None = None, **options: Any) -> Cohort:
    """Read a cohort from a folder or a table; cases whose column ``origin`` says so are marked as synthetic.

    Args:
        path: a BIDS, nnU-Net or Decathlon folder, a folder of DICOM series, or a CSV/TSV of paths.
        format: its kind, where the content leaves it open; recognised from the content by default.
        **options: of that kind's ``read``, for example ``channels=("T1w",)``.

    Raises:
        InputError: nothing there, nothing recognised, several kinds at once, or whatever the format finds wrong.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path} does not exist; give the folder or table of a cohort")
    kind = format if format is not None else detect_format(path)
    check_options(_ROOM, kind, "read", options)
    cohort: Cohort = resolve(_ROOM, kind, "read")(path, **options)
    if not cohort.cases:
        raise InputError(f"{path} holds no cases that medgen can read as {kind}; check that it is the right folder")
    made = [case.covariates.get(ORIGIN) == SYNTHETIC for case in cohort.cases]
    return cohort.with_cases(
        tuple(replace(case, synthetic=True) if m else case for case, m in zip(cohort.cases, made, strict=True))
    )


def detect_format(path: Path) -> str:
    """The one kind whose ``detect`` recognises the path.

    Raises:
        InputError: none or several do.
    """
    known = kinds(_ROOM, "read")
    if path.is_dir() and not any(path.iterdir()):
        raise InputError(f"{path} is an empty folder; give the folder or table of a cohort")
    found = [kind for kind in known if resolve(_ROOM, kind, "detect")(path)]
    if not found:
        raise InputError(f"{path} is no cohort that medgen recognises (it reads: {', '.join(known)}); see its layouts")
    if len(found) > 1:
        raise InputError(f"{path} looks like {' and '.join(found)}; say which with format")
    return found[0]


def open_writer(kind: str, out: str | Path, info: DatasetInfo) -> Writer:
    """Open a dataset for writing in the format ``kind``.

    Raises:
        InputError: no such format, or the folder holds something else.
    """
    writer: Writer = resolve(_ROOM, kind, "open")(Path(out), info)
    return writer
