"""The training log: one JSON object a line, TensorBoard, and pictures."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from medgen.files import atomic


class TrainingLog:
    """Writes to ``log.jsonl``, TensorBoard events and ``panels/`` below a folder.

    Lines of steps after ``resume_at`` are dropped when a training resumes: they will be written again.
    """

    def __init__(self, folder: Path, resume_at: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.path = folder, folder / "log.jsonl"
        if self.path.exists():
            kept = [line for line in self.path.read_text().splitlines() if _step_of(line) <= resume_at]
            with atomic(self.path) as temporary:
                temporary.write_text("".join(f"{line}\n" for line in kept if line))
        self.events = SummaryWriter(str(folder / "tensorboard"), purge_step=resume_at + 1)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Log named figures of a step."""
        with self.path.open("a") as stream:
            stream.write(json.dumps({"step": step, **{k: round(float(v), 6) for k, v in values.items()}}) + "\n")
        for name, value in values.items():
            self.events.add_scalar(name, value, step)

    def panel(self, step: int, name: str, picture: np.ndarray) -> None:
        """Log a picture (H, W, 3) uint8."""
        path = self.folder / "panels" / f"{name}-{step:06d}.png"
        with atomic(path) as temporary:
            Image.fromarray(picture).save(temporary, format="PNG")
        self.events.add_image(name, picture, step, dataformats="HWC")

    def close(self) -> None:
        """Flush and close."""
        self.events.close()


def _step_of(line: str) -> int:
    try:
        return int(json.loads(line)["step"])
    except (json.JSONDecodeError, KeyError):
        return 2**62  # a line cut short by a kill
