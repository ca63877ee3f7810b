"""Files that are whole or not there: written under a temporary name, then renamed; locks; and safe paths."""

import hashlib
import json
import os
import platform
import re
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from medgen.errors import InputError

PARTIAL = ".partial-"
_NAME = re.compile(re.escape(PARTIAL) + r"(\d{6})(\d{7,})\d{6}-.*")
_in_hand: set[str] = set()


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path`` with the same suffixes; rename it onto ``path`` on success.

    The temporary name starts with a dot and ``PARTIAL`` and keeps the suffixes, because writers choose their format
    from them. It tells machine and process, see :func:`remove_partials`, and holds random digits besides. On an
    exception the temporary file is removed and ``path`` is as it was.
    """
    with _temporary(path) as temporary:
        yield temporary
        temporary.replace(path)


@contextmanager
def reserved(folder: Path, size: int) -> Iterator[Callable[[], None]]:
    """Keep room on a disk that may fill up; yields what gives it free, which also happens at the end.

    Args:
        folder: in which a file of that size lies meanwhile, under a temporary name.
        size: in bytes. They are random, so that no file system makes less of them.
    """
    with _temporary(folder / "reserve") as temporary:
        if size:
            temporary.write_bytes(os.urandom(size))
        yield lambda: temporary.unlink(missing_ok=True)


@contextmanager
def alone(lock: Path, refusal: str) -> Iterator[None]:
    """Hold a lock meanwhile; the system gives it free when a process dies, so a kill leaves none behind.

    Args:
        lock: an empty file, removed in the end. File systems that know no locks (some cluster scratch) give none.
        refusal: what is said where another process holds it.

    Raises:
        InputError: another process holds it.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    held = FileLock(lock, fallback_to_soft=False)  # a mere file would outlive a killed job
    try:
        held.acquire(timeout=0)
    except Timeout:
        raise InputError(refusal) from None
    except (NotImplementedError, OSError):
        yield
        return
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)  # while it is held: whoever comes now makes a file of their own
        held.release()


@contextmanager
def _temporary(path: Path) -> Iterator[Path]:
    """A name beside ``path``, whose file is gone in the end."""
    path.parent.mkdir(parents=True, exist_ok=True)
    process = f"{_machine():06d}{os.getpid():07d}{secrets.randbelow(10**6):06d}"
    temporary = path.with_name(f"{PARTIAL}{process}-{path.name}")
    _in_hand.add(temporary.name)
    try:
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)
        _in_hand.discard(temporary.name)


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


def remove_partials(folder: Path, *, shared: bool = False) -> int:
    """Remove what killed runs left under temporary names below ``folder``; returns how many.

    What a process that is still running on this machine writes is left alone.

    Args:
        folder: with everything below it.
        shared: whether others may be writing there at the same time: what is from another machine stays too.
    """
    spared = {True, None} if shared else {True}
    found = [p for p in folder.rglob(f"{PARTIAL}*") if p.is_file() and _is_alive(p.name) not in spared]
    for path in found:
        path.unlink(missing_ok=True)
    return len(found)


def _is_alive(name: str) -> bool | None:
    """Whether the process that writes a temporary file is running; None where that cannot be told."""
    match = _NAME.fullmatch(name)
    if match is None or os.name != "posix" or int(match[1]) != _machine():
        return None
    if int(match[2]) == os.getpid():
        return name in _in_hand
    try:
        os.kill(int(match[2]), 0)  # asks, and sends nothing
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):  # someone else's, or no number of a process
        return True
    return True


@lru_cache(maxsize=1)
def _machine() -> int:
    """Six digits that stand for this machine since it was started, and for this container on it.

    Two that share a name, as machines of a cluster or of one image may, still differ.
    """
    said = [platform.node()]
    with suppress(OSError):  # systems without /proc
        said += [Path("/proc/sys/kernel/random/boot_id").read_text(), str(Path("/proc/self/ns/pid").readlink())]
    return int(hashlib.sha256(" ".join(said).encode()).hexdigest(), 16) % 10**6


def plain(value: Any) -> Any:
    """A value as JSON keeps it: mappings as dicts with text for keys, tuples as lists."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    return value
