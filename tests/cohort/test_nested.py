"""Held-out cases and nested subsets of labelled ones."""

import numpy as np
import pytest

from medgen.cohort.case import Case, LabelFile, Source
from medgen.cohort.splits import nested, set_apart
from medgen.errors import InputError


def case(i, label=True, split=None, subject=None, **covariates):
    files = (LabelFile(Source("label.nii.gz")),) if label else ()
    return Case(f"c{i:03d}", subject or f"s{i:03d}", {}, files, None, covariates, split)


def test_every_beginning_is_spread_over_the_strata():
    cases = [case(i, age=float(i)) for i in range(64)]
    for seed in range(3):
        order = nested(cases, seed)
        assert sorted(order) == [c.case_id for c in cases]
        for n in (4, 8, 16):
            ages = sorted(int(name[1:]) for name in order[:n])
            assert [a // (64 // n) for a in ages] == list(range(n)), "one of each run of neighbours"
        five = np.array([int(name[1:]) for name in order[:5]])
        assert np.ptp(five) >= 32
    assert nested(cases, 0) != nested(cases, 1)
    assert nested(cases, 0) == nested(cases[::-1], 0), "whatever the order of the cases"


def test_levels_take_turns_and_subjects_stay_together():
    cases = [case(i, sex="F" if i % 4 else "M", subject=f"s{i // 2}") for i in range(24)]
    order = nested(cases, 2)
    subjects = [next(c.subject_id for c in cases if c.case_id == name) for name in order]
    assert all(a == b for a, b in zip(subjects[::2], subjects[1::2], strict=True))


def test_the_cohorts_own_test_side_is_kept_else_labelled_subjects_are_drawn():
    fixed = [case(i, split="test" if i < 3 else "train") for i in range(9)]
    assert set_apart(fixed, 0.2) == {"c000", "c001", "c002"}
    # A test side without labels cannot test, and is kept out of training all the same.
    blind = [case(i, label=i >= 3, split="test" if i < 3 else None) for i in range(13)]
    found = set_apart(blind, 0.2)
    assert {"c000", "c001", "c002"} < found and len(found) == 5
    some = [case(i, label=i % 2 == 0) for i in range(20)]
    drawn = set_apart(some, 0.3, seed=1)
    assert len(drawn) == 3 and all(int(name[1:]) % 2 == 0 for name in drawn), "only labelled cases can test"
    twins = [case(i, subject=f"s{i // 2}") for i in range(10)]
    assert len(set_apart(twins, 0.2)) == 2, "a subject is set apart as a whole"
    with pytest.raises(InputError, match="at least two labelled subjects"):
        set_apart([case(0), case(1, label=False)], 0.2)
