"""Folds beside a dataset that holds real and synthetic cases: nnU-Net's ``splits_final.json`` and MONAI's datalists.

A synthetic case stands in the training list of its own fold and nowhere else. MONAI's ``fold`` key alone cannot say
that (whoever trains fold 1 takes every case of another number), so each fold has a datalist of its own.
"""

import json
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from medgen.errors import InputError
from medgen.files import read_json
from medgen.formats.writer import DatasetInfo, refresh

SPLITS = "splits_final.json"
DATALIST = "datalist_fold{}.json"
NEVER = -1
_SIDES = ("train", "val")

Sidecars = Mapping[str, Mapping[str, Any]]


def write_folds(root: Path, info: DatasetInfo, sidecars: Sidecars, name: Callable[[str], str] = str) -> None:
    """Write the splits and a datalist for each fold, of the cases that are on disk.

    Args:
        root: of the dataset.
        info: of the dataset; without splits nothing is written.
        sidecars: of the committed cases.
        name: sample id -> what the format calls the case.
    """
    kept = [{side: [i for i in fold[side] if i in sidecars] for side in ("train", "val")} for fold in info.splits]
    if not kept:
        return
    # nnU-Net's own key order and names.
    _write(root / SPLITS, [{side: sorted(map(name, ids)) for side, ids in fold.items()} for fold in kept])
    validates = validating(info)
    for number, fold in enumerate(kept):
        training = []
        for sample_id in sorted({*fold["train"], *fold["val"]}):
            mine = number if sample_id in fold["val"] else validates.get(sample_id, NEVER)
            training.append({**entry(sidecars[sample_id]), "fold": mine})
        content = {"name": info.name, "fold": number, "training": training}
        _write(root / DATALIST.format(number), content)


def entry(sidecar: Mapping[str, Any]) -> dict[str, Any]:
    """``image`` (one path, or a list with one a channel) and ``label``, relative to the dataset."""
    files = [str(f) for f in sidecar["files"]]
    labels = [f for f in files if f.startswith("labelsTr/") or f.endswith("_dseg.nii.gz")]
    images = [f"./{f}" for f in files if f not in labels]
    found: dict[str, Any] = {"image": images[0] if len(images) == 1 else images}
    return {**found, "label": f"./{labels[0]}"} if labels else found


def validating(info: DatasetInfo) -> dict[str, int]:
    """Case -> the first fold that it validates; cases that validate none are not there."""
    found: dict[str, int] = {}
    for number, fold in enumerate(info.splits):
        for sample_id in fold["val"]:
            found.setdefault(sample_id, number)
    return found


def in_every_fold(info: DatasetInfo, sample_id: str) -> bool:
    """Whether a case stands on one side or the other of every fold."""
    return all(sample_id in fold["train"] or sample_id in fold["val"] for fold in info.splits)


def _write(path: Path, content: Any) -> None:
    refresh(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def told(info: DatasetInfo, sidecars: Sidecars) -> str:
    """What a dataset holds, for its description."""
    if not info.real:
        return "synthetic images and labels made by medgen; no case is a person"
    real = sum(i in info.real for i in sidecars)
    return (
        f"{real} real cases and {len(sidecars) - real} synthetic ones made by medgen; a synthetic case belongs into "
        f"the training of its own fold only, see {SPLITS}"
    )


def of_fold(fold: int) -> str:
    """What a reader says of a split that is a fold's."""
    return f"{SPLITS}: the cases are on the sides of fold {fold}; the option fold reads another"


def split(root: Path, fold: int, cases: Collection[str], name: Callable[[str], str] = str) -> dict[str, str]:
    """The side of each case in a fold of ``splits_final.json``; empty where there is no such file.

    Args:
        root: of the dataset.
        fold: its number, from 0.
        cases: ids of the dataset's.
        name: what the file calls a case -> its id.

    Raises:
        InputError: no such fold, or a case that is not there.
    """
    path = root / SPLITS
    if not path.is_file():
        return {}
    found = [{side: [name(i) for i in ids] for side, ids in one.items()} for one in read_splits(path)]
    if not 0 <= fold < len(found):
        raise InputError(f"{path} has {len(found)} folds; there is no fold {fold}")
    sides = {i: side for side, ids in found[fold].items() for i in ids}
    if unknown := sorted(set(sides) - set(cases)):
        raise InputError(f"{path} names '{unknown[0]}', which is no case of the dataset; make it again")
    # A synthetic case of another fold may come from a model that has seen what validates here.
    elsewhere = {i for other in found for ids in other.values() for i in ids} & set(cases)
    return dict.fromkeys(elsewhere, "test") | sides


def read_splits(path: Path) -> list[dict[str, tuple[str, ...]]]:
    """nnU-Net's ``splits_final.json``: folds of case ids, each ``{"train": ids, "val": ids}``.

    Raises:
        InputError: not such a list, or a case on both sides of a fold.
    """
    said = read_json(path)
    shaped = isinstance(said, list) and said
    if not shaped or not all(isinstance(f, dict) and all(isinstance(f.get(s), list) for s in _SIDES) for f in said):
        raise InputError(f'{path} must be a list of folds with "train" and "val"; make it again with nnU-Net')
    found = [{side: tuple(str(i) for i in fold[side]) for side in _SIDES} for fold in said]
    for number, fold in enumerate(found):
        if set(fold["train"]) & set(fold["val"]):
            raise InputError(f"{path}: fold {number} has a case on both sides; make it again with nnU-Net")
    return found
