"""Findings about geometry, voxels and labels."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from medgen.cohort.case import Cohort
from medgen.doctor.facts import CaseFacts, without_fault
from medgen.doctor.finding import Finding, number, some
from medgen.prepare.plan import Plan
from medgen.prepare.scan import Scan

_SAME_SPACING = 0.02  # relative: headers round, and so do scanners
_THICK = 3.0
_RARE_SHARE = 0.1
_FEW_VOXELS = 20
_FACE = 0.25
_OTHER_UNITS = 10.0
_FEW_CASES = 5
_MUCH_SMALLER = 0.85


def fields_of_view(facts: Sequence[CaseFacts], plan: Plan, mask_padding: bool) -> Iterator[Finding]:
    """Whether what cases show of the shared grid differs so much in size that their padding is a part of the picture.

    Args:
        facts: of the cases.
        plan: the grid.
        mask_padding: whether the training leaves padding out.
    """
    readable = without_fault(facts)
    if not mask_padding or len(readable) < _FEW_CASES:
        return
    grid_mm = np.multiply(plan.shape, plan.spacing_mm)
    extents = [Scan.from_json(dict(f.scan)).source.ras().shape for f in readable]
    sizes = [np.minimum(np.multiply(n, f.spacing_mm), grid_mm).prod() for n, f in zip(extents, readable, strict=True)]
    small, large = np.percentile(sizes, [10, 90])
    if small < _MUCH_SMALLER * large:
        yield Finding(
            "odd",
            "diffusion.mask_padding",
            f"fields of view differ in size (a tenth of the cases have {large / small:.2g} times that of another "
            "tenth), and padding teaches nothing: samples come out as large as the largest",
            "where images are crops, whose ends belong to them, set diffusion.mask_padding: false",
        )


def unreadable(facts: Sequence[CaseFacts]) -> Iterator[Finding]:
    """Cases that cannot be read, each with its sentence, and images of one value."""
    for f in facts:
        if f.fault:
            yield Finding("wrong", f.case_id, f.fault, "mend the file, or leave the case out")
        for channel in f.constant:
            yield Finding(
                "wrong", f.case_id, f"channel {channel} has one value everywhere", "replace the image or leave it out"
            )
    good = len(without_fault(facts))
    if good == len(facts) and not any(f.constant for f in facts):
        yield Finding(
            "ok", "images", f"read {number(good, 'case')}: all finite, none constant, image and label on one grid"
        )


def geometry(facts: Sequence[CaseFacts]) -> Iterator[Finding]:
    """Voxel sizes and orientations."""
    readable = without_fault(facts)
    if not readable:
        return
    spacing = np.array([f.spacing_mm for f in readable])
    sizes = Counter(" x ".join(f"{s:.3g}" for s in row) for row in spacing)
    listed = some([f"{size} mm ({n})" for size, n in sizes.most_common()])
    if (spacing.max(axis=0) / spacing.min(axis=0)).max() > 1 + _SAME_SPACING:
        yield Finding(
            "odd",
            "geometry",
            f"voxel sizes differ: {listed}",
            "prepare brings all to one size, the median unless you set prepare.spacing_mm",
        )
    else:
        yield Finding("ok", "geometry", f"one voxel size: {sizes.most_common(1)[0][0]} mm")
    thick = [f.case_id for f in readable if max(f.spacing_mm) > _THICK * min(f.spacing_mm)]
    if thick:
        yield Finding(
            "odd",
            "geometry",
            f"voxels more than {_THICK:g} times longer than wide in {number(len(thick), 'case')} ({some(thick)})",
            "samples are no finer than the slices; set prepare.spacing_mm to what you need",
        )
    axes = Counter(f.orientation for f in readable)
    listed = ", ".join(f"{axis} ({n})" for axis, n in axes.most_common())
    what = f"axes run {listed}" + ("; prepare turns all to RAS without interpolation" if set(axes) != {"RAS"} else "")
    yield Finding("ok", "geometry", what)


def intensities(facts: Sequence[CaseFacts]) -> Iterator[Finding]:
    """Whether the cases of a channel are stored in units of their own."""
    channels = dict.fromkeys(name for f in facts for name in f.bright)
    for channel in channels:
        bright = np.array([f.bright[channel] for f in facts if channel in f.bright])
        if bright.min() > 0 and bright.max() > _OTHER_UNITS * bright.min():
            what = f"intensities of {channel} differ {bright.max() / bright.min():.0f}-fold between cases"
            yield Finding(
                "odd",
                "intensities",
                f"{what} (the bright end lies at {bright.min():.4g} to {bright.max():.4g})",
                "prepare brings each case to [-1, 1] by itself; samples come in the units of some case",
            )


def twins(facts: Sequence[CaseFacts]) -> Iterator[Finding]:
    """The same voxels under two subjects, twice under one, or as two channels."""
    owners: dict[str, list[tuple[CaseFacts, str]]] = defaultdict(list)
    for f in without_fault(facts):
        for channel, digest in f.hashes.items():
            if channel not in f.constant:
                owners[digest].append((f, channel))
    for same in owners.values():
        if len(same) < 2:
            continue
        named = some([f"{f.case_id} ({channel})" for f, channel in same])
        if len({f.subject_id for f, _ in same}) > 1:
            yield Finding(
                "wrong",
                "duplicates",
                f"the same image belongs to several subjects: {named}",
                "keep one, or give them one subject: training and validation would share it",
            )
        else:
            yield Finding("odd", "duplicates", f"the same image is there more than once: {named}", "keep one")


def split_subjects(cohort: Cohort) -> dict[str, list[str]]:
    """Subjects whose cases are on several sides of a split that the cohort fixes, with those sides."""
    sides: dict[str, set[str]] = defaultdict(set)
    for case in cohort.cases:
        if case.split is not None:
            sides[case.subject_id].add(case.split)
    return {subject: sorted(found) for subject, found in sorted(sides.items()) if len(found) > 1}


def splits(cohort: Cohort) -> Iterator[Finding]:
    """Subjects whose cases are on several sides."""
    for subject, sides in split_subjects(cohort).items():
        yield Finding("wrong", subject, f"it is in the splits {' and '.join(sides)}", "put all its cases into one")


def labels(cohort: Cohort, facts: Sequence[CaseFacts]) -> Iterator[Finding]:
    """Label values, names, and how often each is there."""
    readable = without_fault(facts)
    labelled = [f for f in readable if f.label_ml is not None]
    if not readable:
        return
    if not labelled:
        yield Finding("odd", "labels", "no case has a label: only images will be made", "add labels to get pairs")
        return
    if without := [f.case_id for f in readable if f.label_ml is None]:
        yield Finding(
            "odd",
            "labels",
            f"{len(without)} of {len(readable)} cases have no label ({some(without)})",
            "they train what an image looks like, and nothing about labels",
        )
    if empty := [f.case_id for f in labelled if not f.label_voxels]:
        yield Finding(
            "odd",
            "labels",
            f"only background in {number(len(empty), 'label file')} ({some(empty)})",
            "check that this is so",
        )
    counts = Counter(v for f in labelled for v in f.label_voxels)
    names = {v: cohort.label_names.get(v, f"label_{v}") for v in {*counts, *cohort.label_names}}
    if unnamed := sorted(set(counts) - set(cohort.label_names)):
        yield Finding(
            "odd",
            "labels",
            f"the values {some([str(v) for v in unnamed])} have no name",
            "name them in dseg.tsv or dataset.json; until then they are called label_N",
        )
    if unused := sorted(set(cohort.label_names) - set(counts)):
        yield Finding(
            "odd", "labels", f"named but in no case: {some([names[v] for v in unused])}", "they cannot be learned"
        )
    yield from _rare(labelled, counts, names)
    yield Finding(
        "ok", "labels", f"{number(len(counts), 'label')}: {some([f'{v} {names[v]}' for v in sorted(counts)])}"
    )


def _rare(labelled: Sequence[CaseFacts], counts: Mapping[int, int], names: Mapping[int, str]) -> Iterator[Finding]:
    for value in sorted(counts):
        sizes = [f.label_voxels[value] for f in labelled if value in f.label_voxels]
        if counts[value] < max(2, _RARE_SHARE * len(labelled)) and len(labelled) > 1:
            what = f"{names[value]} is in {counts[value]} of {len(labelled)} labelled cases"
            yield Finding("odd", "labels", what, "too rare to be learned well; add cases or merge it")
        elif np.median(sizes) < _FEW_VOXELS:
            what = f"{names[value]} has {np.median(sizes):g} voxels in a typical case"
            yield Finding("odd", "labels", what, "too small to survive a coarse grid; merge it or keep the grid fine")


def faces(facts: Sequence[CaseFacts]) -> Iterator[Finding]:
    """Whether heads still have their faces, by a rule of thumb."""
    judged = {f.case_id: max(f.face.values()) for f in facts if f.face}
    if not judged:
        yield Finding("ok", "faces", "not judged: no image shows a whole head in front of air")
        return
    how = "the front lower part of the head's box is filled by"
    seen = [case_id for case_id, share in judged.items() if share >= _FACE]
    if seen:
        most = max(judged.values())
        yield Finding(
            "odd",
            "faces",
            f"{len(seen)} of {len(judged)} heads probably show a face ({some(seen)}): {how} up to {most:.0%},"
            f" while brains alone and defaced heads stay below {_FACE:.0%}",
            "deface or skull-strip before sharing anything made from them; look to be sure",
        )
        return
    most = max(judged.values())
    yield Finding("ok", "faces", f"probably none in {len(judged)} heads: {how} at most {most:.0%}")
