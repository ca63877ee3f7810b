"""Figures, intervals and tables of the utility, on results written by hand."""

import json

import numpy as np
import pytest
from PIL import Image

from medgen.errors import InputError
from medgen.evaluation.alike import pairs_alike
from medgen.evaluation.utility import table
from medgen.evaluation.utility.compare import METRICS, difference, scores, two_way_bootstrap
from medgen.evaluation.utility.measure import hd95_mm, measure_cases
from medgen.evaluation.utility.plot import write_plot
from medgen.evaluation.utility.samples import copy_rates
from medgen.evaluation.utility.strata import strata_of
from medgen.evaluation.utility.summary import About, per_case, summarise
from medgen.evaluation.utility.trial import Trial, trials
from medgen.store.prepared import Prepared

LABELS = ("head", "tail")


def test_what_is_made_up_in_a_case_without_the_structure_counts_in_its_volume(tiny_run):
    store = Prepared.open(tiny_run / "prepared")
    label = np.asarray(store.label(0))
    absent = np.where(label == 4, 3, label)

    class Bare:
        folder, cases, label_names = store.folder, store.cases, store.label_names
        spacing_mm = store.spacing_mm

        def label(self, i):
            return absent

        def image(self, i):
            return store.image(i)

    class Finds:
        def __init__(self, found):
            self.predict = lambda image: found

    (right,), (wrong,) = (measure_cases(Bare(), [0], Finds(found)) for found in (absent, label))
    for row in (right, wrong):
        assert row["dice"]["Ventricles"] is None and row["hd95_mm"]["Ventricles"] is None
    assert right["found_ml"]["Ventricles"] == 0 < wrong["found_ml"]["Ventricles"]
    assert right["dice"]["GM"] == 1.0 and wrong["true_ml"]["Ventricles"] == 0


def result(trial, dice, off=0.0):
    """A result whose Dice is ``dice`` (N, L)."""
    cases = [
        {
            "case": f"c{i}",
            "dice": dict(zip(LABELS, map(float, row), strict=True)),
            "hd95_mm": {"head": 2.0, "tail": None},
            "true_ml": {"head": 2.0, "tail": 1.0},
            "found_ml": {"head": 2.0 + off, "tail": 1.0 - off},
        }
        for i, row in enumerate(dice)
    ]
    return {"trial": {"seed": trial.seed}, "cases": cases}


@pytest.fixture(scope="module")
def evaluation():
    asked = trials(
        [2, "all"], ["real", "classical", "synthetic", "synthetic_only"], 3, share=0.5, synthetic=8, sweep_size=2,
        sweep=[0.25, 0.5], sweep_cases=[4],
    )  # fmt: skip
    rng = np.random.default_rng(0)
    hard, level = rng.uniform(-0.1, 0.1, (12, 2)), {"real": 0.6, "classical": 0.7, "synthetic": 0.75}
    results = {
        t: result(t, level.get(t.arm, 0.65) + hard + rng.normal(0, 0.01, (12, 2)), off=0.5 if t.arm == "real" else 0.1)
        for t in asked
    }
    about = About(
        name="hand made",
        labels=LABELS,
        subjects=tuple(f"s{i // 2}" for i in range(12)),
        strata=tuple("young" if i < 4 else "old" for i in range(12)),
        steps=10,
        counts={2: 2, "all": 30},
        primary=(2, "synthetic", "classical"),
        usual=(0.5, 8),
        generators={
            2: {"train": 20, "train_labelled": 2, "samples": 8, "codec_below": ["psnr"], "copies": copies(0.1)},
            "all": {"train": 20, "train_labelled": 18, "samples": 8, "codec_below": [], "copies": copies(0.0)},
        },
        skipped=[("all", "pseudo", "no unlabelled image at this size")],
    )
    return asked, results, about, summarise(results, about)


def copies(rate):
    return {"copies": rate, "held_out_copies": 0.05, "quantile": 0.05, "counts": rate <= 0.05}


def test_the_bootstrap_is_the_closed_form():
    """A mean of n independent cases and S seeds: variance of case means over n, plus that of seed means over S."""
    rng = np.random.default_rng(1)
    n, seeds = 400, 40
    case, seed = rng.normal(0, 1.0, n), rng.normal(0, 0.3, seeds)
    values = 5.0 + case[None] + seed[:, None]
    found = two_way_bootstrap(values, [str(i) for i in range(n)], resamples=4000)
    spread = np.sqrt(case.var() / n + seed.var() / seeds)
    assert found.value == pytest.approx(values.mean())
    assert found.high - found.low == pytest.approx(2 * 1.96 * spread, rel=0.06)
    # Cases of one subject stand or fall together: pairs of twins are half as many cases.
    twins = two_way_bootstrap(np.repeat(case, 2)[None], [str(i // 2) for i in range(2 * n)], resamples=4000)
    alone = two_way_bootstrap(case[None], [str(i) for i in range(n)], resamples=4000)
    assert twins.high - twins.low == pytest.approx(alone.high - alone.low, rel=0.06)
    constant = two_way_bootstrap(np.full((3, 5), 0.25), list("abcde"))
    assert (constant.low, constant.high) == pytest.approx((0.25, 0.25))
    holes = values.copy()
    holes[:, :10] = np.nan
    assert two_way_bootstrap(holes, [str(i) for i in range(n)]).value == pytest.approx(np.nanmean(holes))
    assert np.isnan(two_way_bootstrap(np.full((1, 2), np.nan), ["a", "b"]).value)


def test_a_difference_is_paired_by_case_and_seed():
    rng = np.random.default_rng(2)
    base = rng.uniform(0.3, 0.9, (3, 20, 2))
    ours = [result(Trial(5, "a", s), base[s] + 0.02) for s in (2, 0, 1)]
    theirs = [result(Trial(5, "b", s), base[s]) for s in range(3)]
    args = [str(i) for i in range(20)], (), LABELS
    found = difference(scores(ours, LABELS), scores(theirs, LABELS), *args)
    assert found["seeds"] == 3
    assert found["dice"] == pytest.approx({"value": 0.02, "low": 0.02, "high": 0.02}), "what both share cancels"
    fewer = difference(scores(ours[:2], LABELS), scores(theirs, LABELS), *args)
    assert fewer["seeds"] == 2 and fewer["dice"]["value"] == pytest.approx(0.02)


def test_surfaces():
    a, b = np.zeros((2, 20, 20, 20), bool)
    a[5:10, 5:15, 5:15] = True
    b[5:12, 5:15, 5:15] = True
    assert hd95_mm(a, a, (1, 1, 1)) == 0
    assert hd95_mm(a, b, (1.5, 1, 1)) == pytest.approx(3.0), "two voxels of 1.5 mm"
    assert hd95_mm(a, np.zeros_like(a), (1, 1, 2)) == pytest.approx(np.sqrt(20**2 + 20**2 + 40**2))
    assert np.isnan(hd95_mm(np.zeros_like(a), np.zeros_like(a), (1, 1, 1)))


def test_trials_have_no_repeats_and_sweeps_are_where_they_belong(evaluation):
    asked = evaluation[0]
    assert len(set(t.name for t in asked)) == len(asked) == 3 * (2 * 4 + 2)
    swept = {(t.share, t.synthetic) for t in asked if t.size == 2 and t.arm == "synthetic"}
    assert swept == {(0.5, 8), (0.25, 8), (0.5, 4)}
    assert {(t.share, t.synthetic) for t in asked if t.arm == "classical"} == {(None, None)}


def test_the_summary_says_what_was_put_in(evaluation):
    summary = evaluation[3]
    json.dumps(summary, allow_nan=False)
    found = summary["primary"]["difference"]
    assert found["dice"]["value"] == pytest.approx(0.05, abs=0.01) and found["dice"]["low"] > 0
    assert set(found["by_label"]) == set(LABELS) and set(found["by_stratum"]) == {"old", "young"}
    assert found["by_stratum"]["young"]["cases"] == 4
    by_arm = {(a["size"], a["arm"], a["share"], a["synthetic"]): a for a in summary["arms"]}
    assert len(by_arm) == 10, "all arms are reported"
    real = by_arm[2, "real", None, None]
    assert real["volume_error_ml"]["value"] == pytest.approx(0.5)
    assert real["volume_error_percent"]["value"] == pytest.approx((25 + 50) / 2)
    assert real["hd95_mm"]["value"] == pytest.approx(2.0), "undefined labels are left out"
    assert real["difference"]["dice"]["value"] == pytest.approx(-0.1, abs=0.01)
    assert by_arm[2, "classical", None, None]["difference"] is None
    assert by_arm[2, "synthetic_only", None, 8]["counts"] is False
    assert by_arm["all", "synthetic_only", None, 8]["counts"] is True
    assert all(by_arm[2, "real", None, None][m]["low"] is not None for m in METRICS)


def test_tables_and_plot(evaluation, tmp_path, capsys):
    _, results, about, summary = evaluation
    page = table.as_markdown(summary)
    assert "synthetic against classical at 2 labelled cases): Dice +0.05" in page and "above zero" in page
    assert "synthetic_only (does not count)" in page and "no unlabelled image" in page
    assert "10.0% | 5.0%" in page and "below its thresholds: psnr" in page
    assert page.count("| 2 |") >= 8 and "| 30 (all) |" in page
    table.print_table(summary)
    said = capsys.readouterr().out
    assert "Primary comparison" in said and all(a["arm"] in said for a in summary["arms"])
    write_plot(summary, tmp_path / "curves.png")
    picture = np.asarray(Image.open(tmp_path / "curves.png").convert("RGB"))
    assert picture.std() > 10 and [p.name for p in tmp_path.iterdir()] == ["curves.png"]
    frame = per_case(results, about)
    assert len(frame) == len(results) * 12 * 2 and set(frame["case"]) == set(range(12))
    missing = {t: r for t, r in results.items() if t.arm != "classical"}
    without = summarise(missing, about)
    assert "arm 'classical' was not trained" in table.verdict(without)
    one = summarise({t: r for t, r in results.items() if t.seed == 0}, about)
    assert any("1 seeds are few" in note for note in table.notes(one))


def test_strata_of_a_prepared_cohort(tiny_run):
    store = Prepared.open(tiny_run / "prepared")
    cases = list(range(len(store.cases)))
    ages = [float(c.covariates["age"]) for c in store.cases]
    found = strata_of(store, cases, "age")
    assert len(set(found)) == 3
    order = [found[i] for i in np.argsort(ages)]
    assert order == sorted(order, key=order.index), "cut along the column"
    assert set(strata_of(store, cases, "sex")) <= {"sex F", "sex M"}
    assert len(set(strata_of(store, cases[:3], "age"))) == 1
    with pytest.raises(InputError, match="did you mean 'age'"):
        strata_of(store, cases, "agee")


def test_samples_take_the_cohorts_ids_and_copies_are_found(tiny_run):
    from dataclasses import replace

    store = Prepared.open(tiny_run / "prepared")
    cases = list(range(len(store.cases)))
    renumbered = replace(store, label_values=(0, *range(11, 10 + len(store.label_values))))
    pairs = pairs_alike(store, renumbered)
    assert len(pairs) == len(cases) and all(np.array_equal(label, store.label(i)) for i, (_, label) in enumerate(pairs))
    strange = replace(renumbered, label_names=(*store.label_names[:-1], "other"))
    with pytest.raises(InputError, match="has a label 'other', the cohort has"):
        pairs_alike(store, strange)
    own = copy_rates(store, cases[:6], cases[6:], [np.asarray(store.image(i)) for i in cases[:3]])
    assert own["copies"] == 1.0 and own["counts"] is False
    new = copy_rates(store, cases[:6], cases[6:], [np.full(store.image(0).shape, 0.9)])
    assert new["copies"] == 0.0 and new["counts"] is True
    assert copy_rates(store, cases[:2], cases[6:], [])["counts"] is None
