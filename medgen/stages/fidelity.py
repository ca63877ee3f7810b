"""The pinned protocol in a run's report: a segmenter trained once, and the samples measured by it."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from medgen.evaluation.fidelity import Made, fidelity
from medgen.evaluation.reference import halves, measure_reference
from medgen.prepare.grid import GeometryRecord
from medgen.segment.train import train_on
from medgen.stages.codec import trained_codec
from medgen.stages.run import Run
from medgen.store.prepared import Prepared
from medgen.training.autoencoder import reconstruct

FOLDER = "fidelity"
_RECONSTRUCTED = 16


def measuring(run: Run) -> Callable[[Prepared], Mapping[str, Any]] | None:
    """Samples, prepared as the cohort was -> the protocol's figures; None where the config does not ask for them."""
    return None if run.config.report.fidelity is None else lambda samples: _measured(run, samples)


def _measured(run: Run, samples: Prepared) -> Mapping[str, Any]:
    asked, store, tell = run.config.report.fidelity, run.store, run.stage_progress("report")
    assert asked is not None
    seen, unseen = halves(store) if asked.halves else (store.indices("train"), ())
    segmenter = train_on(
        store,
        seen,
        run.folder / FOLDER / "segmenter",
        steps=asked.segmenter_steps,
        seed=run.config.seed,
        device=run.device,
        on_progress=lambda done, total, remark: tell(done, total, f"segmenter, {remark}"),
    )
    reference = measure_reference(store, segmenter, unseen=unseen, on_progress=tell)
    codec, pictures = trained_codec(run), []
    for i in reference.held_out_cases[:_RECONSTRUCTED] if codec.image_channels else ():
        label = store.label(i) if store.cases[i].has_label and codec.labels else None
        pictures.append(reconstruct(codec, np.asarray(store.image(i), np.float32), label, run.device)[0])
    made = [_made(samples, i) for i in range(len(samples.cases))]
    tell(1, 1, "samples are compared with real cases")
    return fidelity(reference, made, pictures, seed=run.config.seed)


def _made(samples: Prepared, index: int) -> Made:
    case = samples.cases[index]
    asked = {name.removeprefix("requested_"): v for name, v in case.covariates.items() if name.startswith("requested_")}
    return Made(
        np.asarray(samples.image(index), np.float32),
        np.asarray(samples.label(index)) if case.has_label else None,
        asked,
        GeometryRecord.from_json(case.geometry).voxel_ml,
    )
