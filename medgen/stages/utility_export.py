"""One size of a finished evaluation as a dataset for other segmenters."""

from dataclasses import replace
from pathlib import Path

from medgen import config as configs
from medgen.errors import InputError
from medgen.generation.combine import Combined, Part, combine
from medgen.generation.dataset import info_of
from medgen.generation.model import read_spec
from medgen.stages import data
from medgen.stages.folds import check_unseen
from medgen.stages.run import Run
from medgen.stages.utility_size import FOLDER
from medgen.stages.views import views
from medgen.store.run_state import require


def combine_size(folder: Path, size: str, out: Path, *, format: str = "nnunet") -> Combined:
    """Write the labelled, the held-out and the synthetic cases of a size as one dataset with a fold for each arm.

    Fold 0 trains on the labelled real cases, fold 1 on these and the synthetic ones. Both are validated on the
    held-out real cases. Cases whose label is hidden at this size are left out.

    Args:
        folder: run folder of the evaluation.
        size: one of ``utility.sizes``.
        out: folder of the dataset.
        format: kind of exporter.

    Raises:
        InputError: no such evaluation, size or synthetic dataset.
    """
    if not (folder / "config.yaml").is_file():
        raise InputError(f"{folder} is no run folder: it holds no config.yaml; give one such as runs/hippocampus")
    run = Run(configs.load(folder / "config.yaml"), folder, lambda *_: None)
    cohort, own = data.read_columns(run), folder / FOLDER / f"size-{size}"
    if not (own / "synthetic").is_dir():
        known = ", ".join(sorted(p.name.removeprefix("size-") for p in (folder / FOLDER).glob("size-*"))) or "none"
        raise InputError(
            f"{folder} holds no synthetic cases for {size} labelled ones (sizes: {known}); run the utility"
        )
    # Of this size whatever the config says of others by now: which cases are labelled does not depend on them.
    asked = run.config.utility.model_copy(update={"sizes": (int(size) if size.isdigit() else "all",)})
    apart, seen = views(replace(run, config=run.config.model_copy(update={"utility": asked})), cohort)
    (view,) = seen.values()
    require(own, "model", "synthetic")
    check_unseen(own, apart)
    sides = {i: "train" for i in view.labelled} | {i: "val" for i in apart}
    spec, sha256 = read_spec(own / "model")
    part = Part(own / "synthetic", run.config.generate.format, info_of(spec, sha256), fold=1)
    return combine(cohort, [sides, sides], [part], out, format=format, writers=run.config.generate.writers)
