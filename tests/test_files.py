"""Files are whole or not there, JSON is JSON, and a table cannot name what lies outside its folder."""

import errno
import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medgen.errors import InputError
from medgen.files import (
    PARTIAL,
    alone,
    atomic,
    digest,
    inside,
    read_json,
    remove_partials,
    sha256_file,
    write_json,
    write_text,
)

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)


def test_one_process_is_alone_and_a_kill_leaves_no_lock(tmp_path: Path) -> None:
    lock = tmp_path / "a" / ".lock"
    with alone(lock, "busy"):
        with pytest.raises(InputError, match=r"^busy$"), alone(lock, "busy"):
            pass
        assert lock.exists(), "who is refused takes nothing away"
    assert not lock.exists()
    holder = (
        "import sys, time\nfrom pathlib import Path\nfrom medgen.files import alone\n"
        "with alone(Path(sys.argv[1]), 'busy'):\n    print('held', flush=True)\n    time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", holder, str(lock)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        with pytest.raises(InputError), alone(lock, "busy"):
            pass
        process.kill()
        process.wait()
    assert lock.exists()
    with alone(lock, "busy"):
        pass
    assert not lock.exists()


def test_a_file_system_without_locks_gives_none_and_no_file_stays(tmp_path: Path, monkeypatch) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOSYS, "not here")

    monkeypatch.setattr("fcntl.flock", no_locks)
    with alone(tmp_path / ".lock", "busy"), alone(tmp_path / ".lock", "busy"):
        pass
    with alone(tmp_path / ".lock", "busy"):
        pass


def test_atomic_keeps_suffixes_and_makes_folders(tmp_path: Path) -> None:
    with atomic(tmp_path / "a" / "b" / "x.nii.gz") as temporary:
        assert temporary.name.startswith(PARTIAL) and temporary.name.endswith(".nii.gz")
        temporary.write_bytes(b"whole")
        assert not (tmp_path / "a/b/x.nii.gz").exists()
    assert (tmp_path / "a/b/x.nii.gz").read_bytes() == b"whole"
    assert len(list((tmp_path / "a/b").iterdir())) == 1


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_a_failed_write_leaves_the_old_file(error: type[BaseException], tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_text("old")
    with pytest.raises(error), atomic(path) as temporary:
        temporary.write_text("half")
        raise error
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_kill_in_the_middle_leaves_only_what_the_next_run_removes(tmp_path: Path) -> None:
    path = tmp_path / "sub" / "x.json"
    program = (
        "import os, sys\nfrom pathlib import Path\nfrom medgen.files import atomic\n"
        "with atomic(Path(sys.argv[1])) as t:\n    t.write_text('half')\n    os.kill(os.getpid(), 9)\n"
    )
    assert subprocess.run([sys.executable, "-c", program, str(path)]).returncode == -9
    assert not path.exists()
    assert [p.name.startswith(PARTIAL) for p in path.parent.iterdir()] == [True]
    keep = tmp_path / "sub" / "kept.json"
    keep.write_text("{}")
    assert remove_partials(tmp_path) == 1
    assert list(path.parent.iterdir()) == [keep]
    assert remove_partials(tmp_path) == 0


@given(value=JSON)
def test_json_round_trip(value: object, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("json") / "a.json"
    write_json(path, value)
    assert read_json(path) == value


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {"a": [float("-inf")]}])
def test_json_without_numbers_that_are_none(value: object, tmp_path: Path) -> None:
    with pytest.raises(ValueError):
        write_json(tmp_path / "a.json", value)
    assert list(tmp_path.iterdir()) == []


def test_json_with_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert read_json(tmp_path / "a.json") == {"a": 1}


@pytest.mark.parametrize(
    "content", [b"", b"{", b'{"a": 1,}', b"\xff\xfe{\x00}\x00", b"\x80\x81", b"not json", b"[" * 100_000]
)
def test_broken_json_is_one_sentence(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match="is not valid JSON") as error:
        read_json(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_missing_json_and_a_folder_in_its_place(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        read_json(tmp_path / "none.json")
    with pytest.raises(InputError, match="is a folder"):
        read_json(tmp_path)


def test_digest_ignores_key_order_and_sees_values() -> None:
    assert digest({"a": 1, "b": [2, 3]}) == digest({"b": [2, 3], "a": 1})
    assert digest({"a": 1}) != digest({"a": 2})
    assert digest([1, 2]) != digest([2, 1])
    assert len(digest("x")) == 16


def test_sha256_of_known_content(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "abc")
    assert sha256_file(tmp_path / "a.txt") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_paths_inside_are_resolved(tmp_path: Path) -> None:
    (tmp_path / "root" / "a").mkdir(parents=True)
    (tmp_path / "root" / "a" / "x.nii").touch()
    (tmp_path / "root" / "link.nii").symlink_to(tmp_path / "root" / "a" / "x.nii")
    for name in ("a/x.nii", "./a/../a/x.nii", "link.nii", str(tmp_path / "root/a/x.nii")):
        found = inside(tmp_path / "root", name, said_in=tmp_path / "t.csv")
        assert found == (tmp_path / "root/a/x.nii").resolve()


def test_paths_that_escape_are_refused(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    secret = tmp_path / "root-secret"
    secret.write_text("x")
    (root / "link").symlink_to(secret)
    (root / "up").symlink_to(tmp_path)
    for name in ("../root-secret", str(secret), "link", "up/root-secret", "/etc/passwd", "../root/../root-secret"):
        with pytest.raises(InputError, match="outside") as error:
            inside(root, name, said_in=tmp_path / "t.csv")
        assert "t.csv" in str(error.value)
    (root / "loop").symlink_to(root / "loop")
    for name in ("none.nii", "a\0b", "x" * 5000, "loop"):
        with pytest.raises(InputError, match=r"does not exist|cannot be"):
            inside(root, name, said_in=tmp_path / "t.csv")


def test_write_json_is_readable_by_others(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"name": "Größe", "n": 1})
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"name": "Größe", "n": 1}
    assert (tmp_path / "a.json").read_text(encoding="utf-8").endswith("}\n")
