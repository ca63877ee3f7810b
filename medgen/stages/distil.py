"""Stage distilled: a student of the model, where the config asks for one."""

from pathlib import Path

from medgen.generation import distil
from medgen.stages.run import Run, distillation, schedule_of


def distilled(run: Run) -> None:
    """Train the student and write its model folder."""
    c = run.config.distil
    assert c is not None, "a stage that is skipped"
    how, schedule = distillation(c, run.config.seed), schedule_of(c.training)
    progress = run.stage_progress("distilled")
    found = distil.distil(
        run.folder / "model", run.folder / "distilled", how, schedule, device=run.config.device, on_progress=progress
    )
    if "rmse" in found:
        progress(1, 1, distil.told(found))


def drawing_model(run: Run) -> Path:
    """The model folder that samples are drawn from."""
    return run.folder / ("distilled" if run.config.distil else "model")
