import random
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medgen.cohort.case import Case, LabelFile, Source
from medgen.cohort.splits import assign, folds, within
from medgen.cohort.splits import given as folds_given
from medgen.errors import InputError


def case(i, subject=None, split=None, label=True, **covariates):
    files = (LabelFile(Source(Path("l.nii"))),) if label else ()
    return Case(f"c{i:03d}", subject or f"s{i:03d}", {}, files, None, covariates, split)


@given(st.integers(1, 30), st.integers(1, 3), st.floats(0.01, 0.99), st.integers(0, 5))
def test_subjects_stay_whole_and_validation_is_never_empty(subjects, sessions, share, seed):
    cases = [case(i, f"s{i % subjects}") for i in range(subjects * sessions)]
    sides = assign(cases, validation=share, seed=seed)
    by_subject = {}
    for c in cases:
        by_subject.setdefault(c.subject_id, set()).add(sides[c.case_id])
    assert all(len(v) == 1 for v in by_subject.values())
    n_val = sum(v == {"val"} for v in by_subject.values())
    assert n_val == (0 if subjects == 1 else min(max(1, round(share * subjects)), subjects - 1))


def test_the_order_of_the_cases_does_not_matter_and_the_seed_does():
    cases = [case(i, age=float(i % 17), sex="FM"[i % 2]) for i in range(40)]
    shuffled = random.Random(0).sample(cases, len(cases))
    assert assign(cases, seed=1) == assign(shuffled, seed=1) != assign(cases, seed=2)
    assert folds(cases, 4, 1) == folds(shuffled, 4, 1)


def test_fixed_sides_are_kept_and_a_subjects_other_cases_follow():
    cases = [case(i, split="test") for i in range(5)] + [case(i, split="train") for i in range(5, 9)]
    cases += [case(i) for i in range(9, 20)] + [case(20, "s000")]
    sides = assign(cases)
    assert {sides[f"c{i:03d}"] for i in [*range(5), 20]} == {"test"}
    assert {sides[f"c{i:03d}"] for i in range(5, 9)} == {"train"}
    assert sum(v == "val" for v in sides.values()) == 3
    given_val = [case(0, split="val"), *(case(i, split="train") for i in range(1, 20))]
    assert [k for k, v in assign(given_val).items() if v == "val"] == ["c000"]


def test_validation_takes_from_train_only_where_all_is_fixed_to_train():
    sides = assign([case(i, split="train") for i in range(10)])
    assert sorted(sides.values()).count("val") == 2
    assert assign([case(0, split="test"), case(1)]) == {"c000": "test", "c001": "train"}
    assert assign([]) == {}


def test_both_sides_see_every_stratum():
    cases = [case(i, label=i % 4 == 0, age=float(i), sex="FM"[i // 40]) for i in range(80)]
    for seed in range(5):
        val = [c for c in cases if assign(cases, seed=seed)[c.case_id] == "val"]
        assert 3 <= sum(c.has_label for c in val) <= 5
        assert 6 <= sum(c.covariates["sex"] == "F" for c in val) <= 10


@pytest.mark.parametrize("share", [0, 1, -0.2, float("nan")])
def test_shares_that_make_no_sense(share):
    with pytest.raises(InputError, match="between 0 and 1"):
        assign([case(0)], validation=share)


def test_contradictions_are_named():
    with pytest.raises(InputError, match="subject 'a' is in the splits test and train"):
        assign([case(0, "a", "test"), case(1, "a", "train")])
    with pytest.raises(InputError, match="'holdout'; medgen knows train, val, test"):
        assign([case(0, "a", "holdout")])


@given(st.integers(2, 25), st.integers(2, 6), st.integers(0, 3))
def test_each_subject_validates_in_exactly_one_fold(n, k, seed):
    cases = [case(i, f"s{i // 2}") for i in range(2 * n)] + [case(99, "t", "test")]
    if k > n:
        with pytest.raises(InputError, match="folds need"):
            folds(cases, k, seed)
        return
    sides = folds(cases, k, seed)
    sizes = [sum(v == "val" for v in side.values()) // 2 for side in sides]
    assert sum(sizes) == n and max(sizes) - min(sizes) <= 1
    for i in range(n):
        per_fold = [(side[f"c{2 * i:03d}"], side[f"c{2 * i + 1:03d}"]) for side in sides]
        assert per_fold.count(("val", "val")) == 1 and per_fold.count(("train", "train")) == k - 1
    assert all(side["c099"] == "test" for side in sides)


def test_folds_that_a_file_gives():
    cases = [case(i, f"s{i // 2}") for i in range(8)]
    said = [{"train": ["c000", "c001", "c004"], "val": ["c002"]}, {"train": ["c002"], "val": ["c000"]}]
    first, second = folds_given(cases, said, Path("f.json"))
    assert [k for k, v in first.items() if v == "val"] == ["c002"] and first["c003"] == "test"
    assert [k for k, v in second.items() if v != "test"] == ["c000", "c002"]
    for wrong, word in (
        (said[:1], "at least 2"),
        ([said[0], {"train": ["c009"], "val": ["c000"]}], "'c009'"),
        ([said[0], {"train": ["c000"], "val": []}], "fold 1 needs"),
        ([said[0], {"train": ["c000"], "val": ["c001"]}], "'s0' on both sides"),
    ):
        with pytest.raises(InputError, match=word):
            folds_given(cases, wrong, Path("f.json"))


def test_what_validates_a_fold_has_no_part_in_its_model():
    cases = [case(i, f"s{i // 2}", "train" if i < 6 else None) for i in range(20)] + [case(99, "t", "test")]
    for outer in folds(cases, 5):
        sides = within(cases, outer, validation=0.25, seed=0)
        assert sides.keys() == outer.keys()
        for name, side in outer.items():
            assert (sides[name] in ("train", "val")) == (side == "train")
        assert sum(v == "val" for v in sides.values()) == 4


@given(st.integers(2, 12), st.integers(1, 40), st.floats(0.05, 0.95), st.integers(0, 3))
def test_synthetic_cases_train_and_never_judge(real, made, share, seed):
    cases = [case(i) for i in range(real)] + [replace(case(100 + i), synthetic=True) for i in range(made)]
    sides = assign(cases, validation=share, seed=seed)
    assert {sides[c.case_id] for c in cases if c.synthetic} == {"train"}
    # They count for no share: as many real ones validate as without them.
    assert {i: s for i, s in sides.items() if i < "c100"} == assign(cases[:real], validation=share, seed=seed)
    for fold in folds(cases, 2, seed):
        assert {fold[c.case_id] for c in cases if c.synthetic} == {"train"}


def test_synthetic_cases_that_a_file_holds_out_are_refused():
    cases = [case(0), case(1), replace(case(2, split="val"), synthetic=True)]
    with pytest.raises(InputError, match="synthetic and is in the split val; put it into train"):
        assign(cases)
    fold = {"train": ["c000", "c001"], "val": ["c002"]}
    with pytest.raises(InputError, match="validates on the synthetic case 'c002'"):
        folds_given([case(0), case(1), replace(case(2), synthetic=True)], [fold, fold], Path("splits.json"))
    alone = [replace(case(0), synthetic=True)]
    assert assign(alone) == {"c000": "train"}
