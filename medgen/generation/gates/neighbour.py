"""No copies: a draw is not nearer to a training case than the cohort's own cases are to each other.

Whoever holds a sketch of a training case, however small, can tell whether a given patient was in the training. A model
folder therefore holds none, and this gate compares with the latents in the run folder beside the model: it judges
wherever that folder is at hand (`medgen run`, or `medgen generate runs/NAME/model`), and says so where it is not.

Nearness is that of :mod:`medgen.training.memorisation`: the distance to the nearest training case over the median
distance to all of them. A blurred image is near to everything, and is no copy.
"""

from pathlib import Path

import numpy as np
import torch

from medgen.cohort.case import numbered
from medgen.errors import InputError
from medgen.generation.gates.seam import CannotJudgeError, Context, Judge, Seen, Verdict
from medgen.store.latent_rows import LatentRows
from medgen.store.latents import Latents, LatentStatistics
from medgen.store.prepared import INDEX, Prepared
from medgen.store.run_state import stands
from medgen.training.memorisation import Memorisation

ON = True
_SHARE = 0.1  # of the memory; shards of a dataset hold it each


def build(context: Context, *, quantile: float = 0.01, run: Path = Path()) -> Judge:
    """Reject copies of training cases, their mirror images and augmented copies included.

    Args:
        context: the model.
        quantile: of the nearness that the cohort's own cases have.
        run: run folder with the training cases' latents; by default the one that the model lies in.
    """
    yardstick = _yardstick(context, run, quantile)
    if yardstick.threshold <= 0:
        raise CannotJudgeError("the training cases are of one subject, so nothing says how near subjects are")

    def judge(seen: Seen) -> Verdict:
        assert seen.latent is not None, "only draws have latents"
        near = float(yardstick.nearness(seen.latent[None])[0])
        scores = {"nearness": round(near, 5), "threshold": round(yardstick.threshold, 5)}
        if near >= yardstick.threshold:
            return Verdict(scores)
        said = f"nearness {near:.3f} to a training case is below {yardstick.threshold:.3f}, where real cases begin"
        return Verdict(scores, {"nearness": said})

    return judge


def check(*, quantile: float, run: Path) -> None:
    """Refuse a run folder that is not there, and a quantile that is none."""
    if not 0 < quantile < 1:
        raise InputError(f"gate 'neighbour': quantile lies between 0 and 1, not {quantile}")
    if str(run) != "." and not (Path(run) / "latents" / "index.json").is_file():
        raise InputError(f"gate 'neighbour': {run} is not a run folder with latents; give runs/NAME")


def recorded(*, quantile: float, run: Path) -> dict[str, float]:
    """The folder's place is nobody's business; what it holds is checked against the model."""
    return {"quantile": quantile}


def _yardstick(context: Context, run: Path, quantile: float) -> Memorisation:
    folder = Path(run)
    if str(run) == ".":
        folder = Path() if context.folder is None else context.folder.resolve().parent
        needed = (folder / "latents" / "index.json", folder / "prepared" / INDEX)
        if context.folder is None or not all(path.is_file() for path in needed):
            raise CannotJudgeError("no latents of the training cases lie beside the model folder, and it holds none")
    if not all(stands(folder, stage) for stage in ("model", "latents")):
        raise CannotJudgeError("the run that the model lies in has changed since it was made")
    stored, store = Latents(folder / "latents"), Prepared.open(folder / "prepared")
    shape = tuple(context.latent_shape)
    ours = LatentStatistics(tuple(context.statistics["mean"]), tuple(context.statistics["std"]))
    theirs = stored.statistics
    if (
        tuple(stored.mean.shape[1:]) != shape
        or not np.allclose([ours.mean, ours.std], [theirs.mean, theirs.std], rtol=1e-6)
        or max(stored.cases) >= len(store)
    ):
        raise CannotJudgeError("the latents beside the model folder are of another experiment")
    training = stored.rows(store.indices("train"))
    subjects = [store.cases[stored.cases[r]].subject_id for r in training]
    number = numbered(subjects)
    if len(number) < 2:
        raise CannotJudgeError("the training cases are of one subject, so nothing says how near subjects are")
    # Every draw is compared with all of them; what is not kept is read again, mostly from the system's own memory.
    rows = LatentRows(stored.mean, stored.logvar, torch.device("cpu"), index=training, share=_SHARE)
    return Memorisation(rows, ours, [number[s] for s in subjects], None, quantile)
