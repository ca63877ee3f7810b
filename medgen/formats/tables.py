"""Tables as labs write them: CSV and TSV with byte-order marks, CRLF, semicolons and ragged ends."""

import csv
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from medgen.errors import InputError

_SEPARATORS = ",;\t"


@dataclass(frozen=True)
class Table:
    """A table of text cells, white space stripped.

    Attributes:
        path: where it was read from.
        columns: names in order, unique.
        rows: one mapping of column -> cell each; cells that are not there are empty.
    """

    path: Path
    columns: tuple[str, ...]
    rows: tuple[Mapping[str, str], ...]

    def keyed(self, column: str) -> dict[str, Mapping[str, str]]:
        """Rows by the value of a column.

        Raises:
            InputError: no such column, an empty cell in it, or the same value twice.
        """
        if column not in self.columns:
            raise InputError(f"{self.path} has no column '{column}' (it has: {', '.join(self.columns)}); add it")
        keyed: dict[str, Mapping[str, str]] = {}
        for row in self.rows:
            if not row[column]:
                raise InputError(f"{self.path} has a row without {column}; fill it in or remove the row")
            if row[column] in keyed:
                raise InputError(f"{self.path} names {column} '{row[column]}' twice; keep one row")
            keyed[row[column]] = row
        return keyed


def read_table(path: Path) -> Table:
    """Read a ``.tsv`` (tabs) or ``.csv`` (commas, semicolons or tabs, whichever the header has most of).

    Raises:
        InputError: missing, not UTF-8 text, no header, a column named twice, or a row longer than the header.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise InputError(f"{path} does not exist") from None
    except UnicodeDecodeError:
        raise InputError(f"{path} is not UTF-8 text; save it again as UTF-8") from None
    # Line by line: one stray quotation mark would swallow the rest of the table.
    lines = [line for line in re.split(r"\r\n|\r|\n", text) if line.strip()]
    if not lines or "\0" in text:
        raise InputError(f"{path} {'is not a text table' if lines else 'is empty'}; write a header and one row a case")
    separator = "\t" if path.suffix.lower() == ".tsv" else max(_SEPARATORS, key=re.sub(r'"[^"]*"', "", lines[0]).count)
    cells = [[cell.strip() for cell in next(csv.reader([line], delimiter=separator))] for line in lines]
    columns = tuple(cells[0])
    while columns and not columns[-1]:
        columns = columns[:-1]
    if twice := sorted({c for c in columns if columns.count(c) > 1}):
        raise InputError(f"{path} has two columns named '{twice[0]}'; rename one")
    rows = []
    for number, row in enumerate(cells[1:], start=2):
        if any(row[len(columns) :]):
            raise InputError(f"{path} line {number} has {len(row)} cells but the header has {len(columns)}; mend it")
        rows.append(dict(zip(columns, row + [""] * (len(columns) - len(row)), strict=False)))
    return Table(path, columns, tuple(rows))


def tsv_text(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A TSV as text, ``n/a`` for empty cells."""
    lines = [columns, *([cell or "n/a" for cell in row] for row in rows)]
    return "".join("\t".join(re.sub(r"[\t\r\n]+", " ", cell) for cell in line) + "\n" for line in lines)


def read_label_names(path: Path) -> dict[int, str]:
    """Label names from a BIDS lookup table with columns ``index`` and ``name``; background (0) left out.

    Raises:
        InputError: a column is missing, an index is not an integer, or is there twice.
    """
    table = read_table(path)
    if "name" not in table.columns:
        raise InputError(f"{path} has no column 'name' (it has: {', '.join(table.columns)}); add it")
    names: dict[int, str] = {}
    for text, row in table.keyed("index").items():
        try:
            index = int(text)
        except ValueError:
            raise InputError(f"{path}: index '{text}' is not an integer; mend it") from None
        if index != 0:
            names[index] = row["name"] or f"label_{index}"
    return names
