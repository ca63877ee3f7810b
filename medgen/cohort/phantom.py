"""The phantom cohort: a BIDS dataset of synthetic T1 brains with known causes, made from nothing but the package.

Case ``i`` is a pure function of (seed, i, spacing): other values of ``n`` or ``workers``, or a kill and another start,
give the same files. Causes: :mod:`medgen.cohort.phantom_causal`; anatomy: :mod:`medgen.cohort.phantom_shape`.
"""

import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import numpy as np
from scipy import ndimage as ndi

from medgen import __version__
from medgen.cohort.phantom_causal import STREAM_ANATOMY, STREAM_MISSING, STREAM_SCANNER, Subject, draw_subject, stream
from medgen.cohort.phantom_shape import LABEL_NAMES, Anatomy, make_anatomy
from medgen.cohort.phantom_template import COARSE_MM, Template, load_template
from medgen.errors import InputError
from medgen.files import read_json, remove_partials, write_json, write_text
from medgen.volume import Volume, write_volume

BIDS_VERSION = "1.9.0"
SPACING_RANGE_MM = (1.0, 8.0)
_CITATION = "Fonov et al., NeuroImage 54 (2011) 313-327 (ICBM 152 nonlinear symmetric template, shipped by nilearn)"


def write_phantom(
    out: Path,
    *,
    n: int,
    spacing_mm: float = 3.0,
    seed: int = 0,
    workers: int | None = None,
    missing: float = 0.0,
    on_progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write a raw BIDS dataset of ``n`` phantoms with label derivatives; cases that are there are kept.

    Args:
        out: the dataset's folder; made where it is missing.
        n: number of subjects.
        spacing_mm: voxel edge, 1 to 8.
        seed: of everything random.
        workers: processes; None takes one a CPU, 1 works in this process.
        missing: chance of each cell of ``participants.tsv`` to read ``n/a``.
        on_progress: called with (cases done, n) after each case.

    Raises:
        InputError: a value out of range, or ``out`` holds something else than this cohort.
    """
    out = Path(out)
    _check(out, n, spacing_mm, seed, missing)
    subjects = [draw_subject(seed, i) for i in range(n)]
    _write_tables(out, subjects, spacing_mm, seed, missing)
    remove_partials(out)
    todo = [i for i in range(n) if not _sidecar(out, i).exists()]
    done = n - len(todo)
    if on_progress is not None:
        on_progress(done, n)
    if not todo:
        return
    template = load_template(spacing_mm)
    workers = min(workers or os.cpu_count() or 1, len(todo))
    if workers <= 1:
        for i in todo:
            write_case(out, template, seed, i)
            done += 1
            if on_progress is not None:
                on_progress(done, n)
        return
    # Spawned, not forked: the caller may hold threads (torch, a progress bar), which a fork would break.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, _start_worker, (template,)) as pool:
        waiting = [pool.submit(_write_case_in_worker, out, seed, i) for i in todo]
        try:
            for future in as_completed(waiting):
                future.result()
                done += 1
                if on_progress is not None:
                    on_progress(done, n)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


_template_of_worker: list[Template] = []


def _start_worker(template: Template) -> None:
    _template_of_worker[:] = [template]


def _write_case_in_worker(out: Path, seed: int, index: int) -> None:
    write_case(out, _template_of_worker[0], seed, index)


def participant(index: int) -> str:
    """BIDS subject of a case, counted from one: ``sub-001``."""
    return f"sub-{index + 1:03d}"


def write_case(out: Path, template: Template, seed: int, index: int) -> None:
    """Write label, image and last the sidecar, whose presence commits the case."""
    name = participant(index)
    label, image = make_phantom(template, draw_subject(seed, index), seed, index)
    affine = template.target.affine
    write_volume(out / "derivatives/labels" / name / "anat" / f"{name}_dseg.nii.gz", Volume(label[None], affine))
    write_volume(out / name / "anat" / f"{name}_T1w.nii.gz", Volume(image[None], affine))
    write_json(_sidecar(out, index), {"Modality": "MR", "SkullStripped": True, "BodyPart": "BRAIN"})


def make_phantom(template: Template, subject: Subject, seed: int, index: int) -> tuple[np.ndarray, np.ndarray]:
    """Label (uint8) and T1-like image (int16) of one subject, each (X, Y, Z) on the template's target grid."""
    anatomy = make_anatomy(template, subject, stream(seed, index, STREAM_ANATOMY))
    return anatomy.label, scan(anatomy, stream(seed, index, STREAM_SCANNER), template.target.spacing_mm)


def scan(anatomy: Anatomy, rng: np.random.Generator, spacing_mm: float) -> np.ndarray:
    """A scanner that never sees the causes: contrast, bias field, noise and scale of its own for each scan.

    Returns:
        int16 (X, Y, Z); 0 outside the brain and nowhere else.
    """
    csf, gm = 0.26 + 0.025 * rng.standard_normal(), 0.68 + 0.02 * rng.standard_normal()
    bias_share, noise_share = rng.uniform(0.02, 0.07), rng.uniform(0.012, 0.028)
    white = rng.uniform(350.0, 900.0)
    signal = csf * anatomy.csf + gm * anatomy.gm + anatomy.wm + 1.3 * anatomy.texture
    coarse = [max(2, round(s * spacing_mm / (8 * COARSE_MM))) + 2 for s in signal.shape]
    field = ndi.zoom(rng.standard_normal(coarse), [s / c for s, c in zip(signal.shape, coarse, strict=True)], order=3)
    signal = signal * np.exp(bias_share * field / max(float(field.std()), 1e-6))
    # Rician, as magnitude images are.
    real, imaginary = noise_share * rng.standard_normal((2, *signal.shape))
    signal = np.hypot(signal + real, imaginary)
    return np.where(anatomy.brain, np.maximum(np.rint(white * signal), 1), 0).astype(np.int16)


def _check(out: Path, n: int, spacing_mm: float, seed: int, missing: float) -> None:
    if n < 1:
        raise InputError(f"a phantom cohort needs at least one case, not {n}")
    low, high = SPACING_RANGE_MM
    if not low <= spacing_mm <= high:
        raise InputError(f"phantom spacing must be {low:g} to {high:g} mm, not {spacing_mm:g}")
    if not 0 <= missing < 1:
        raise InputError(f"the missing share must be at least 0 and below 1, not {missing:g}")
    if seed < 0:
        raise InputError(f"the seed must be at least 0, not {seed}")
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file; give a folder for the phantom cohort")


def _settings(spacing_mm: float, seed: int, missing: float) -> dict[str, float]:
    return {"spacing_mm": float(spacing_mm), "seed": seed, "missing": float(missing)}


def _sidecar(out: Path, index: int) -> Path:
    name = participant(index)
    return out / name / "anat" / f"{name}_T1w.json"


def _write_tables(out: Path, subjects: list[Subject], spacing_mm: float, seed: int, missing: float) -> None:
    """Everything but the images. A folder that holds another cohort is refused before anything is written."""
    description_file = out / "dataset_description.json"
    settings = _settings(spacing_mm, seed, missing)
    if description_file.exists():
        held = read_json(description_file)
        if not isinstance(held, dict) or held.get("Phantom") != settings:
            raise InputError(f"{out} holds another dataset or phantoms made with other settings; give a new folder")
        beyond = out / participant(len(subjects))
        if beyond.exists():
            raise InputError(f"{out} already holds more than {len(subjects)} phantoms; give a new folder")
    elif out.is_dir() and any(out.iterdir()):
        raise InputError(f"{out} is not empty and holds no phantom cohort; give a new folder")
    generated = [{"Name": "medgen phantom", "Version": __version__}]
    description = {
        "Name": "Phantom cohort",
        "BIDSVersion": BIDS_VERSION,
        "DatasetType": "raw",
        "License": "Apache-2.0",
        "GeneratedBy": generated,
        "ReferencesAndLinks": [_CITATION],
        "Phantom": settings,
    }
    write_json(description_file, description)
    columns = {
        "age": {"Description": "age of the phantom", "Units": "year"},
        "sex": {"Description": "sex of the phantom", "Levels": {"F": "female", "M": "male"}},
    }
    write_json(out / "participants.json", columns)
    rows = []
    for i, s in enumerate(subjects):
        blank = stream(seed, i, STREAM_MISSING).random(2) < missing
        rows.append(
            [participant(i)] + ["n/a" if b else v for b, v in zip(blank, (f"{s.age_years:g}", s.sex), strict=True)]
        )
    _write_tsv(out / "participants.tsv", ["participant_id", "age", "sex"], rows)
    write_text(
        out / "README",
        "A phantom cohort: T1-like brains warped from the MNI152 template, no patient among them.\n"
        "Labels are in derivatives/labels, the causes that were drawn in derivatives/truth/truth.tsv.\n",
    )
    for folder, name in (("labels", "Tissue and ventricle labels"), ("truth", "Causes drawn by the causal model")):
        derivative = {"Name": name, "BIDSVersion": BIDS_VERSION, "DatasetType": "derivative", "GeneratedBy": generated}
        write_json(out / "derivatives" / folder / "dataset_description.json", derivative)
    labels = [[str(i), name] for i, name in LABEL_NAMES.items()]
    _write_tsv(out / "derivatives/labels/dseg.tsv", ["index", "name"], labels)
    truth = [
        [participant(i), f"{s.age_years:g}", s.sex, *(f"{x:.4f}" for x in (s.head_scale, s.ventricles_ml, s.csf_share))]
        for i, s in enumerate(subjects)
    ]
    header = ["participant_id", "age", "sex", "head_scale", "ventricles_ml", "csf_share"]
    _write_tsv(out / "derivatives/truth/truth.tsv", header, truth)


def _write_tsv(path: Path, header: list[str], rows: list[list[str]]) -> None:
    write_text(path, "\n".join("\t".join(row) for row in [header, *rows]) + "\n")
