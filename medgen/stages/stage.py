"""One stage of a run folder: done once, skipped while nothing it depends on has changed, set aside where it has.

A stage's hash covers its part of the config, its version and the hashes of the stages it reads. A finished stage of
another hash is never overwritten: it is set aside in ``stale/`` and comes back when its config does.
"""

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medgen.files import digest, write_json
from medgen.stages import data
from medgen.stages.run import Run
from medgen.store.run_state import OUTDATED, STATE
from medgen.training.distributed import world


@dataclass(frozen=True)
class Stage:
    """One stage.

    Attributes:
        name: also of its folder.
        work: does it, resuming what is there.
        part: the part of the config (and of the input) it depends on.
        reads: stages whose results it reads.
        version: raised when its results change for the same config.
        extent: how much of it is asked for; more is added to what is there, and changes nothing of it.
        by_content: later stages know its result by what it made, not by what it was told.
        keeps: its folder keeps what is still valid by itself, and so is never set aside.
        skip: whether the experiment has no need of it.
        place: what it leaves in the run folder, where that is not a folder of its name; goes with ``keeps``.
        gate: refuses to go on from its result; asked every time, also where the stage is unchanged.
        together: all processes of a distributed run take part; the other stages are the first process's own.
        whole: whether its folder still holds what later stages read; a finished stage that has lost some is done again.
    """

    name: str
    work: Callable[[Run], None]
    part: Callable[[Run], Any]
    reads: tuple[str, ...] = ()
    version: int = 1
    extent: Callable[[Run], int] = lambda run: 0
    by_content: bool = False
    keeps: bool = False
    skip: Callable[[Run], bool] = lambda run: False
    place: str = ""
    gate: Callable[[Run], None] = lambda run: None
    together: bool = False
    whole: Callable[[Path], bool] = Path.exists


def holds(*names: str) -> Callable[[Path], bool]:
    """Whether a folder has files of these names."""
    return lambda folder: all((folder / name).is_file() for name in names)


def run_stage(run: Run, stage: Stage, state: dict[str, Any], hashes: Mapping[str, str], table: Sequence[Stage]) -> str:
    """Run one stage if it must.

    Args:
        run: the experiment.
        stage: which.
        state: of the run folder; changed and written.
        hashes: results of the stages before it.
        table: all stages, of which some read this one.

    Returns:
        What later stages hash: the identity of its result.
    """
    read = {name: hashes[name] for name in stage.reads if name in hashes}
    mine = digest([stage.name, stage.version, stage.part(run), read])
    extent = stage.extent(run)
    before = state.get(stage.name, {})
    folder = run.folder / (stage.place or stage.name)
    same = before.get("hash") == mine and before.get("extent", 0) <= extent
    done = same and bool(before.get("finished")) and before.get("extent", 0) == extent
    if done and stage.whole(folder):
        if before.pop(OUTDATED, False):
            write_json(run.folder / STATE, state)
        run.progress(stage.name, 1, 1, "unchanged")
        world().agree(0.0)
        return str(before["result"])
    if before and not same and folder.exists() and not stage.keeps:
        _set_aside(run.folder, stage.name, _key(before["hash"], before.get("extent", 0), before.get("made", 0)))
    elif done and folder.exists() and not stage.keeps:
        _set_aside(run.folder, stage.name, "incomplete")  # what is left of it would be taken for what to go on from
    # What is made again after it was lost is not what it was: a training that ends by the clock never repeats.
    kept = _kept(run.folder, stage.name, mine, extent)
    made = before.get("made", 0) + done if same else max(kept, default=0)
    told = {"hash": mine, "extent": extent, **({"made": made} if made else {})}
    # In this order a kill at any point leaves a state that does not call another config's result finished.
    state[stage.name] = {**told, "finished": False}
    readers = [] if same and not done else _mark_readers(state, stage.name, table)
    write_json(run.folder / STATE, state)
    if made in kept:
        _bring_back(run.folder, stage.name, kept[made])
    start = time.monotonic()
    if stage.together:
        world().agree(1.0)
    stage.work(run)
    as_told = [mine, extent, *([made] if made else [])]
    result = data.result_digest(run, stage.name) if stage.by_content else digest(as_told)
    seconds = round(time.monotonic() - start, 1)
    state[stage.name] = {**told, "finished": True, "result": result, "seconds": seconds}
    if result == before.get("result"):
        for name in readers:
            state[name].pop(OUTDATED)
    write_json(run.folder / STATE, state)
    if not stage.together:
        world().agree(0.0)
    return result


def _mark_readers(state: dict[str, Any], changed: str, table: Sequence[Stage]) -> list[str]:
    """Mark what was made from a stage, at first or second hand, and is finished; which were marked now."""
    reached, marked = {changed}, []
    for stage in table:  # in order, so that whoever reads comes after what it reads
        if reached.intersection(stage.reads):
            reached.add(stage.name)
            known = state.get(stage.name, {})
            if known.get("finished") and not known.get(OUTDATED):
                known[OUTDATED] = True
                marked.append(stage.name)
    return marked


def _set_aside(run_folder: Path, name: str, key: str) -> None:
    stale = run_folder / "stale"
    stale.mkdir(exist_ok=True)
    target = stale / f"{name}-{key}"
    for number in range(1, 1000):  # one unfinished before it may have the name
        if not target.exists():
            break
        target = stale / f"{name}-{key}-{number}"
    (run_folder / name).rename(target)


def _key(identity: str, extent: int, made: int) -> str:
    """Of a folder that is set aside; what was made again after a loss is told from what it was."""
    return f"{identity}-{extent}" + (f"-again-{made}" if made else "")


def _kept(run_folder: Path, name: str, identity: str, extent: int) -> dict[int, Path]:
    """What was set aside of a stage with that hash: how often it had been made again -> folder."""
    stem = f"{name}-{_key(identity, extent, 0)}"
    found = {}
    for path in (run_folder / "stale").glob(f"{stem}*"):
        if match := re.fullmatch(r"(?:-again-(\d+))?", path.name.removeprefix(stem)):
            found[int(match[1] or 0)] = path
    return found


def _bring_back(run_folder: Path, name: str, source: Path) -> None:
    if not (run_folder / name).exists():
        source.rename(run_folder / name)
