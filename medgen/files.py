"""Files that are whole or not there: written under a temporary name, then renamed; and safe paths."""

import hashlib
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from medgen.errors import InputError

PARTIAL = ".partial-"


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path`` with the same suffixes; rename it onto ``path`` on success.

    The temporary name starts with a dot and ``PARTIAL`` and keeps the suffixes, because writers choose their format
    from them. It holds random digits: writers on several hosts may share a process number. On an exception the
    temporary file is removed and ``path`` is as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{PARTIAL}{os.getpid()}{secrets.randbelow(10**9):09d}-{path.name}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically, refusing NaN and infinities (they are not JSON)."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file (a byte-order mark is accepted).

    Raises:
        InputError: the file is missing or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise InputError(f"{path} does not exist") from None
    except IsADirectoryError:
        raise InputError(f"{path} is a folder; a JSON file was expected") from None
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"{path} is not valid JSON ({error}); mend or remove it") from None


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def digest(value: Any) -> str:
    """Hex SHA-256 (first 16 digits) of a JSON-able value, independent of key order."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]


def inside(root: Path, relative: str | Path, *, said_in: Path) -> Path:
    """Resolve a path that a user's table or JSON names, refusing to leave ``root``.

    Args:
        root: the folder that must contain the result, symbolic links followed.
        relative: the path as written.
        said_in: the file that names it, for the message.

    Raises:
        InputError: the path leaves the folder, or nothing is there.
    """
    try:
        resolved = (root / relative).resolve()
        there = resolved.exists()
    except (OSError, RuntimeError, ValueError) as error:  # too long, a loop of links, a null byte
        raise InputError(f"{said_in} names {str(relative)[:80]!r}, which cannot be a path ({error})"[:300]) from None
    if not resolved.is_relative_to(root.resolve()):
        raise InputError(f"{said_in} names '{relative}', which lies outside {root}; paths must stay inside it")
    if not there:
        raise InputError(f"{said_in} names '{relative}', which does not exist under {root}")
    return resolved


def remove_partials(folder: Path) -> int:
    """Remove what killed runs left under temporary names below ``folder``; returns how many."""
    found = [p for p in folder.rglob(f"{PARTIAL}*") if p.is_file()]
    for path in found:
        path.unlink(missing_ok=True)
    return len(found)
