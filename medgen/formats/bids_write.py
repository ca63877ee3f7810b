"""Writing BIDS: a derivative dataset with labels beside the images and one provenance sidecar a sample.

    OUT/dataset_description.json  README.md  participants.tsv  participants.json  dseg.tsv  T1w.json
    OUT/sub-syn000001/anat/sub-syn000001_T1w.nii.gz  ..._T1w.json (the commit)  ..._dseg.nii.gz

Channels whose suffix BIDS does not know (``MRI``, ``CT``) are written under their own name and listed in
``.bidsignore``, because calling them T1w would be a lie.
"""

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from medgen.cohort.case import SUBJECT
from medgen.cohort.sample import Sample
from medgen.errors import InputError
from medgen.files import PARTIAL, read_json
from medgen.formats import folds
from medgen.formats.columns import cell_text, describe
from medgen.formats.tables import tsv_text
from medgen.formats.writer import SIDECARS, DatasetInfo, Ledger, check_sample, refresh, refuse_others
from medgen.volume import write_volume

BIDS_VERSION = "1.10.0"
CHANNELS = "Channels"
""""GeneratedBy" says under it which file names, without subject and ending, are which channels, in order."""
_OURS = ("contact_sheet.png", "medgen_gates", "medgen_gates/**")
_SUFFIXES = re.compile(
    r"T1w|T2w|PDw|T2starw|FLAIR|inplaneT[12]|PDT2|angio|T2star|FLASH|PD|UNIT1|T1rho|Chimap|MTsat|"
    r"(?:T1|T2|T2star|R1|R2|R2star|PD|MTR|MWF|MTV|PDT2|S0|M0)map"
)
_TAIL = re.compile(r"(?:[a-z]+-[0-9A-Za-z+]+_)*[0-9A-Za-z]+")


class BidsWriter:
    """See :class:`medgen.formats.writer.Writer`.

    Raises:
        InputError: the folder holds a dataset that medgen did not write, or two channels get one file name.
    """

    def __init__(self, out: Path, info: DatasetInfo) -> None:
        self.out, self.info = out, info
        self._tails = _tails(info)
        description = out / "dataset_description.json"
        if not description.is_file() or _derived_by(description) != info.generated_by.get("Name", "medgen"):
            refuse_others(out)
        elif (out / SIDECARS).is_dir():
            raise InputError(f"{out} holds samples in another format already; choose an empty folder")
        first = self._tails[info.channels[0]]
        self._ledger = Ledger(out, lambda i: self._path(i, f"{first}.json"), self._ids, self._files_of)
        self.committed, self.uncommitted = self._ledger.committed, self._ledger.uncommitted
        self.sidecar = self._ledger.sidecar

    def write(self, sample: Sample) -> None:
        """See :meth:`medgen.formats.writer.Writer.write`."""
        check_sample(sample, self.info)
        if self.info.channels[0] not in sample.images:
            raise InputError(
                f"sample '{sample.sample_id}' needs channel {self.info.channels[0]}, whose sidecar commits it"
            )
        if self._ledger.is_committed(sample.sample_id):
            return
        self._ledger.discard(sample.sample_id)
        # Written before the first image, so that a killed run's folder says what it is.
        refresh(self.out / "dataset_description.json", _json(self._description()))
        volumes = [(self._tails[c], sample.images[c]) for c in self.info.channels if c in sample.images]
        volumes += [("dseg", sample.label)] if sample.label is not None else []
        files = []
        for tail, volume in volumes:
            files.append(self._path(sample.sample_id, f"{tail}.nii.gz"))
            write_volume(files[-1], volume)
        self._ledger.commit(sample, files)

    def discard(self, sample_id: str) -> None:
        """See :meth:`medgen.formats.writer.Writer.discard`; an empty subject would be one without data."""
        self._ledger.discard(sample_id)
        folder = self._path(sample_id, "").parent
        with suppress(OSError):  # not there, or something else lies in it
            folder.rmdir()
            folder.parent.rmdir()

    def close(self) -> None:
        """See :meth:`medgen.formats.writer.Writer.close`."""
        self._ledger.rebuild(self._manifests)

    def _path(self, sample_id: str, tail: str) -> Path:
        return self.out / f"sub-{sample_id}" / "anat" / f"sub-{sample_id}_{tail}"

    def _ids(self) -> list[str]:
        return sorted(p.name.removeprefix("sub-") for p in self.out.glob("sub-*") if p.is_dir())

    def _files_of(self, sample_id: str) -> list[Path]:
        folder, stem = self._path(sample_id, "").parent, f"sub-{sample_id}_"
        return sorted({*folder.glob(f"{stem}*"), *folder.glob(f"{PARTIAL}*-{stem}*")})

    def _description(self) -> dict[str, Any]:
        by = {"Name": "medgen", **{k: v for k, v in self.info.generated_by.items() if k != "SkullStripped"}}
        by[CHANNELS] = dict(self._tails)  # names and their order, which file names alone do not tell
        return {
            "Name": self.info.name,
            "BIDSVersion": BIDS_VERSION,
            "DatasetType": "derivative",
            "GeneratedBy": [by],
        }

    def _manifests(self, sidecars: Mapping[str, Mapping[str, Any]]) -> None:
        columns, rows = covariate_rows(self.info, sidecars)
        table = tsv_text(["participant_id", *columns], [[f"sub-{i}", *row] for i, row in rows.items()])
        refresh(self.out / "dataset_description.json", _json(self._description()))
        refresh(self.out / "participants.tsv", table)
        who = "synthetic subject; stands for no person" if not self.info.real else "real or synthetic subject"
        about = {"participant_id": {"Description": who}}
        if SUBJECT in columns:
            about[SUBJECT] = {"Description": "participants that are sessions of one person have the same"}
        refresh(self.out / "participants.json", _json(about | describe(self.info.schema)))
        if self.info.label_names:
            named = sorted(self.info.label_names.items())
            refresh(self.out / "dseg.tsv", tsv_text(["index", "name"], [[str(i), name] for i, name in named]))
        skull_stripped = bool(self.info.generated_by.get("SkullStripped", False))
        unknown = []
        for tail in self._tails.values():
            if _SUFFIXES.fullmatch(tail.split("_")[-1]):
                refresh(self.out / f"{tail}.json", _json({"SkullStripped": skull_stripped}))
            else:
                unknown.append(f"**/*_{tail}.*")
        folds.write_folds(self.out, self.info, sidecars, lambda sample_id: f"sub-{sample_id}")
        lists = [folds.SPLITS, folds.DATALIST.format("*")] if self.info.splits else []
        # The contact sheet and what the gates say are for people, not for the validator.
        refresh(
            self.out / ".bidsignore",
            "\n".join([*_OURS, *lists, *unknown]) + "\n",
        )
        refresh(self.out / "README.md", self._readme(sidecars))

    def _readme(self, sidecars: Mapping[str, Any]) -> str:
        labels = ", ".join(f"{i} {name}" for i, name in sorted(self.info.label_names.items())) or "none"
        holds = f"{len(sidecars)} synthetic subjects, made by medgen; none of them is a person."
        if self.info.real:
            holds = f"{folds.told(self.info, sidecars)}."
        return (
            f"# {self.info.name}\n\n"
            f"{holds}\n\n"
            f"- images: {', '.join(self._tails.values())} (`sub-*/anat/*.nii.gz`)\n"
            f"- labels: {labels} (`*_dseg.nii.gz`, names in `dseg.tsv`)\n"
            "- covariates: `participants.tsv`, described in `participants.json`\n"
            f"- provenance of each subject: `*_{self._tails[self.info.channels[0]]}.json`\n"
        )


def covariate_rows(
    info: DatasetInfo, sidecars: Mapping[str, Mapping[str, Any]]
) -> tuple[list[str], dict[str, list[str]]]:
    """Columns (the schema's first, then others the sidecars have) and the cells of every sample.

    Where a sidecar tells a subject, the first column does so for all samples; others are subjects of their own.
    """
    found = [sidecar.get("covariates", {}) for sidecar in sidecars.values()]
    columns = [*info.schema.names, *sorted({k for row in found for k in row} - set(info.schema.names))]
    cells = {i: [cell_text(row.get(c)) for c in columns] for i, row in zip(sidecars, found, strict=True)}
    if not any(SUBJECT in sidecar for sidecar in sidecars.values()):
        return columns, cells
    return [SUBJECT, *columns], {i: [str(sidecars[i].get(SUBJECT, i)), *row] for i, row in cells.items()}


def _tails(info: DatasetInfo) -> dict[str, str]:
    """Channel -> the end of its file names."""
    tails = {c: c if _TAIL.fullmatch(c) else re.sub(r"[^0-9A-Za-z]+", "", c) for c in info.channels}
    if len(set(tails.values())) < len(tails) or "dseg" in tails.values() or not all(tails.values()):
        raise InputError(f"the channels {', '.join(info.channels)} do not give distinct BIDS file names; rename them")
    return tails


def generated_by(content: Any) -> dict[str, Any]:
    """The first "GeneratedBy" entry of a ``dataset_description.json`` as read; empty where it has none."""
    by = content.get("GeneratedBy") if isinstance(content, dict) else None
    return by[0] if isinstance(by, list) and by and isinstance(by[0], dict) else {}


def _derived_by(description: Path) -> str | None:
    content = read_json(description)
    if not isinstance(content, dict) or content.get("DatasetType") != "derivative":
        return None
    by = generated_by(content)
    return str(by.get("Name")) if by else None


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n"
