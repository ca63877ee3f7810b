"""BIDS file names: entities, suffixes, and which images of a session belong together.

The entities medgen needs are in the file names themselves, so sixty lines of parsing do; pybids indexes every file and
sidecar of a dataset into a SQL database, which takes minutes on large datasets and brings sqlalchemy along.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from medgen.errors import InputError

NIFTI = (".nii.gz", ".nii")
LABEL_SUFFIXES = ("dseg", "mask", "roi")
NOT_IMAGES = frozenset({*LABEL_SUFFIXES, "probseg", "defacemask", "seg", "xfm", "warp", "phase1", "phase2"})
OTHER_DATATYPES = frozenset({"func", "fmap", "dwi", "perf", "eeg", "meg", "ieeg", "pet", "micr", "beh", "mrs"})
_CASE_ENTITIES = ("sub", "ses", "run")
_FIRST_CHANNELS = ("T1w", "T2w", "FLAIR")


@dataclass(frozen=True)
class Name:
    """A BIDS file with its name taken apart.

    Attributes:
        path: the file.
        entities: key -> value in the order written, ``sub`` first.
        suffix: for example ``T1w``.
    """

    path: Path
    entities: Mapping[str, str]
    suffix: str

    def get(self, key: str) -> str:
        """An entity's value, empty where the name has none."""
        return self.entities.get(key, "")

    @property
    def variant(self) -> str:
        """The name without subject, session and run: what tells the files of one session apart."""
        return "_".join([*(f"{k}-{v}" for k, v in self.entities.items() if k not in _CASE_ENTITIES), self.suffix])


@dataclass(frozen=True)
class Session:
    """The images of one run of one session of one subject: what becomes a case.

    Attributes:
        sub: subject, without ``sub-``.
        ses: session, without ``ses-``; empty where the dataset has none.
        run: run, without ``run-``; empty where the images have none.
        alone: whether it is the only run of its session.
        images: its files.
    """

    sub: str
    ses: str
    run: str
    alone: bool
    images: tuple[Name, ...]

    @property
    def case_id(self) -> str:
        """``sub-01``, ``sub-01_ses-2`` or ``sub-01_ses-2_run-1``."""
        parts = [("sub", self.sub), ("ses", self.ses), ("run", "" if self.alone else self.run)]
        return "_".join(f"{k}-{v}" for k, v in parts if v)


def parse(path: Path) -> Name | None:
    """Take a file name apart; None where it is no BIDS name of a NIfTI file."""
    stem = next((path.name.removesuffix(e) for e in NIFTI if path.name.endswith(e)), None)
    if stem is None:
        return None
    *pairs, suffix = stem.split("_")
    entities = {k: v for k, _, v in (p.partition("-") for p in pairs) if v}
    if len(entities) != len(pairs) or next(iter(entities), "") != "sub" or not suffix.isalnum():
        return None
    return Name(path, entities, suffix)


def subject_folders(root: Path) -> list[Path]:
    """The ``sub-*`` folders, sorted."""
    return sorted(p for p in root.glob("sub-*") if p.is_dir())


def nifti_files(folder: Path, datatype: str) -> list[Path]:
    """NIfTI files below a subject's folder, other datatypes left out, sorted."""
    skipped = OTHER_DATATYPES - {datatype}
    found = (p for p in folder.rglob("*.nii*") if p.name.endswith(NIFTI) and not p.name.startswith("."))
    return sorted(p for p in found if not skipped & set(p.relative_to(folder).parts[:-1]))


def check_place(name: Name, subject: Path) -> None:
    """Refuse a file that lies under another subject's folder.

    Raises:
        InputError: naming the file.
    """
    if f"sub-{name.get('sub')}" != subject.name:
        raise InputError(f"{name.path} lies in {subject.name} but is named after another subject; move or rename it")


def sessions(names: Iterable[Name]) -> list[Session]:
    """Group images into cases, one a run.

    An image without ``run-`` joins every run of its session, unless the same image also exists with a run: then it is
    a case of its own.
    """
    by_session: dict[tuple[str, str], list[Name]] = {}
    for name in names:
        by_session.setdefault((name.get("sub"), name.get("ses")), []).append(name)
    found = []
    for (sub, ses), images in sorted(by_session.items()):
        repeated = {n.variant for n in images if n.get("run")}
        shared = [n for n in images if not n.get("run") and n.variant not in repeated]
        runs = sorted({n.get("run") for n in images if n.variant in repeated}) or [""]
        for run in runs:
            own = [n for n in images if n.get("run") == run and n not in shared]
            found.append(Session(sub, ses, run, len(runs) == 1, tuple(own + shared)))
    return found


def channels(found: Sequence[Session], wanted: Sequence[str] | None) -> tuple[list[dict[str, Name]], tuple[str, ...]]:
    """Name the images of every session by channel.

    A channel is a suffix (``T1w``). Where some session holds several images of one suffix (``T1w`` and
    ``ce-gadolinium_T1w``), their whole variants are the channels. ``wanted`` selects and orders channels by either.

    Returns:
        Channel -> image for each session, and the channel names in order.

    Raises:
        InputError: a wanted channel that is nowhere, or is several images in one session.
    """
    if wanted is not None:
        picked = [{c: n for c in wanted if (n := _pick(s, c))} for s in found]
        for channel in wanted:
            if not any(channel in p for p in picked):
                known = sorted(
                    {n.variant for s in found for n in s.images} | {n.suffix for s in found for n in s.images}
                )
                raise InputError(f"no image is a '{channel}' (there are: {', '.join(known)}); mend channels")
        return picked, tuple(dict.fromkeys(wanted))
    for s in found:
        again = [v for v, times in Counter(n.variant for n in s.images).items() if times > 1]
        if again:
            raise InputError(f"{s.case_id} has several images '{again[0]}', such as .nii and .nii.gz; keep one")
    crowded = {n.suffix for s in found for n in s.images for m in s.images if n.suffix == m.suffix and n is not m}
    picked = [{n.variant if n.suffix in crowded else n.suffix: n for n in s.images} for s in found]
    order = {c: i for i, c in enumerate(_FIRST_CHANNELS)}
    names = sorted({c for p in picked for c in p}, key=lambda c: (order.get(c, len(order)), c))
    return picked, tuple(names)


def _pick(session: Session, channel: str) -> Name | None:
    exact = [n for n in session.images if n.variant == channel]
    found = exact or [n for n in session.images if n.suffix == channel]
    if len(found) > 1:
        names = ", ".join(sorted({n.variant for n in found}))
        raise InputError(f"{session.case_id} has several images for channel '{channel}': {names}; name one in channels")
    return found[0] if found else None
