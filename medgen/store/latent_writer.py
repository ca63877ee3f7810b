"""Writing latents row after row: memory never holds them all, and an encoding that was killed goes on.

Rows are appended to ``.npy`` files in ``encoding/`` inside the folder; ``rows.json`` there, written after them, says
how many are whole. When all are, the files are renamed into place and ``index.json`` comes last.
"""

import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np

from medgen.files import read_json, write_json
from medgen.store.latents import Latents, LatentStatistics

ENCODING = "encoding"
_ROWS, _INDEX = "rows.json", "index.json"
_SECONDS = 10.0  # between two commits


class LatentWriter:
    """Rows of latents on their way to disk.

    Args:
        folder: that :class:`medgen.store.latents.Latents` will open.
        count: rows there will be.

    Attributes:
        cases: of the rows that are there, those that an earlier process wrote included.
    """

    def __init__(self, folder: Path, count: int) -> None:
        self.folder, self.count, self._inner = folder, count, folder / ENCODING
        self._inner.mkdir(parents=True, exist_ok=True)
        said = read_json(self._inner / _ROWS) if (self._inner / _ROWS).is_file() else {}
        if said.get("count") != count or not self._holds(said):
            said = {"count": count, "arrays": {}, "cases": [], "mirrored": [], "copies": [], "volumes_ml": []}
        self._said: dict[str, Any] = said
        self._streams: dict[str, BinaryIO] = {}
        for name, (row_bytes, header_bytes) in said["arrays"].items():
            stream = self._place(said, name).open("r+b")
            self._streams[name] = stream
            # What a killed process wrote after its last commit is written again.
            stream.truncate(header_bytes + row_bytes * len(said["cases"]))
            stream.seek(0, os.SEEK_END)
        self.cases: list[int] = said["cases"]
        self._committed = time.monotonic()

    def __enter__(self) -> "LatentWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for stream in self._streams.values():
            stream.close()

    def add(
        self,
        arrays: Mapping[str, np.ndarray],
        case: int,
        *,
        mirrored: bool = False,
        copy: int = 0,
        volumes_ml: Mapping[str, float] | None = None,
    ) -> None:
        """Append a row.

        Args:
            arrays: name of an array of :class:`medgen.store.latents.Latents` -> its row (..., x, y, z); ``mean`` and
                ``logvar`` at least, of all rows the same names, shapes and types.
            case: its number in the prepared store.
            mirrored: left for right.
            copy: k of the k-th augmented copy, 0 for the case itself.
            volumes_ml: label volumes that were measured again.
        """
        for key, row in arrays.items():
            self._stream(f"{key}.npy", row).write(np.ascontiguousarray(row).tobytes())
        self.cases.append(case)
        self._said["mirrored"].append(mirrored)
        self._said["copies"].append(copy)
        self._said["volumes_ml"].append(None if volumes_ml is None else dict(volumes_ml))

    def commit(self, *, now: bool = False) -> None:
        """Say that the rows so far are whole, every ten seconds or ``now``. An encoding goes on from here."""
        if now or time.monotonic() - self._committed > _SECONDS:
            for stream in self._streams.values():
                stream.flush()
                os.fsync(stream.fileno())
            write_json(self._inner / _ROWS, self._said)
            self._committed = time.monotonic()

    def finish(self, statistics: LatentStatistics | None, training: set[int]) -> Latents:
        """Put everything into its place; where a process was killed while it did, the next one goes on.

        Args:
            statistics: of the dataset; measured over the rows of the training cases where it is None.
            training: numbers of the training cases.
        """
        assert len(self.cases) == self.count, f"{len(self.cases)} of {self.count} rows"
        self.commit(now=True)
        said = self._said
        mean, logvar = (np.load(self._place(said, f"{k}.npy"), mmap_mode="r") for k in ("mean", "logvar"))
        rows = [r for r, case in enumerate(self.cases) if case in training]
        statistics = statistics or LatentStatistics.measure(mean, logvar, rows)
        index = {"cases": self.cases, "mirrored": said["mirrored"], "arrays": sorted(said["arrays"])}
        if any(said["copies"]):
            index |= {"copies": said["copies"], "volumes_ml": said["volumes_ml"]}
        for name in sorted(said["arrays"]):
            self._place(said, name).replace(self.folder / name)
        write_json(self.folder / _INDEX, {**index, "mean": statistics.mean, "std": statistics.std})
        shutil.rmtree(self._inner)
        return Latents(self.folder)

    def _holds(self, said: Mapping[str, Any]) -> bool:
        """Whether every array has all the rows that are said to be there."""
        places = {self._place(said, name): sizes for name, sizes in said["arrays"].items()}
        return all(
            place.is_file() and place.stat().st_size >= header + row * len(said["cases"])
            for place, (row, header) in places.items()
        )

    def _place(self, said: Mapping[str, Any], name: str) -> Path:
        """Where an array is: of an encoding that has all rows, perhaps in its last place already."""
        inner = self._inner / name
        return self.folder / name if len(said["cases"]) == self.count and not inner.is_file() else inner

    def _stream(self, name: str, row: np.ndarray) -> BinaryIO:
        """The file of an array; begun with the header of all rows."""
        if name not in self._streams:
            stream = self._streams[name] = (self._inner / name).open("wb")
            kind = {"descr": np.lib.format.dtype_to_descr(row.dtype), "fortran_order": False}
            np.lib.format.write_array_header_2_0(stream, {**kind, "shape": (self.count, *row.shape)})
            self._said["arrays"][name] = [row.nbytes, stream.tell()]
        return self._streams[name]
