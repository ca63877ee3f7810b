"""Labels and foreground masks of a BIDS dataset: found in derivatives or beside the images, chosen, and named.

``dseg`` files are integer label maps. A ``mask`` or ``roi`` whose ``label-`` (else ``desc-``) entity names a structure
is that structure, with its value from ``dseg.tsv`` or the next free one; ``desc-brain_mask`` and its like, or a mask
that names nothing, is a foreground mask.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from medgen.cohort.case import LabelFile, Source
from medgen.errors import InputError
from medgen.files import inside
from medgen.formats.bids_names import LABEL_SUFFIXES, Name, Session, check_place, nifti_files, parse, subject_folders
from medgen.formats.tables import read_label_names

ITSELF = "."
_FOREGROUND = frozenset({"", "brain", "head", "foreground", "body", "brainmask", "skullstrip", "bet"})
_OWN_SPACES = frozenset({"", "orig", "T1w", "T2w", "native", "individual", "scanner", "subject"})


@dataclass(frozen=True)
class Choice:
    """Which label files a user wants; empty means no restriction.

    Attributes:
        derivative: folders under ``derivatives``, ``.`` for the dataset itself; merged in this order.
        suffix: of ``dseg``, ``mask``, ``roi``.
        desc: values of ``desc-``; merged in this order.
        entity: further entities and their values.
    """

    derivative: tuple[str, ...] = ()
    suffix: tuple[str, ...] = ()
    desc: tuple[str, ...] = ()
    entity: Mapping[str, str] = field(default_factory=dict)

    @property
    def given(self) -> bool:
        """Whether anything was chosen."""
        return bool(self.derivative or self.suffix or self.desc or self.entity)

    def allows(self, c: "Candidate") -> bool:
        """Whether a file is among the wanted ones."""
        return (
            (not self.derivative or c.folder in self.derivative)
            and (not self.suffix or c.name.suffix in self.suffix)
            and (not self.desc or c.name.get("desc") in self.desc)
            and all(c.name.get(k) == v for k, v in self.entity.items())
        )


@dataclass(frozen=True)
class Candidate:
    """A label file and the derivatives folder that holds it."""

    folder: str
    name: Name

    @property
    def structure(self) -> str:
        """What a mask or roi outlines; empty where its name does not say."""
        return self.name.get("label") or self.name.get("desc")

    @property
    def is_foreground(self) -> bool:
        """Whether it is a mask of the whole brain, head or body."""
        return self.name.suffix == "mask" and self.structure.lower() in _FOREGROUND


@dataclass(frozen=True)
class Labels:
    """Labels and masks by case id, label names, and what was left out."""

    files: Mapping[str, tuple[LabelFile, ...]]
    masks: Mapping[str, Source]
    names: Mapping[int, str]
    notes: tuple[str, ...]


def read_labels(root: Path, cases: Sequence[Session], choice: Choice, datatype: str) -> Labels:
    """Find, choose and name the labels of every case.

    Raises:
        InputError: the choice matches nothing, or there are several to choose from and no choice was made.
    """
    roots = {ITSELF: root} | {f.relative_to(root / "derivatives").as_posix(): f for f in _derivatives(root)}
    candidates = [c for name, folder in roots.items() for c in _candidates(root, name, folder, datatype)]
    explicit = bool(choice.desc or choice.entity)
    allowed = [c for c in candidates if choice.allows(c)]
    label = allowed if explicit else [c for c in allowed if not c.is_foreground]
    if not label and choice.suffix == ("mask",):
        label = allowed
    if choice.given and not label:
        there = sorted({f"{c.folder}: {c.name.variant}" for c in candidates})
        raise InputError(f"{root}: no label file is what was chosen (there are: {'; '.join(there) or 'none'})")
    folders = sorted({c.folder for c in label})
    if len(folders) > 1 and not choice.derivative:
        raise InputError(
            f"{root}: several folders hold labels ({', '.join(folders)}); choose one with label_derivative"
        )
    notes: list[str] = []
    matched = _match(cases, label, notes)
    used = [c for several in matched.values() for c in several]
    for case_id, several in matched.items():
        _refuse_several(root, case_id, several, explicit)
    names = _names(root, roots, used)
    values = _structure_values(root, used, names)
    files = {
        case_id: tuple(
            LabelFile(Source(c.name.path), None if c.name.suffix == "dseg" else values[c.structure])
            for c in sorted(found, key=lambda c: _merge_order(c, choice, values))
        )
        for case_id, found in matched.items()
    }
    own = {values[c.structure]: c.structure or "foreground" for c in used if c.name.suffix != "dseg"}
    has_dseg = any(c.name.suffix == "dseg" for c in used)
    masks = _masks(cases, [c for c in candidates if c.is_foreground and c not in label], folders, notes)
    return Labels(files, masks, dict(sorted(({**own, **names} if has_dseg else own).items())), tuple(notes))


def _derivatives(root: Path) -> list[Path]:
    """Folders below ``derivatives`` that hold subjects, at most three levels down."""
    found: list[Path] = []

    def look(folder: Path, depth: int) -> None:
        for child in sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith((".", "sub-"))):
            if subject_folders(child):
                found.append(child)
            elif depth < 3:
                look(child, depth + 1)

    if (root / "derivatives").is_dir():
        look(root / "derivatives", 1)
    return found


def _candidates(root: Path, folder_name: str, folder: Path, datatype: str) -> Iterable[Candidate]:
    for subject in subject_folders(folder):
        for path in nifti_files(subject, datatype):
            name = parse(path)
            if name is not None and name.suffix in LABEL_SUFFIXES and not name.get("task"):
                check_place(name, subject)
                inside(root, path.relative_to(root), said_in=root)
                yield Candidate(folder_name, name)


def _match(cases: Sequence[Session], candidates: Sequence[Candidate], notes: list[str]) -> dict[str, list[Candidate]]:
    by_sub: dict[str, list[Candidate]] = {}
    for c in candidates:
        by_sub.setdefault(c.name.get("sub"), []).append(c)
    sessions_of: dict[str, set[str]] = {}
    for case in cases:
        sessions_of.setdefault(case.sub, set()).add(case.ses)
    matched = {}
    for case in cases:
        one = len(sessions_of[case.sub]) == 1
        matched[case.case_id] = [c for c in by_sub.get(case.sub, ()) if _belongs(c.name, case, one)]
    used = {id(c) for found in matched.values() for c in found}
    unused = [c for c in candidates if c.name.get("sub") in sessions_of and id(c) not in used]
    if unused:
        notes.append(
            f"{len(unused)} label files match no image by session, run and space and are not used,"
            f" for example {unused[0].name.path.name}"
        )
    return {case_id: found for case_id, found in matched.items() if found}


def _belongs(name: Name, case: Session, one_session: bool) -> bool:
    ses, run, space = name.get("ses"), name.get("run"), name.get("space")
    return (
        (ses == case.ses or (not ses and one_session))
        and (run == case.run or (not run and case.alone))
        and (space in _OWN_SPACES or space in {n.get("space") for n in case.images})
    )


def _refuse_several(root: Path, case_id: str, found: Sequence[Candidate], explicit: bool) -> None:
    if explicit:
        return
    seen: dict[tuple[str, str], Candidate] = {}
    for c in found:
        key = (c.folder, "dseg" if c.name.suffix == "dseg" else f"{c.name.suffix} of {c.structure}")
        if key in seen:
            raise InputError(
                f"{root}: {case_id} has several label maps ({seen[key].name.variant}, {c.name.variant});"
                " choose with label_desc or label_entity"
            )
        seen[key] = c


def _names(root: Path, roots: Mapping[str, Path], used: Sequence[Candidate]) -> dict[int, str]:
    """From lookup tables: beside the files, else at the derivative's root, else at the dataset's."""
    beside: dict[int, str] = {}
    for c in used:
        table = c.name.path.with_name(c.name.path.name.removesuffix(".gz").removesuffix(".nii") + ".tsv")
        if table.is_file():
            for index, name in read_label_names(table).items():
                if beside.setdefault(index, name) != name:
                    raise InputError(
                        f"{table} calls label {index} '{name}', another table '{beside[index]}'; agree on one"
                    )
    names = dict(beside)
    for folder in dict.fromkeys([*(roots[c.folder] for c in used), root]):
        tables = [t for t in sorted(folder.glob("*dseg.tsv")) if _applies(t, used)]
        for table in sorted(tables, key=lambda t: -len(t.name.split("_"))):
            inside(root, table.relative_to(root), said_in=root)
            names = {**read_label_names(table), **names}
    return names


def _applies(table: Path, used: Sequence[Candidate]) -> bool:
    pairs = [p.partition("-")[::2] for p in table.name.removesuffix(".tsv").split("_")[:-1]]
    return not pairs or any(all(c.name.get(k) == v for k, v in pairs) for c in used)


def _structure_values(root: Path, used: Sequence[Candidate], names: Mapping[int, str]) -> dict[str, int]:
    structures = sorted({c.structure for c in used if c.name.suffix != "dseg"})
    if structures and any(c.name.suffix == "dseg" for c in used) and not names:
        raise InputError(
            f"{root} holds label maps (dseg) and masks ({', '.join(structures)}) but no dseg.tsv that says which"
            " numbers are free; add one or choose with label_suffix"
        )
    known = {name.lower(): index for index, name in names.items()}
    values: dict[str, int] = {}
    free = max(names, default=0) + 1
    for structure in structures:
        if structure.lower() in known:
            values[structure] = known[structure.lower()]
        else:
            values[structure], free = free, free + 1
    return values


def _merge_order(c: Candidate, choice: Choice, values: Mapping[str, int]) -> tuple[int, int, int, str]:
    folder = choice.derivative.index(c.folder) if c.folder in choice.derivative else 0
    desc = choice.desc.index(c.name.get("desc")) if c.name.get("desc") in choice.desc else 0
    return folder, desc, 0 if c.name.suffix == "dseg" else values[c.structure], c.name.path.name


def _masks(
    cases: Sequence[Session], candidates: Sequence[Candidate], label_folders: Sequence[str], notes: list[str]
) -> dict[str, Source]:
    folders = sorted({c.folder for c in candidates})
    preferred = [f for f in folders if f in label_folders] or folders
    if len(preferred) > 1:
        notes.append(f"several folders hold foreground masks ({', '.join(preferred)}); none is used")
        return {}
    quiet: list[str] = []
    matched = _match(cases, [c for c in candidates if c.folder in preferred], quiet)
    return {i: Source(min(found, key=lambda c: len(c.name.path.name)).name.path) for i, found in matched.items()}
