"""Samples of which every draw was rejected: on record beside the dataset, so that no run draws them again."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medgen.files import read_json, write_json

FOLDER = "medgen_gates"
REPORT = "acceptance.json"
_RECORDS = "left_out"


@dataclass(frozen=True)
class LeftOut:
    """The records of a dataset folder: one file a sample, so that several shards may write theirs.

    Attributes:
        out: folder of the dataset.
    """

    out: Path

    def records(self) -> dict[str, dict[str, Any]]:
        """Sample id -> its provenance and its rejected draws."""
        return {path.stem: read_json(path) for path in sorted((self.out / FOLDER / _RECORDS).glob("syn*.json"))}

    def add(self, sample_id: str, record: Mapping[str, Any]) -> None:
        """Write a record."""
        write_json(self.out / FOLDER / _RECORDS / f"{sample_id}.json", dict(record))

    def report(self, acceptance: Mapping[str, Any]) -> None:
        """Write the acceptance report of the dataset, rebuilt from its sidecars each time."""
        write_json(self.out / FOLDER / REPORT, dict(acceptance))
