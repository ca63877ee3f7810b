"""What the doctor reads of each case: once, all cases, whatever is wrong with any of them."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from medgen.cohort.case import Case, Cohort, Source
from medgen.cohort.load import load_case
from medgen.errors import InputError
from medgen.prepare.foreground import Foreground
from medgen.prepare.options import PrepareOptions
from medgen.prepare.scan import foreground_of, scan_loaded
from medgen.prepare.workers import each
from medgen.volume import Volume

# Of a head: wide enough not to be an organ, small enough not to be a trunk (mm along R, A, S).
_HEAD_MM = ((100.0, 240.0), (120.0, 300.0), (80.0, 380.0))
_PARALLEL_FROM_BYTES = 50e6


@dataclass(frozen=True)
class CaseFacts:
    """One case.

    Attributes:
        case_id: of the cohort.
        subject_id: of the cohort.
        fault: why it cannot be read, one sentence; empty where it can, and only then is the rest known.
        orientation: axis codes of its files.
        spacing_mm: along R, A, S.
        scan: JSON of :class:`medgen.prepare.scan.Scan`, without registration.
        hashes: channel -> digest of its voxels in RAS+ order.
        constant: channels with one value only.
        bright: channel -> 99th percentile of its foreground.
        label_ml: label value (0 left out) -> volume; None without label.
        label_voxels: label value -> voxels.
        face: channel -> share of the front lower part of the head that is not background; channels that show no
            whole head are not there.
    """

    case_id: str
    subject_id: str
    fault: str = ""
    orientation: str = ""
    spacing_mm: tuple[float, float, float] = (0.0, 0.0, 0.0)
    scan: Mapping[str, Any] = field(default_factory=dict)
    hashes: Mapping[str, str] = field(default_factory=dict)
    constant: tuple[str, ...] = ()
    bright: Mapping[str, float] = field(default_factory=dict)
    label_ml: Mapping[int, float] | None = None
    label_voxels: Mapping[int, int] = field(default_factory=dict)
    face: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class _Job:
    case: Case
    channels: tuple[str, ...]
    crop: str


def collect(
    cohort: Cohort, options: PrepareOptions, *, workers: int, on_done: Callable[[int], None]
) -> list[CaseFacts]:
    """Facts of every case, in order.

    Args:
        cohort: to look at.
        options: channels and crop are used.
        workers: processes, used where the cohort is large enough to gain from them.
        on_done: called with the number of cases done.
    """
    channels = options.channels or cohort.channels
    jobs = [_Job(case, tuple(channels), options.crop) for case in cohort.cases]
    size = sum(_size(s) for case in cohort.cases for s in case.images.values())
    return each(_look, jobs, workers if size > _PARALLEL_FROM_BYTES else 1, on_done)


def _size(source: Source) -> int:
    path: Path = source.path
    files = path.iterdir() if path.is_dir() else (path,)
    return sum(f.stat().st_size for f in files if f.is_file())


def _look(job: _Job) -> CaseFacts:
    case = job.case
    try:
        loaded = load_case(case, job.channels)
        options = PrepareOptions(crop="none" if job.crop == "none" else "foreground")
        scan = scan_loaded(loaded, options, job.channels, said_in=f"case {case.case_id}")
    except InputError as error:
        return CaseFacts(case.case_id, case.subject_id, fault=str(error))
    first = next(iter(loaded.images.values()))
    label_ml, voxels = None, {}
    if loaded.label is not None:
        values, counts = np.unique(loaded.label.data, return_counts=True)
        voxels = {int(v): int(n) for v, n in zip(values, counts, strict=True) if v != 0}
        label_ml = {v: n * scan.source.voxel_ml for v, n in voxels.items()}
    inside = {name: foreground_of(loaded, v) for name, v in loaded.images.items()}
    faces = {name: face_share(v, inside[name]) for name, v in loaded.images.items()}
    return CaseFacts(
        case.case_id,
        case.subject_id,
        orientation=first.orientation,
        spacing_mm=scan.source.ras().spacing_mm,
        scan=scan.to_json(),
        hashes={name: voxel_digest(v) for name, v in loaded.images.items()},
        constant=tuple(name for name, v in loaded.images.items() if v.data.min() == v.data.max()),
        bright={name: float(np.percentile(v.data[0][inside[name].mask], 99)) for name, v in loaded.images.items()},
        label_ml=label_ml,
        label_voxels=voxels,
        face={name: share for name, share in faces.items() if share is not None},
    )


def voxel_digest(volume: Volume) -> str:
    """Digest of an image's values in RAS+ order: the same image stored along other axes has the same."""
    data = np.ascontiguousarray(volume.reoriented("RAS").data)
    return hashlib.sha256(repr(data.shape).encode() + data.tobytes()).hexdigest()


def face_share(volume: Volume, foreground: Foreground) -> float | None:
    """How full the place is where a head has its face, 0 to 1; None where the image does not show a whole head.

    The place is the front quarter, the lower 35% and the middle half of the foreground's box. Brains alone fill less
    than a fifth of it, and so do heads whose face was removed.
    """
    if foreground.kind == "all" or not foreground.mask.any():
        return None
    mask = Volume(foreground.mask[None], volume.affine).reoriented("RAS")
    inside = mask.data[0]
    spans = [np.flatnonzero(inside.any(axis=tuple(a for a in range(3) if a != axis)))[[0, -1]] for axis in range(3)]
    box = inside[tuple(slice(a, b + 1) for a, b in spans)]
    extent_mm = np.array(box.shape) * mask.spacing_mm
    if any(not low <= mm <= high for mm, (low, high) in zip(extent_mm, _HEAD_MM, strict=True)):
        return None
    x, y, z = box.shape
    place = box[x // 4 : max(x - x // 4, x // 4 + 1), int(0.75 * y) :, : max(1, int(0.35 * z))]
    return float(place.mean())


def without_fault(facts: Sequence[CaseFacts]) -> list[CaseFacts]:
    """Cases that can be read."""
    return [f for f in facts if not f.fault]
