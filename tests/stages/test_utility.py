"""The utility of a tiny experiment, end to end: views, caching, what must not leak, the command."""

import copy
import json
from dataclasses import replace

import nibabel
import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from medgen import cli, config, pipeline
from medgen.cohort.phantom import write_phantom
from medgen.errors import BoundError, InputError
from medgen.evaluation.utility import run as trial_run
from medgen.files import read_json
from medgen.stages import data, utility_size, views
from medgen.stages.run import Run
from medgen.stages.utility_export import combine_size
from medgen.store.prepared import Prepared
from tests.tiny import TINY
from tests.validators import check_nnunet


def experiment(root, **section):
    raw = copy.deepcopy(TINY)
    raw["data"] = {"root": str(root), "validation": 0.25}
    for name in ("autoencoder", "diffusion"):
        raw[name]["training"] |= {"steps": 2, "warmup": 1, "validate_every": 2}
    raw["diffusion"]["memorisation"] = {"samples": 0}
    raw["generate"] |= {"steps": 2}
    small = {"widths": [4, 8], "patch": [8, 8, 8]}
    raw["utility"] = {"sizes": [2, "all"], "held_out": 0.25, "synthetic": 2, "steps": 2, "seeds": 1, "sweep": [0.25]}
    raw["utility"] |= {"segmenter": small, **section}
    return raw


def run(folder, raw):
    said = []
    cfg = config.build(copy.deepcopy(raw), "test")
    return pipeline.run_utility(cfg, folder=folder, on_progress=lambda *a: said.append(a)), said


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory):
    root = tmp_path_factory.mktemp("cohort") / "data"
    write_phantom(root, n=8, spacing_mm=8, seed=4, workers=1)
    return root


@pytest.fixture(scope="module")
def evaluated(phantoms, tmp_path_factory):
    folder = tmp_path_factory.mktemp("utility") / "run"
    return folder, *run(folder, experiment(phantoms))


def views_of(root, **section):
    r = Run(config.build(experiment(root, **section), "test"), root.parent / "nowhere", lambda *_: None)
    return views.views(r, data.read_columns(r))


def test_views_are_nested_and_hide_what_they_should(phantoms):
    apart, seen = views_of(phantoms, sizes=["all", 4, 2])
    assert len(apart) == 2 and list(seen) == [2, 4, "all"]
    two, four, every = (set(view.labelled) for view in seen.values())
    assert two < four < every and len(every) == 6 and not every & apart
    for size, view in seen.items():
        sides = view.fold.sides
        assert all(sides[i] == "test" for i in apart) and "val" in sides.values()
        assert set(view.labelled) | set(view.unlabelled) | apart == set(sides)
        assert view.fold.hidden == (set() if size == "all" else set(sides) - set(view.labelled))
    assert all(seen[2].fold.sides[i] == "train" for i in two), "weights are chosen by images without a visible label"
    again = views_of(phantoms, sizes=[2])[1][2]
    assert again.labelled == seen[2].labelled, "which cases does not depend on the other sizes"
    with pytest.raises(InputError, match="asks for 7 labelled cases, but the cohort has 6"):
        views_of(phantoms, sizes=[7])


def test_all_arms_are_trained_alike_and_reported(evaluated):
    folder, summary, _ = evaluated
    found = {(a["size"], a["arm"], a["share"]) for a in summary["arms"]}
    plain = ("real", "classical", "randomised", "synthetic_only")
    wanted = {(size, arm, None) for size in (2, "all") for arm in plain}
    wanted |= {(2, "synthetic", 0.5), (2, "synthetic", 0.25), (2, "pseudo", 0.5), ("all", "synthetic", 0.5)}
    assert found == wanted
    assert summary["skipped"] == [{"size": "all", "arm": "pseudo", "why": "no unlabelled image at this size"}]
    assert summary["primary"]["difference"] is not None and not summary["failures"]
    results = [read_json(path) for path in (folder / "utility" / "arms").glob("*/result.json")]
    assert {r["steps"] for r in results} == {2} and len(results) == len(wanted)
    own = {(r["trial"]["size"], r["trial"]["arm"]): r["cases_trained_on"] for r in results}
    assert own[2, "classical"] == {"own": 2, "extra": 0} and own[2, "synthetic"] == {"own": 2, "extra": 2}
    assert own[2, "pseudo"] == {"own": 2, "extra": 4} and own["all", "synthetic_only"] == {"own": 2, "extra": 0}
    there = {p.name for p in (folder / "utility").iterdir()}
    assert there >= {"utility.json", "utility.csv", "utility.md", "learning_curves.png"}
    ids = [c.case_id for c in Prepared.open(folder / "prepared").cases]
    text = "".join((folder / "utility" / name).read_text() for name in ("utility.json", "utility.csv", "utility.md"))
    assert not any(i in text for i in ids), "no case of the cohort is named"


def test_a_generator_sees_the_labels_of_its_size_alone(evaluated):
    folder, _, _ = evaluated
    view = Prepared.open(folder / "utility" / "size-2" / "prepared")
    labelled = [case for case in view.cases if case.has_label]
    assert len(labelled) == 2 and all(case.split == "train" for case in labelled)
    volumes = [name for name in view.schema.names if name.endswith("_ml")]
    for case in view.cases:
        known = [case.covariates[name] is not None for name in volumes]
        assert all(known) if case.has_label else not any(known)
    assert sum(case.split == "test" for case in view.cases) == 2
    for name in volumes:
        own = [case.covariates[name] for case in labelled]
        assert (view.schema[name].minimum, view.schema[name].maximum) == (min(own), max(own))


def test_labels_that_are_hidden_or_held_out_change_nothing(evaluated, phantoms, tmp_path):
    """Poison: garbage in place of every label but the two that may be seen."""
    import shutil

    folder, _, _ = evaluated
    _, seen = views_of(phantoms)
    root = tmp_path / "data"
    shutil.copytree(phantoms, root)
    visible = {i.removeprefix("sub-") for i in seen[2].labelled}
    poisoned = 0
    for path in root.rglob("*dseg.nii.gz"):
        if not any(i in path.name for i in visible):
            image = nibabel.load(path)
            ids = np.asarray(image.dataobj)
            garbage = np.where(ids > 0, ids.max() + 1 - ids, 0)  # the same voxels, other ids
            nibabel.save(nibabel.Nifti1Image(garbage.astype(ids.dtype), image.affine, image.header), path)
            poisoned += 1
    assert poisoned == 6
    run(tmp_path / "run", experiment(root, sizes=[2], arms=["classical", "pseudo", "synthetic"], sweep=[]))
    for name in ("codec.safetensors", "network.safetensors"):
        parts = "utility", "size-2", "model", name
        assert folder.joinpath(*parts).read_bytes() == (tmp_path / "run").joinpath(*parts).read_bytes()
    weights = sorted((tmp_path / "run" / "utility" / "arms").glob("*/segmenter/segmenter.safetensors"))
    assert len(weights) == 3
    for path in weights:
        assert path.read_bytes() == (folder / path.relative_to(tmp_path / "run")).read_bytes()


def test_a_size_is_exported_with_a_fold_for_each_arm(evaluated, phantoms, tmp_path, monkeypatch):
    folder, _, _ = evaluated
    found = combine_size(folder, "2", tmp_path / "Dataset001_two")
    assert (found.real, found.synthetic) == (4, 2), "two labelled, two held out"
    real, both = read_json(tmp_path / "Dataset001_two" / "splits_final.json")
    apart, seen = views_of(phantoms)
    assert set(real["train"]) == set(seen[2].labelled) and set(real["val"]) == set(both["val"]) == apart
    assert set(both["train"]) - set(real["train"]) == {"syn000000", "syn000001"}
    check_nnunet(tmp_path / "Dataset001_two", monkeypatch)
    with pytest.raises(InputError, match="no synthetic cases for 7 labelled ones"):
        combine_size(folder, "7", tmp_path / "x")


def test_a_second_run_does_nothing_and_a_killed_one_goes_on(evaluated, phantoms, monkeypatch):
    folder, summary, _ = evaluated
    with monkeypatch.context() as patch:
        patch.setattr(trial_run.training, "train", lambda *a, **k: pytest.fail("trained again"))
        again, said = run(folder, experiment(phantoms))
        assert again == summary
        assert {remark for stage, _, _, remark in said if stage.startswith("size-2 d")} == {"unchanged"}
        # Another comparison and other strata are other sums over the same results.
        other, _ = run(folder, experiment(phantoms, primary={"arm": "real"}, strata="sex", arms=["real", "classical"]))
    assert other["primary"]["arm"] == "real" and {s.split()[0] for s in other["strata"]} == {"sex"}
    changed = experiment(phantoms, arms=["real", "classical"], sizes=[2], steps=3)
    real = trial_run.measure.measure_cases
    with monkeypatch.context() as patch:
        calls = []

        def killed(*arguments):
            calls.append(1)
            if len(calls) == 2:
                raise KeyboardInterrupt
            return real(*arguments)

        patch.setattr(trial_run.measure, "measure_cases", killed)
        with pytest.raises(KeyboardInterrupt):
            run(folder, changed)
    first = folder / "utility" / "arms" / "size-2_real_seed-0" / "result.json"
    when = first.stat().st_mtime_ns
    assert read_json(first)["steps"] == 3
    done, _ = run(folder, changed)
    assert first.stat().st_mtime_ns == when and len(done["arms"]) == 2 and done["steps"] == 3


def test_a_generator_whose_gates_reject_everything_is_told_beside_the_others(evaluated, phantoms, monkeypatch):
    folder, _, _ = evaluated

    def failing(self, n, held_out):
        raise BoundError("the gates reject most draws")

    monkeypatch.setattr(utility_size.SizeRun, "generator", failing)
    found, _ = run(folder, experiment(phantoms, arms=["classical", "synthetic"], sizes=[2], sweep=[], steps=3))
    assert found["failures"] == ["size 2: the gates reject most draws"]
    assert found["primary"]["difference"] is None and [a["arm"] for a in found["arms"]] == ["classical"]


def test_the_command(evaluated, phantoms, tmp_path):
    folder, _, _ = evaluated
    path = tmp_path / "e.yaml"
    path.write_text(yaml.safe_dump(experiment(phantoms, steps=3)))
    words = ["utility", str(path), "--out", str(folder), "--arms", "real,classical", "--sizes", "2"]
    done = CliRunner().invoke(cli.app, [*words, "--json", str(tmp_path / "found.json")])
    assert done.exit_code == 0, done.output
    found = json.loads((tmp_path / "found.json").read_text())
    assert {a["arm"] for a in found["arms"]} == {"real", "classical"} and found["primary"]["size"] == 2
    assert "Primary comparison" in done.output and "1 seeds are few" in done.output
    for more, sentence in (
        (["--arms", "sinthetic"], "did you mean 'synthetic'"),
        (["--sizes", "2,40"], "asks for 40 labelled cases"),
        (["--sizes", "few"], "utility.sizes"),
        (["--set", "utility.step=3"], "did you mean 'steps'"),
        (["--set", "data.folds=2"], "remove data.folds"),
        (["--set", "utility.primary.against=synthetic"], "compares 'synthetic' with itself"),
    ):
        failed = CliRunner().invoke(cli.app, [*words[:4], *more])
        assert isinstance(failed.exception, InputError) and sentence in str(failed.exception), more


def test_a_cohort_that_holds_synthetic_cases_is_refused(phantoms):
    r = Run(config.build(experiment(phantoms), "test"), phantoms, lambda *_: None)
    cohort = data.read_columns(r)
    mixed = cohort.with_cases((replace(cohort.cases[0], synthetic=True), *cohort.cases[1:]))
    with pytest.raises(InputError, match="holds synthetic cases"):
        views.views(r, mixed)


def test_a_cohort_without_labels_is_refused(tmp_path):
    for i in range(4):
        folder = tmp_path / "data" / f"sub-{i}" / "anat"
        folder.mkdir(parents=True)
        nibabel.save(nibabel.Nifti1Image(np.random.rand(8, 8, 8), np.eye(4)), folder / f"sub-{i}_T1w.nii.gz")
    (tmp_path / "data" / "dataset_description.json").write_text('{"Name": "x", "BIDSVersion": "1.9.0"}')
    with pytest.raises(InputError, match="has no label"):
        run(tmp_path / "run", experiment(tmp_path / "data"))
