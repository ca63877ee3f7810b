"""Redrawing: the attempts of a sample are its own, whatever shard, batch or run they happen in."""

import json
import math
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from typer.testing import CliRunner

import medgen
from medgen.cohort.requests import plan
from medgen.errors import BoundError, InputError
from medgen.generation.accept import Acceptance, Tally
from medgen.generation.dataset import Shard, generate
from medgen.generation.gates.panel import HELD_OUT, Gates, Judgement
from medgen.generation.gates.seam import Verdict
from medgen.generation.gates.setting import Setting
from medgen.generation.generator import Generator


@pytest.fixture(scope="module")
def generator(tiny_run):
    return Generator.load(tiny_run / "model", device="cpu")


def picky(share=0.5, attempts=6, most=1.0):
    """Rejects about a share of the draws, by a figure of the draw alone."""

    def judge(seen):
        score = (float(np.abs(seen.latent.numpy()).sum()) * 10) % 1.0
        return Verdict({"luck": round(score, 4)}, {"luck": "no luck"} if score < share else {})

    return Gates(Setting(attempts=attempts, most=most), {"picky": judge}, {"other": "it is not there"})


def make(generator, out, n=6, **options):
    return generate(generator, out, n, plan(generator.schema, generator.model.joint), seed=5, **options)


def arrays(folder):
    return {p.name: np.asarray(nib.load(p).dataobj) for p in sorted(folder.rglob("*.nii.gz"))}


def same(a, b):
    assert a.keys() == b.keys() and a
    return all(np.array_equal(a[k], b[k]) for k in a)


def sidecars(folder):
    return {p.name: json.loads(p.read_text()) for p in sorted(folder.rglob("sub-*_T1w.json"))}


@pytest.fixture(scope="module")
def whole(generator, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole")
    return out, make(generator, out, gates=picky())


def test_rejected_draws_are_redrawn_and_logged(generator, whole):
    out, outcome = whole
    attempts = [s["attempt"] for s in sidecars(out).values()]
    assert any(attempts), "the seed of this test rejects some"
    for s in sidecars(out).values():
        told = s["gates"]
        assert [r["attempt"] for r in told["rejected"]] == list(range(s["attempt"]))
        assert all(r["faults"] == {"picky": {"luck": "no luck"}} for r in told["rejected"])
        assert told["scores"]["picky"]["luck"] >= 0.5 and told["silent"] == {"other": "it is not there"}
    a = outcome.acceptance
    assert a.accepted == len(attempts) == 6 - a.left_out
    assert a.draws == sum(attempts) + len(attempts) + 6 * a.left_out
    report = json.loads((out / "medgen_gates" / "acceptance.json").read_text())
    assert report == a.to_json() and report["gates"]["picky"]["rejected"] == a.draws - a.accepted
    assert "medgen_gates/" in (out / ".bidsignore").read_text()


def test_a_redraw_changes_the_noise_alone(generator, whole):
    out, _ = whole
    p = plan(generator.schema, generator.model.joint)
    for s in sidecars(out).values():
        row = p.row(s["index"], 5)
        assert s["drawn"] == {n: v for n, v in row.values.items() if n not in row.asked}
    first = make_one(generator, 0)
    again = make_one(generator, 1)
    assert first.sidecar["geometry_record"] == again.sidecar["geometry_record"]
    assert not np.array_equal(first.images["T1w"].data, again.images["T1w"].data)


def make_one(generator, attempt):
    from medgen.sampling.noise import Key

    row = plan(generator.schema, generator.model.joint).row(0, 5)
    return generator.draw([row], [Key(5, 0, attempt)])[0]


def test_shards_and_batches_agree_with_the_whole(generator, whole, tmp_path):
    out, _ = whole
    for i in (2, 1, 3):
        make(generator, tmp_path / "shards", gates=picky(), shard=Shard(i, 3))
    assert same(arrays(tmp_path / "shards"), arrays(out))
    name = Path("medgen_gates") / "acceptance.json"
    assert (tmp_path / "shards" / name).read_bytes() == (out / name).read_bytes()


def test_a_batch_redraws_the_rejected_only(generator, tmp_path, monkeypatch):
    drawn = []
    drafts = Generator.drafts

    def counted(self, rows, keys):
        drawn.extend((k.index, k.attempt) for k in keys)
        return drafts(self, rows, keys)

    monkeypatch.setattr(Generator, "drafts", counted)
    batched = Generator(generator.model, replace(generator.drawing, batch=6))
    outcome = make(batched, tmp_path, gates=picky())
    assert len(set(drawn)) == len(drawn) == outcome.acceptance.draws
    for s in sidecars(tmp_path).values():
        assert {(s["index"], a) for a in range(s["attempt"] + 1)} == {d for d in drawn if d[0] == s["index"]}


def test_a_rerun_draws_nothing_again_not_even_what_was_left_out(generator, tmp_path, monkeypatch):
    first = make(generator, tmp_path, gates=picky(0.7, attempts=2))
    assert first.acceptance.left_out, "the seed of this test leaves some out"
    monkeypatch.setattr(Generator, "drafts", lambda *_: pytest.fail("nothing is left to draw"))
    again = make(generator, tmp_path, gates=picky(0.7, attempts=2))
    assert (again.found, again.made) == (first.made, 0) and again.acceptance == first.acceptance
    lines = again.acceptance.lines()
    assert f"{first.acceptance.left_out} samples are left out" in lines[1] and "did not judge" in lines[2]
    with pytest.raises(InputError, match="another gate setting"):
        make(generator, tmp_path, gates=picky(0.7, attempts=3))
    with pytest.raises(InputError, match="another gate setting"):
        make(generator, tmp_path)


def test_gates_that_reject_most_draws_stop_the_run_with_advice(generator, tmp_path):
    with pytest.raises(
        BoundError, match=r"rejected 20 of 20 draws, most of them by 'picky' \(20\); .*--gate 'picky: off'"
    ):
        make(generator, tmp_path / "many", n=6, gates=picky(1.0, attempts=8, most=0.8))
    with pytest.raises(BoundError, match="rejected 3 of 3"):
        make(generator, tmp_path / "few", n=1, gates=picky(1.0, attempts=3, most=0.8))
    with pytest.raises(BoundError, match="rejected 3 of 3"):  # nothing is left to draw, and nothing was made
        make(generator, tmp_path / "few", n=1, gates=picky(1.0, attempts=3, most=0.8))
    assert make(generator, tmp_path / "few", n=1, gates=picky(1.0, attempts=3, most=1.0)).acceptance.left_out == 1
    assert not list(tmp_path.rglob("*.nii.gz"))


def test_a_model_that_diverged_is_told_apart(generator, tmp_path, monkeypatch):
    decode = Generator._decode

    def lost(self, latents):
        images, probabilities = decode(self, latents)
        return np.full_like(images, math.nan), probabilities

    monkeypatch.setattr(Generator, "_decode", lost)
    with pytest.raises(BoundError, match=r"'finite'.*has diverged"):
        make(generator, tmp_path, n=1, gates=picky(0.0, attempts=2, most=0.5))


def test_a_tally_counts_a_draw_once_however_many_gates_reject_it():
    tally = Tally(0.5)
    for faults in ({"a": {"x": "."}, "b": {"y": "."}}, {}, {"a": {"x": "."}}):
        tally.add(Judgement({}, faults))
    assert (tally.draws, tally.rejected, dict(tally.by_gate)) == (3, 2, {"a": 2, "b": 1})
    assert Acceptance.of([], []).lines() == []


def test_the_model_folder_tells_plain_figures_and_how_real_cases_fare(tiny_run, generator):
    learnt = generator.model.spec.gates
    assert {"volumes", "topology", "consistency", "position", "intensity", "request", HELD_OUT} <= learnt.keys()
    assert learnt["volumes"]["cases"] == generator.model.spec.trained_on["cases"] == 6
    assert learnt["volumes"]["laws"]["Ventricles"]["n"] == 6
    assert learnt[HELD_OUT]["cases"] == 2
    text = (tiny_run / "model" / "model.json").read_text()
    assert "sub-" not in text and str(tiny_run) not in text
    assert generator.model.spec.sampling["gates"]["others"] is False, "the tiny experiment says none"


def test_gates_from_the_command_line(tiny_run, tmp_path):
    from medgen.cli import app

    command = ["generate", str(tiny_run / "model"), str(tmp_path / "out"), "--n", "2", "--device", "cpu"]
    words = ["--gate", "{request: {tolerance: 1000}}", "--gate", "{neighbour: {quantile: 0.0001}}", "--attempts", "2"]
    result = CliRunner().invoke(app, [*command, *words, "--where", "ventricles_ml=10..60"])
    assert result.exit_code == 0, result.output
    setting = [s["gate_setting"] for s in sidecars(tmp_path / "out").values()]
    assert setting[0]["attempts"] == 2 and set(setting[0]["kinds"]) == {"neighbour", "request"}
    assert "draws accepted" in result.output
    assert len(medgen.datalist(tmp_path / "out")) == len(setting)
