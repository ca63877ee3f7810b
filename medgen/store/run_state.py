"""``stages.json`` of a run folder: which stages are finished, and of which what they were made from has changed."""

from pathlib import Path
from typing import Any

from medgen.errors import InputError
from medgen.files import read_json

STATE = "stages.json"
OUTDATED = "outdated"
"""Set where a stage that was read has another result now; a run that reaches the stage makes it anew, or finds that
nothing has changed and takes the mark away."""


def read_state(folder: Path) -> dict[str, Any]:
    """Stage -> what is known of it; empty where no run has been there."""
    path = folder / STATE
    return dict(read_json(path)) if path.exists() else {}


def stands(folder: Path, stage: str) -> bool:
    """Whether a stage is finished and of what the folder holds now; folders without a state are taken at their word."""
    state = read_state(folder)
    found = state.get(stage, {})
    return not state or bool(found.get("finished") and not found.get(OUTDATED))


def require(folder: Path, *stages: str) -> None:
    """Refuse to use what a run has not finished, or has begun to change.

    Raises:
        InputError: naming the stage.
    """
    for stage in stages:
        if not stands(folder, stage):
            raise InputError(
                f"{folder / stage} is not finished, or was made from what has changed since; run the experiment again"
            )
