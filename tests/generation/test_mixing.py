import pytest

import medgen
from medgen.errors import InputError
from medgen.generation.mixing import MixedSampler, stratum_of


def rows(origin, *spec):
    """Rows from (sex, age) pairs."""
    return [{"case_id": f"{origin}{i}", "sex": s, "age": float(a)} for i, (s, a) in enumerate(spec)]


REAL = rows("r", ("F", 61), ("F", 68), ("M", 61), ("M", 75), ("M", 79))
MADE = rows("s", *(("F", 60 + i) for i in range(10)), *(("M", 70 + i % 10) for i in range(6)))


def names(order):
    return [[*REAL, *MADE][i]["case_id"] for i in order]


def test_an_epoch_has_every_real_case_once_and_synthetic_ones_by_ratio():
    sampler = MixedSampler(REAL, MADE, ratio=1.5, seed=3)
    epochs = [names(sampler) for _ in range(4)]
    for epoch in epochs:
        assert len(epoch) == len(sampler) == 5 + 8
        assert sorted(i for i in epoch if i[0] == "r") == [f"r{k}" for k in range(5)]
    assert epochs[0] != epochs[1]
    two = sorted(i for epoch in epochs[:2] for i in epoch if i[0] == "s")
    assert two == sorted(row["case_id"] for row in MADE), "none comes twice before all have come"
    again = MixedSampler(REAL, MADE, ratio=1.5, seed=3)
    again.epoch = 2
    assert names(again) == epochs[2], "an epoch is a function of its number"


def test_the_ratio_holds_in_every_stratum():
    sampler = MixedSampler(REAL, MADE, ratio=2.0, by="sex")
    epoch = names(sampler)
    women = {row["case_id"] for row in MADE if row["sex"] == "F"}
    assert sum(i in women for i in epoch) == 4 and sum(i[0] == "s" and i not in women for i in epoch) == 6
    only = MixedSampler(REAL, MADE, ratio={"sex F": 3}, by="sex")
    assert only.quota == {"sex F": 6} and {i for i in names(only) if i[0] == "s"} <= women


def test_balance_fills_strata_up():
    sampler = MixedSampler(REAL, MADE, ratio="balance", by="sex")
    assert sampler.quota == {"sex F": 1}
    rare = MixedSampler(REAL, [*MADE, *rows("x", ("F", 95))], ratio="balance", by="age:10")
    assert rare.quota == {"age 70..80": 1, "age 90..100": 3}, "where there are no real cases too"


def test_shares_of_a_case_are_kept():
    many = rows("r", *(("F", a) for a in range(20, 80)))
    made = rows("s", *(("F", a) for a in range(20, 80)))
    assert sum(MixedSampler(many, made, ratio=0.25, by="age:10").quota.values()) == 15
    assert MixedSampler(REAL, MADE, ratio=0).quota == {}


def test_three_lines_of_a_monai_training(tmp_path):
    import torch
    from monai.data import CacheDataset, DataLoader

    def transform(row):
        return {**row, "image": torch.tensor([row["age"]])}

    for dataset in (None, CacheDataset):
        how = {} if dataset is None else {"dataset": dataset}
        data = medgen.MixedDataset(REAL, MADE, transform, ratio=1, **how)
        loader = DataLoader(data, batch_size=2, sampler=data.sampler)
        seen = [i for _ in range(2) for batch in loader for i in batch["case_id"]]
        assert len(seen) == 20 and len(data) == 21
    listed = medgen.mixed_datalist(REAL, MADE, ratio=1)
    assert len(listed) == 10 and [r["case_id"] for r in listed[:5]] == ["r0", "r1", "r2", "r3", "r4"]
    assert listed != medgen.mixed_datalist(REAL, MADE, ratio=1, epoch=1)


@pytest.mark.parametrize(
    ("how", "word"),
    [
        ({"by": "age"}, "needs the width"),
        ({"by": "sex:10"}, "takes no width"),
        ({"by": "age:0"}, "not 'age:0'"),
        ({"by": "weight:5"}, "no value of 'weight'"),
        ({"ratio": -1}, "0 or more"),
        ({"ratio": "much"}, "not 'much'"),
        ({"ratio": "balance"}, "needs the strata"),
        ({"ratio": {"sex X": 1}, "by": "sex"}, "'sex X'"),
        ({"by": "age:5,sex"}, "no synthetic case lies in the stratum age 60..65, sex M"),
    ],
)
def test_mixes_that_make_no_sense(how, word):
    with pytest.raises(InputError, match=word):
        MixedSampler(REAL, MADE, **how)
    with pytest.raises(InputError, match="no real case"):
        MixedSampler([], MADE)


def test_names_of_strata():
    assert stratum_of("age:10, sex")({"age": -3.0, "sex": "F"}) == "age -10..0, sex F"
    assert stratum_of("")({}) == "all"
