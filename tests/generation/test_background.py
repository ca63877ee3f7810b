"""Writing in the background: bounded, whole, and readable whatever happens."""

import errno
import threading
import time
import weakref
from pathlib import Path

import pytest

from medgen.errors import InputError
from medgen.formats import bids_write, decathlon, nnunet
from medgen.formats.detect import open_writer, read_cohort
from medgen.generation.background import BackgroundWriter
from medgen.progress import Rate
from medgen.volume import write_volume
from tests.formats.cohort_builders import INFO, sample

HOMES = {"bids": bids_write, "nnunet": nnunet, "decathlon": decathlon}


class Slow:
    """A writer that takes its time."""

    def __init__(self, write=lambda sample: time.sleep(0.005)):
        self.write, self.written, self.closed = write, [], 0

    def discard(self, sample_id):
        self.written = [i for i in self.written if i != sample_id]

    def close(self):
        self.closed += 1


@pytest.mark.parametrize("kind", sorted(HOMES))
@pytest.mark.parametrize("threads", [1, 4])
def test_the_same_files_as_one_after_the_other(kind, threads, tmp_path):
    one, many = (open_writer(kind, tmp_path / name, INFO) for name in ("one", "many"))
    for i in range(5):
        one.write(sample(f"syn{i}", i))
    one.close()
    with BackgroundWriter(many, threads) as background:
        for i in range(5):
            background.write(sample(f"syn{i}", i))

    def files(root: Path):
        return {p.relative_to(root): p.read_bytes() for p in root.rglob("*") if p.is_file()}

    assert files(tmp_path / "many") == files(tmp_path / "one")


def test_samples_are_drawn_while_others_are_written():
    drawn = threading.Event()
    writer = Slow(lambda sample: drawn.wait(10) or pytest.fail("the next was never drawn"))
    with BackgroundWriter(writer, 2) as background:
        background.write(sample("a"))
        background.write(sample("b"))
        drawn.set()
    assert writer.closed == 1


def test_few_samples_are_alive_at_a_time_and_waiting_is_measured():
    made, gone, most = 0, [], 0
    with BackgroundWriter(Slow(), 2) as background:
        for i in range(20):
            one = sample(f"syn{i}", i)
            made += 1
            weakref.finalize(one, gone.append, i)
            background.write(one)
            del one
            most = max(most, made - len(gone))
    assert most <= 3
    assert 0.01 < background.waited_seconds < 5


@pytest.mark.parametrize("kind", sorted(HOMES))
def test_a_full_disk_leaves_a_dataset_that_can_be_read(kind, tmp_path, monkeypatch):
    taken, lock = [0], threading.Lock()

    def until_full(path, volume):
        with lock:
            taken[0] += 1
            full = taken[0] > 11
        if full:
            Path(path).parent.mkdir(parents=True, exist_ok=True)  # as the real one does before it writes
            Path(path).with_name(f".partial-1-{Path(path).name}").write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        write_volume(path, volume)

    monkeypatch.setattr(HOMES[kind], "write_volume", until_full)
    writer = open_writer(kind, tmp_path, INFO)
    with pytest.raises(OSError, match="No space left"), BackgroundWriter(writer, 3) as background:
        for i in range(9):
            background.write(sample(f"syn{i}", i))
    assert taken[0] < 27, "nothing more is taken after the first failure"
    there = {case.case_id.removeprefix("sub-") for case in read_cohort(tmp_path).cases}
    assert there == writer.committed() and 2 <= len(there) < 9
    assert not writer.uncommitted() and not list(tmp_path.rglob(".partial-*"))
    monkeypatch.setattr(HOMES[kind], "write_volume", write_volume)
    with BackgroundWriter(writer, 3) as background:
        for i in range(9):
            background.write(sample(f"syn{i}", i))
    assert len(read_cohort(tmp_path).cases) == 9


def test_an_error_while_drawing_keeps_what_is_done_and_is_the_one_told(tmp_path):
    writer = open_writer("bids", tmp_path, INFO)
    with pytest.raises(KeyboardInterrupt), BackgroundWriter(writer, 2) as background:
        background.write(sample("a"))
        raise KeyboardInterrupt
    assert [c.case_id for c in read_cohort(tmp_path).cases] == ["sub-a"]
    with pytest.raises(InputError, match="letters and digits"), BackgroundWriter(writer, 2) as background:
        background.write(sample("not-this"))


def test_rate_tells_speed_and_what_is_left(monkeypatch):
    clock = iter([100.0, 104.0, 160.0, 700.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    rate = Rate("samples")
    assert rate(10, 100) == "samples"
    assert rate(18, 100) == "samples, 2.00/s, 41 s left"
    assert rate(40, 100) == "samples, 30.0/min, 2 min left"
    assert rate(100, 100) == "samples, 9.0/min"
