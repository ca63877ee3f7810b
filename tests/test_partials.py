"""What killed processes leave goes, what living ones write stays, and a disk that fills up leaves room to close."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from medgen.files import PARTIAL, atomic, remove_partials, reserved
from medgen.volume import Volume, write_volume

WRITING = """
import sys, time
from pathlib import Path
from medgen.files import atomic
with atomic(Path(sys.argv[1]) / "a.txt") as temporary:
    temporary.write_text("half")
    print("writing", flush=True)
    time.sleep(60)
"""


@pytest.mark.skipif(os.name != "posix", reason="a process is asked for by a signal")
@pytest.mark.parametrize("shared", [True, False])
def test_a_living_process_keeps_its_file_and_a_killed_one_does_not(tmp_path, shared):
    with subprocess.Popen([sys.executable, "-c", WRITING, tmp_path], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert remove_partials(tmp_path, shared=shared) == 0
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert len(list(tmp_path.glob(f"{PARTIAL}*a.txt"))) == 1
        assert remove_partials(tmp_path, shared=shared) == 1
    assert not list(tmp_path.iterdir())


def test_a_file_in_hand_stays_and_one_of_an_earlier_process_of_this_number_goes(tmp_path):
    with atomic(tmp_path / "sub" / "a.txt") as temporary:
        temporary.write_text("half")
        digits = temporary.name.removeprefix(PARTIAL).split("-")[0]
        (tmp_path / f"{PARTIAL}{digits[:-6]}000000-b.txt").write_text("of before")
        assert remove_partials(tmp_path, shared=True) == 1
    assert (tmp_path / "sub" / "a.txt").read_text() == "half"


def test_what_other_machines_write_stays_where_others_may_be_writing(tmp_path):
    with atomic(tmp_path / "a.txt") as temporary:
        temporary.write_text("")
        digits = temporary.name.removeprefix(PARTIAL).split("-")[0]
    other = f"{(int(digits[:6]) + 1) % 10**6:06d}{digits[6:]}"
    for name in (f"{other}-b.txt", "99-of-an-older-version.txt"):
        (tmp_path / f"{PARTIAL}{name}").write_text("half")
    assert remove_partials(tmp_path, shared=True) == 0
    assert remove_partials(tmp_path) == 2


def test_room_is_kept_until_it_is_given_free(tmp_path):
    with reserved(tmp_path / "out", 5000) as free:
        (kept,) = (tmp_path / "out").iterdir()
        assert kept.name.startswith(PARTIAL) and kept.stat().st_size == 5000
        free()
        free()
        assert not list((tmp_path / "out").iterdir())
    with pytest.raises(FileNotFoundError, match="mine"), reserved(tmp_path / "out", 10):
        raise FileNotFoundError("mine")
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="asks the system which files are open")
def test_a_volume_that_cannot_be_written_leaves_no_file_open(tmp_path):
    """An open file that is gone from its folder still fills the disk."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    noise = Volume(np.random.default_rng(0).normal(size=(1, 60, 60, 60)), np.eye(4))
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(OSError, match="too large") as caught:
            write_volume(tmp_path / "a.nii.gz", noise)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value is not None, "the error holds on to the frames in which it happened"
    held = [str(link.readlink()) for link in list(Path("/proc/self/fd").iterdir()) if link.is_symlink()]
    assert not [name for name in held if str(tmp_path) in name]
    assert not list(tmp_path.iterdir())


def test_writing_twice_gives_the_same_bytes(tmp_path):
    volume = Volume(np.arange(60, dtype=np.int16).reshape(1, 3, 4, 5), np.diag([1.0, 2.0, 3.0, 1.0]))
    for name in ("a.nii.gz", "b.nii.gz"):
        write_volume(tmp_path / name, volume)
        time.sleep(0.01)
    assert (tmp_path / "a.nii.gz").read_bytes()[10:] == (tmp_path / "b.nii.gz").read_bytes()[10:]
