"""One size of a finished evaluation as a dataset for other segmenters."""

from pathlib import Path

from medgen import config as configs
from medgen.errors import InputError
from medgen.generation.combine import Combined, Part, combine
from medgen.generation.dataset import info_of
from medgen.generation.model import read_spec
from medgen.stages import data
from medgen.stages.run import Run
from medgen.stages.utility_size import FOLDER
from medgen.stages.views import views


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
    cohort = data.read_columns(run)
    apart, seen = views(run, cohort)
    view = next((view for name, view in seen.items() if str(name) == size), None)
    own = folder / FOLDER / f"size-{size}"
    if view is None or not (own / "synthetic").is_dir():
        known = ", ".join(str(name) for name in seen)
        raise InputError(
            f"{folder} holds no synthetic cases for {size} labelled ones (sizes: {known}); run the utility"
        )
    sides = {i: "train" for i in view.labelled} | {i: "val" for i in apart}
    spec, sha256 = read_spec(own / "model")
    part = Part(own / "synthetic", run.config.generate.format, info_of(spec, sha256), fold=1)
    return combine(cohort, [sides, sides], [part], out, format=format, writers=run.config.generate.writers)
