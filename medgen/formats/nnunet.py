"""nnU-Net v2 raw datasets: ``dataset.json``, ``imagesTr/<case>_0000.nii.gz``, ``labelsTr/<case>.nii.gz``.

Reference: https://github.com/MIC-DKFZ/nnUNet/blob/master/documentation/dataset_format.md
"""

from collections.abc import Mapping, Sequence
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
from medgen.formats.writer import LABEL_MAP, SIDECARS, DatasetInfo, Writer, check_sample, folder_ledger
from medgen.volume import Volume, write_volume


def detect(path: Path) -> bool:
    """Whether a folder is an nnU-Net raw dataset."""
    if not (path / DATASET_JSON).is_file():
        return False
    content = folder.read_dataset_json(path)
    modality = content.get("modality")
    return "channel_names" in content or folder.has_numbered_channels(
        path, len(modality) if isinstance(modality, dict) else 1
    )


def read(path: Path, *, include_test: bool = False, fold: int = 0, texts: Sequence[str] | None = None) -> Cohort:
    """Read an nnU-Net v2 raw dataset.

    Cases may lack channels or a label. ``splits_final.json``, where it lies beside ``dataset.json``, fixes the split;
    cases that other folds use and this one does not are on the side ``test``.

    Args:
        path: the dataset's folder.
        include_test: read ``imagesTs`` (and ``labelsTs``) as the test split.
        fold: of ``splits_final.json``.
        texts: columns of ``covariates.tsv`` that hold free words for a text encoder; none by default.

    Raises:
        InputError: keys missing, regions or an ignore label, files that are not NIfTI, or names without a channel.
    """
    said_in = path / DATASET_JSON
    content = folder.read_dataset_json(path)
    key = "channel_names" if "channel_names" in content else "modality"
    channels = [safe_name(n) or f"channel{i}" for i, n in enumerate(folder.numbered_names(content, key, said_in))]
    if len(set(channels)) < len(channels):
        raise InputError(f'{said_in}: "{key}" gives two channels the same name; rename one')
    names = _label_names(content, said_in)
    ending = str(content.get("file_ending", ".nii.gz"))
    if ending not in (".nii.gz", ".nii"):
        raise InputError(f"{said_in}: file_ending is {ending}; convert images and labels to .nii.gz and say so there")
    images = _images(path, "imagesTr", ending, channels)
    tests = _images(path, "imagesTs", ending, channels) if include_test else {}
    if twice := sorted(set(images) & set(tests)):
        raise InputError(f"{path}: case '{twice[0]}' is in imagesTr and in imagesTs; remove one")
    if not images:
        raise InputError(f"{path / 'imagesTr'} holds no images such as case_0000{ending}")
    split = folds.split(path, fold, images) | {i: "test" for i in tests}
    everything = images | tests
    table, subjects = folder.read_covariates(path, sorted(everything), texts)
    labels = _labels(path, "labelsTr", ending) | (_labels(path, "labelsTs", ending) if include_test else {})
    notes = list(table.notes)
    if stray := sorted(set(labels) - set(everything)):
        notes.append(f"{len(stray)} labels have no image and are left out, for example {stray[0]}")
    if not include_test and _images(path, "imagesTs", ending, channels):
        notes.append("imagesTs is not read; include_test reads it as the test split")
    return Cohort(
        name=str(content.get("name") or path.resolve().name),
        root=path,
        cases=tuple(
            Case(
                case_id=i,
                subject_id=subjects.get(i, i),
                images=everything[i],
                label=(LabelFile(labels[i]),) if i in labels else (),
                covariates=table.rows[i],
                split=split.get(i),
            )
            for i in sorted(everything)
        ),
        schema=table.schema,
        channels=tuple(channels),
        label_names=names,
        format="nnunet",
        notes=tuple(notes),
    )


def _label_names(content: Mapping[str, Any], said_in: Path) -> dict[int, str]:
    labels = content.get("labels")
    if not isinstance(labels, dict):
        raise InputError(f'{said_in} needs "labels" such as {{"background": 0, "lesion": 1}}')
    if labels and all(str(k).isdigit() for k in labels) and all(isinstance(v, str) for v in labels.values()):
        labels = {v: int(k) for k, v in labels.items()}  # the order of nnU-Net v1
    names: dict[int, str] = {}
    for name, value in labels.items():
        if isinstance(value, list):
            raise InputError(
                f"{said_in}: '{name}' is a region {value}; regions overlap, and medgen synthesises one integer map:"
                " list each value of the label files under a name of its own"
            )
        if isinstance(value, bool) or not isinstance(value, (int, str)) or not str(value).isdigit():
            raise InputError(f"{said_in}: label '{name}' must be a whole number, not {value!r}")
        if str(name).lower() == "ignore":
            raise InputError(f"{said_in} has an ignore label; medgen needs every voxel labelled: remove those cases")
        if int(value) in names:
            raise InputError(f"{said_in} gives label {value} to '{names[int(value)]}' and to '{name}'; keep one")
        names[int(value)] = str(name)
    return {v: n for v, n in sorted(names.items()) if v != 0}


def _images(root: Path, name: str, ending: str, channels: list[str]) -> dict[str, dict[str, Source]]:
    """Case -> channel -> source."""
    images: dict[str, dict[str, Source]] = {}
    for path in sorted((root / name).iterdir()) if (root / name).is_dir() else ():
        if path.name.startswith(".") or not path.name.endswith(ending):
            continue
        case_id, _, number = path.name.removesuffix(ending).rpartition("_")
        if not case_id or len(number) != 4 or not number.isdigit():
            raise InputError(f"{path} has no channel number; nnU-Net names images such as case_0000{ending}")
        if int(number) >= len(channels):
            raise InputError(f"{path} is channel {int(number)}, but {DATASET_JSON} names only {len(channels)}")
        inside(root, path.relative_to(root), said_in=root)
        images.setdefault(case_id, {})[channels[int(number)]] = Source(path)
    return {i: {c: found[c] for c in channels if c in found} for i, found in images.items()}


def _labels(root: Path, name: str, ending: str) -> dict[str, Source]:
    labels = {}
    for path in sorted((root / name).iterdir()) if (root / name).is_dir() else ():
        if path.name.endswith(ending) and not path.name.startswith("."):
            inside(root, path.relative_to(root), said_in=root)
            labels[path.name.removesuffix(ending)] = Source(path)
    return labels


def open(out: Path, info: DatasetInfo) -> Writer:
    """Open an nnU-Net v2 raw dataset for writing.

    Raises:
        InputError: the folder holds a dataset that medgen did not write.
    """
    return NnunetWriter(out, info)


class NnunetWriter:
    """See :class:`medgen.formats.writer.Writer`. Labels are renumbered 1, 2, ... because nnU-Net wants no gaps.

    The renumbering is in ``medgen_sidecars/label_map.json``.
    """

    def __init__(self, out: Path, info: DatasetInfo) -> None:
        folder.check_free(out, numbered=True)
        self.out, self.info = out, info
        self.to_consecutive = {value: i for i, value in enumerate(sorted(info.label_names), start=1)}
        self._ledger = folder_ledger(out, numbered=True)
        self.committed, self.uncommitted = self._ledger.committed, self._ledger.uncommitted
        self.sidecar, self.discard = self._ledger.sidecar, self._ledger.discard
        self._mapping = [
            {"original": value, "nnunet": new, "name": info.label_names[value]}
            for value, new in self.to_consecutive.items()
        ]

    def write(self, sample: Sample) -> None:
        """See :meth:`medgen.formats.writer.Writer.write`."""
        check_sample(sample, self.info, all_channels=True, own_ids=True)
        if self._ledger.is_committed(sample.sample_id):
            return
        folder.write_manifest(self.out / SIDECARS / LABEL_MAP, {"labels": self._mapping})
        label = None if sample.label is None else _renumbered(sample.label, self.to_consecutive, sample.sample_id)
        self._ledger.sidecar_path(sample.sample_id).unlink(missing_ok=True)
        files = []
        for number, channel in enumerate(self.info.channels):
            files.append(self.out / "imagesTr" / f"{sample.sample_id}_{number:04d}.nii.gz")
            write_volume(files[-1], sample.images[channel])
        if label is not None:
            files.append(self.out / "labelsTr" / f"{sample.sample_id}.nii.gz")
            write_volume(files[-1], label)
        self._ledger.commit(sample, files)

    def close(self) -> None:
        """See :meth:`medgen.formats.writer.Writer.close`."""
        self._ledger.rebuild(self._manifests)

    def _manifests(self, sidecars: Mapping[str, Mapping[str, Any]]) -> None:
        folder.write_manifest(self.out / SIDECARS / LABEL_MAP, {"labels": self._mapping})
        labels = {self.info.label_names[value]: new for value, new in self.to_consecutive.items()}
        content = {
            "name": self.info.name,
            "description": folds.told(self.info, sidecars),
            "channel_names": {str(i): c for i, c in enumerate(self.info.channels)},
            "labels": {"background": 0, **labels},
            "numTraining": len(sidecars),
            "file_ending": ".nii.gz",
        }
        folder.write_manifest(self.out / DATASET_JSON, content)
        folder.write_covariates(self.out, self.info, sidecars)
        folds.write_folds(self.out, self.info, sidecars)


def _renumbered(label: Volume, to_consecutive: Mapping[int, int], sample_id: str) -> Volume:
    values, inverse = np.unique(label.data, return_inverse=True)
    if unnamed := sorted(set(values.tolist()) - set(to_consecutive) - {0}):
        raise InputError(f"sample '{sample_id}' has label {unnamed[0]}, which has no name in the dataset")
    new = np.array([to_consecutive.get(int(v), 0) for v in values])
    kind = np.uint8 if len(to_consecutive) < 256 else np.uint16
    return Volume(new[inverse].reshape(label.data.shape).astype(kind), label.affine)
