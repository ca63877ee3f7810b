"""A whole experiment small enough for a test: eight phantoms of 8 mm, a few steps of training."""

import shutil

from medgen import pipeline
from medgen.files import read_json, write_json

TINY = {
    "name": "tiny",
    "threads": 1,
    "workers": 1,
    "device": "cpu",
    "data": {"phantom": {"n": 8, "spacing_mm": 8, "seed": 3}, "validation": 0.25},
    "covariates": {"use": ["age", "sex", "ventricles_ml"]},
    "autoencoder": {
        "options": {"channels": [8, 16], "latent_channels": 2},
        "training": {"steps": 6, "batch": 2, "precision": "float32", "warmup": 2, "log_every": 2, "validate_every": 3},
    },
    "diffusion": {
        "memorisation": {"samples": 3, "steps": 2},
        "network_options": {"channels": [16, 16], "middle_blocks": 1, "heads": 2, "token_width": 16, "embedding": 32},
        "training": {"steps": 6, "batch": 4, "precision": "float32", "warmup": 2, "log_every": 2, "validate_every": 3},
    },
    "generate": {"n": 3, "sampler": "euler", "steps": 3, "guidance": 1.5, "gates": "none"},
}


def run(folder, cfg, **options):
    """The report of a run, and its stages that were not skipped."""
    said = []
    report = pipeline.run_experiment(cfg, folder=folder, on_progress=lambda *a: said.append(a), **options)
    return report, {stage for stage, _, _, remark in said if remark != "unchanged"}


def model_like(run_folder, folder, change):
    """A copy of a run's model in which ``change`` has been at the content of model.json."""
    shutil.copytree(run_folder / "model", folder)
    raw = read_json(folder / "model.json")
    change(raw)
    write_json(folder / "model.json", raw)
    return folder
