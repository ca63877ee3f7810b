"""Medical Segmentation Decathlon: ``dataset.json`` with a ``training`` list; several channels in one 4D image.

Lists that MONAI users write are read too: paths may lie anywhere below the folder, ``image`` may be a list with one
file a channel, and entries may be without label.

Reference: http://medicaldecathlon.com
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from medgen.cohort.case import Case, Cohort, LabelFile, Source
from medgen.cohort.sample import Sample
from medgen.errors import InputError
from medgen.files import inside
from medgen.formats import folder, folds
from medgen.formats.cells import safe_name
from medgen.formats.folder import DATASET_JSON
from medgen.formats.writer import SIDECARS, DatasetInfo, Writer, check_sample, folder_ledger
from medgen.volume import Volume, write_volume

VALIDATION = "validation"
BOUND = "training_of_one_fold"
"""Cases that only some folds may see. Under a key of their own, a reader that knows no folds cannot leak them."""


def detect(path: Path) -> bool:
    """Whether a folder is a Decathlon dataset (nnU-Net's ``dataset.json`` has other keys and file names)."""
    if not (path / DATASET_JSON).is_file():
        return False
    content = folder.read_dataset_json(path)
    modality = content.get("modality")
    return (
        "channel_names" not in content
        and bool({"training", "modality", "tensorImageSize"} & set(content))
        and not folder.has_numbered_channels(path, len(modality) if isinstance(modality, dict) else 1)
    )


def read(path: Path, *, include_test: bool = False, fold: int = 0, texts: Sequence[str] | None = None) -> Cohort:
    """Read a Decathlon dataset.

    A list ``validation``, as MONAI's users write it, is the side ``val``. Where ``splits_final.json`` lies beside, as
    in what medgen combines, cases are on the sides of one fold, and those that other folds alone use on ``test``.

    Args:
        path: its folder.
        include_test: read the ``test`` list, which has no labels, as the test split.
        fold: of ``splits_final.json``.
        texts: columns of ``covariates.tsv`` that hold free words for a text encoder; none by default.

    Raises:
        InputError: keys missing or of the wrong type, an image listed twice, or a path that leaves the folder.
    """
    said_in = path / DATASET_JSON
    content = folder.read_dataset_json(path)
    modalities = folder.numbered_names(content, "modality", said_in)
    channels = [safe_name(n) or f"channel{i}" for i, n in enumerate(modalities)]
    if len(set(channels)) < len(channels):
        raise InputError(f'{said_in}: "modality" gives two channels the same name; rename one')
    names = _label_names(content, said_in)
    sides = {"training": None, BOUND: None, VALIDATION: "val"}
    entries: list[tuple[dict[str, Any], str | None]] = [
        (entry, side)
        for key, side in sides.items()
        if key == "training" or key in content
        for entry in _entries(content, key, said_in)
    ]
    tests = _entries(content, "test", said_in) if "test" in content else []
    entries += [(entry, "test") for entry in tests] if include_test else []
    read_in = [_case(path, entry, channels, split, said_in) for entry, split in entries]
    cases: dict[str, Case] = {}
    for case in _told_apart(read_in, path):
        if case.case_id in cases:
            raise InputError(f"{said_in} lists an image named '{case.case_id}' twice; keep one")
        cases[case.case_id] = case
    if not cases:
        raise InputError(f'{said_in}: "training" is empty; list the images there')
    table, subjects = folder.read_covariates(path, sorted(cases), texts)
    split = folds.split(path, fold, cases)
    notes = [*table.notes]
    if split:
        notes.append(folds.of_fold(fold))
    elif any("fold" in entry for entry, _ in entries):
        notes.append(f'{said_in}: "fold" of the entries is not read; write {folds.SPLITS} beside it for that')
    known = {*sides, "test"}
    for key, value in content.items():
        if key not in known and isinstance(value, list) and any(isinstance(e, dict) and "image" in e for e in value):
            notes.append(f'{said_in}: the {len(value)} entries of "{key}" are not read')
    if tests and not include_test:
        notes.append(f"{len(tests)} test images are not read; include_test reads them as the test split")
    return Cohort(
        name=str(content.get("name") or path.resolve().name),
        root=path,
        cases=tuple(
            Case(i, subjects.get(i, i), c.images, c.label, None, table.rows[i], split.get(i, c.split))
            for i, c in sorted(cases.items())
        ),
        schema=table.schema,
        channels=tuple(channels),
        label_names=names,
        format="decathlon",
        notes=tuple(notes),
    )


def _entries(content: Mapping[str, Any], key: str, said_in: Path) -> list[dict[str, Any]]:
    entries = content.get(key)
    if not isinstance(entries, list):
        raise InputError(f'{said_in} needs "{key}": a list such as [{{"image": "./imagesTr/a.nii.gz"}}]')
    found = [{"image": e} if isinstance(e, str) else e for e in entries]
    if not all(isinstance(e, dict) and isinstance(e.get("image"), (str, list)) and e["image"] for e in found):
        raise InputError(f'{said_in}: every entry of "{key}" needs "image" with a path')
    return found


def _case(root: Path, entry: Mapping[str, Any], channels: list[str], split: str | None, said_in: Path) -> Case:
    image, label = entry["image"], entry.get("label")
    paths = image if isinstance(image, list) else [image]
    if isinstance(image, list) and len(paths) != len(channels):
        raise InputError(f"{said_in}: {paths[0]} has {len(paths)} files for {len(channels)} modalities; list one each")
    for path in [*paths, *([label] if label is not None else [])]:
        if not isinstance(path, str) or folder.stem(path) is None:
            raise InputError(f"{said_in} names {path!r}; medgen reads .nii.gz and .nii files: convert it")
        inside(root, path, said_in=said_in)
    if isinstance(image, list):
        images = {c: Source(root / p) for c, p in zip(channels, paths, strict=True)}
    elif len(channels) == 1:
        images = {channels[0]: Source(root / image)}
    else:
        images = {c: Source(root / image, component=i) for i, c in enumerate(channels)}
    case_id = folder.stem(paths[0]) or ""
    return Case(case_id, case_id, images, (LabelFile(Source(root / label)),) if label is not None else (), split=split)


def _told_apart(cases: Sequence[Case], root: Path) -> list[Case]:
    """Cases whose images have the same name in different folders are called by their paths."""
    count = Counter(case.case_id for case in cases)
    found = []
    for case in cases:
        if count[case.case_id] > 1:
            path = next(iter(case.images.values())).path.relative_to(root)
            name = re.sub(r"[^0-9A-Za-z._-]+", "_", (path.parent / case.case_id).as_posix())
            case = replace(case, case_id=name, subject_id=name)
        found.append(case)
    return found


def _label_names(content: Mapping[str, Any], said_in: Path) -> dict[int, str]:
    labels = content.get("labels", {})
    if not isinstance(labels, dict):
        raise InputError(f'{said_in}: "labels" must be such as {{"0": "background", "1": "tumour"}}')
    names = {}
    for value, name in labels.items():
        if not str(value).isdigit() or not isinstance(name, str):
            raise InputError(f'{said_in}: "labels" maps numbers to names, but has {value!r}: {name!r}')
        names[int(value)] = name
    return {v: n for v, n in sorted(names.items()) if v != 0}


def open(out: Path, info: DatasetInfo) -> Writer:
    """Open a Decathlon dataset for writing.

    Raises:
        InputError: the folder holds a dataset that medgen did not write.
    """
    return DecathlonWriter(out, info)


class DecathlonWriter:
    """See :class:`medgen.formats.writer.Writer`. Several channels become one 4D image; labels keep their values."""

    def __init__(self, out: Path, info: DatasetInfo) -> None:
        folder.check_free(out, numbered=False)
        self.out, self.info = out, info
        self._ledger = folder_ledger(out)
        self.committed, self.uncommitted = self._ledger.committed, self._ledger.uncommitted
        self.sidecar, self.discard = self._ledger.sidecar, self._ledger.discard

    def write(self, sample: Sample) -> None:
        """See :meth:`medgen.formats.writer.Writer.write`."""
        check_sample(sample, self.info, all_channels=True, own_ids=True)
        if self._ledger.is_committed(sample.sample_id):
            return
        (self.out / SIDECARS).mkdir(parents=True, exist_ok=True)  # marks the folder as medgen's
        self._ledger.sidecar_path(sample.sample_id).unlink(missing_ok=True)
        volumes = [sample.images[c] for c in self.info.channels]
        image = Volume(np.concatenate([v.data for v in volumes]), volumes[0].affine)
        files = [self.out / "imagesTr" / f"{sample.sample_id}.nii.gz"]
        write_volume(files[0], image)
        if sample.label is not None:
            files.append(self.out / "labelsTr" / f"{sample.sample_id}.nii.gz")
            write_volume(files[1], sample.label)
        self._ledger.commit(sample, files)

    def close(self) -> None:
        """See :meth:`medgen.formats.writer.Writer.close`."""
        self._ledger.rebuild(self._manifests)

    def _manifests(self, sidecars: Mapping[str, Mapping[str, Any]]) -> None:
        (self.out / SIDECARS).mkdir(parents=True, exist_ok=True)  # of a dataset without a sample too
        training, bound, validates = [], [], folds.validating(self.info)
        for sample_id, sidecar in sidecars.items():
            entry = folds.entry(sidecar)
            if not self.info.splits:
                training.append(entry)
            elif folds.in_every_fold(self.info, sample_id):
                training.append({**entry, "fold": validates.get(sample_id, folds.NEVER)})
            else:
                own = [n for n, fold in enumerate(self.info.splits) if sample_id in fold["train"]]
                bound.append({**entry, "folds": own})
        content = {
            "name": self.info.name,
            "description": folds.told(self.info, sidecars),
            "tensorImageSize": "3D" if len(self.info.channels) == 1 else "4D",
            "modality": {str(i): c for i, c in enumerate(self.info.channels)},
            "labels": {"0": "background", **{str(v): n for v, n in sorted(self.info.label_names.items())}},
            "numTraining": len(training),
            "numTest": 0,
            "training": training,
            "test": [],
            **({BOUND: bound} if bound else {}),
        }
        folder.write_manifest(self.out / DATASET_JSON, content)
        folder.write_covariates(self.out, self.info, sidecars)
        folds.write_folds(self.out, self.info, sidecars)
