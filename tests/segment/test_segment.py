import json

import numpy as np
import pytest
import torch

from medgen.errors import InputError
from medgen.segment.network import Architecture, bottleneck, build
from medgen.segment.pairs import pairs_of
from medgen.segment.segmenter import Segmenter
from medgen.segment.train import CLASSICAL, train
from medgen.store.patches import PatchSampler
from medgen.store.prepared import Prepared

EXTENT = (16, 20, 16)
SMALL = {"labels": 3, "widths": (4, 8), "batch": 2, "device": "cpu", "precision": "float32"}


def balls(n, seed=0):
    """A bright and a dark ball on a grey ground, with noise."""
    rng = np.random.default_rng(seed)
    x = np.stack(np.meshgrid(*(np.arange(e) for e in EXTENT), indexing="ij"))
    pairs = []
    for _ in range(n):
        label = np.zeros(EXTENT, np.uint8)
        for i, middle in ((1, 5), (2, 13)):
            centre = np.array([8, middle, 8]) + rng.uniform(-1.5, 1.5, 3)
            label[((x - centre.reshape(3, 1, 1, 1)) ** 2).sum(0) < rng.uniform(2.5, 4.5) ** 2] = i
        image = np.array([0.0, 0.7, -0.7])[label] + rng.normal(0, 0.1, EXTENT)
        pairs.append((image[None].clip(-1, 1).astype(np.float16), label))
    return pairs


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("seg") / "balls"
    return folder, train(balls(8), folder, held_out=balls(2, 1), steps=150, learning_rate=2e-2, **SMALL)


def test_it_learns_and_measures(trained):
    _, segmenter = trained
    new = balls(6, seed=7)
    assert np.mean([segmenter.dice(*pair) for pair in new]) > 0.8
    true = np.array([[(label == i).sum() for i in (1, 2)] for _, label in new]) * 0.008
    soft = np.array([segmenter.volumes_ml(image, voxel_ml=0.008) for image, _ in new])
    assert np.corrcoef(true.ravel(), soft.ravel())[0, 1] > 0.9
    ids = segmenter.predict(new[0][0])
    assert ids.dtype == np.uint8 and ids.shape == EXTENT
    assert segmenter.probabilities(new[0][0]).sum(axis=0) == pytest.approx(np.ones(EXTENT), abs=1e-5)


def test_what_is_loaded_is_what_was_trained_and_no_case_is_named(trained):
    folder, segmenter = trained
    loaded = Segmenter.load(folder, device="cpu")
    image = balls(1, 3)[0][0]
    assert np.array_equal(loaded.probabilities(image), segmenter.probabilities(image))
    assert np.array_equal(loaded.features(image), segmenter.features(image))
    files = {p.name for p in folder.iterdir()}
    assert files == {"identity.json", "segmenter.json", "segmenter.safetensors", "log.jsonl", "tensorboard", "panels"}
    assert json.loads((folder / "segmenter.json").read_text())["training"]["cases"] == 8


def test_training_is_deterministic_and_resumes_to_the_same_bits(tmp_path, monkeypatch):
    cases = balls(3)
    whole = train(cases, tmp_path / "a", steps=12, seed=5, **SMALL)
    sample = PatchSampler.__call__

    def killed(self, step):
        if step == 7:
            raise KeyboardInterrupt
        return sample(self, step)

    schedule = "medgen.segment.train.Schedule"
    from medgen.training.loop import Schedule

    monkeypatch.setattr(schedule, lambda **k: Schedule(**k, checkpoint_seconds=0.0))
    with monkeypatch.context() as patch:
        patch.setattr(PatchSampler, "__call__", killed)
        with pytest.raises(KeyboardInterrupt):
            train(cases, tmp_path / "b", steps=12, seed=5, **SMALL)
    assert (tmp_path / "b" / "checkpoint.safetensors").exists()
    resumed = train(cases, tmp_path / "b", steps=12, seed=5, **SMALL)
    other = train(cases, tmp_path / "c", steps=12, seed=6, **SMALL)
    for name, tensor in whole.net.state_dict().items():
        assert torch.equal(tensor, resumed.net.state_dict()[name])
    assert not np.array_equal(other.features(cases[0][0]), whole.features(cases[0][0]))


def test_the_same_training_is_loaded_and_another_replaces_it(tmp_path, monkeypatch):
    cases = balls(2)
    first = train(cases, tmp_path, steps=2, **SMALL)
    with monkeypatch.context() as patch:
        patch.setattr("medgen.segment.train.run_loop", lambda *a: pytest.fail("trained again"))
        assert np.array_equal(
            train(cases, tmp_path, steps=2, **SMALL).features(cases[0][0]), first.features(cases[0][0])
        )
    changed = [(cases[0][0], cases[0][1] * 0), cases[1]]
    second = train(changed, tmp_path, steps=2, augmentation=None, **SMALL)
    assert not np.array_equal(second.features(cases[0][0]), first.features(cases[0][0]))
    assert Segmenter.load(tmp_path, device="cpu").training["augmentation"] is None


def test_faults_are_one_sentence(tmp_path, trained):
    cases = balls(2)
    with pytest.raises(InputError, match="at least one labelled case"):
        train([], tmp_path / "x", **SMALL)
    with pytest.raises(InputError, match="share one grid"):
        train([cases[0], (cases[1][0][:, :8], cases[1][1][:8])], tmp_path / "x", **SMALL)
    with pytest.raises(InputError, match="ids run from 0 to 2, but 2 ids"):
        train(cases, tmp_path / "x", **{**SMALL, "labels": 2})
    with pytest.raises(InputError, match="at least one label beside"):
        train([(image, label * 0) for image, label in cases], tmp_path / "x", **{**SMALL, "labels": 1})
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="something else"):
        train(cases, tmp_path / "full", **SMALL)
    with pytest.raises(InputError, match="not a finished segmenter"):
        Segmenter.load(tmp_path)
    with pytest.raises(InputError, match="takes images"):
        trained[1].predict(np.zeros((2, *EXTENT)))
    train(cases, tmp_path / "d", steps=1, **SMALL)
    weights = tmp_path / "d" / "segmenter.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])
    with pytest.raises(InputError, match="not the file"):
        Segmenter.load(tmp_path / "d")


def test_unlabelled_voxels_teach_nothing(tmp_path):
    """Where the label is -1 its image may be anything: the loss does not see it."""
    from medgen.models.losses import label_loss

    logits, label = torch.randn(1, 3, 4, 4, 4), torch.randint(0, 3, (1, 4, 4, 4))
    label[:, :2] = -1
    changed = logits.clone()
    changed[:, :, :2] += torch.randn(1, 3, 2, 4, 4)
    assert torch.equal(label_loss(logits, label), label_loss(changed, label))
    blank = [(balls(1)[0][0], np.full(EXTENT, -1, np.int16)), *balls(1)]
    assert np.isfinite(train(blank, tmp_path, steps=2, **SMALL).features(blank[0][0])).all()


def test_any_extent_and_windows_agree_with_the_whole(trained):
    segmenter = trained[1]
    odd = balls(1, 2)[0][0][:, :15, :19, :13]
    assert segmenter.predict(odd).shape == (15, 19, 13)
    # Wider than the window: overlapping windows, each segmented as the training saw it.
    image, label = balls(1, 4)[0]
    wide, wide_label = np.concatenate([image, image[:, ::-1]], axis=1), np.concatenate([label, label[::-1]], axis=0)
    found = segmenter.predict(wide)
    assert (found == wide_label).mean() > 0.9


def test_features_leave_out_padding(trained):
    segmenter, (image, _) = trained[1], balls(1, 5)[0]
    inside = np.zeros(EXTENT, bool)
    inside[:8] = True
    changed = image.copy()
    changed[:, 14:] = -1
    assert segmenter.features(image).shape == (8,)
    assert not np.allclose(segmenter.features(image), segmenter.features(changed), atol=1e-4)
    net = segmenter.net
    x = torch.from_numpy(image[None].astype(np.float32))
    deep = bottleneck(net, x)[0].numpy()
    by_hand = deep[:, :4].reshape(8, -1)
    assert segmenter.features(image, inside) == pytest.approx(by_hand.mean(1), abs=1e-5)


def test_the_bottleneck_is_what_the_network_itself_computes():
    net = build(Architecture(1, 3)).eval()
    assert sum(p.numel() for p in net.parameters()) == pytest.approx(1.2e6, rel=0.02)
    seen = []
    net.model[1].submodule[1].submodule[1].submodule.register_forward_hook(lambda m, i, o: seen.append(o))
    x = torch.randn(1, 1, 16, 16, 16)
    net(x)
    assert torch.equal(bottleneck(net, x), seen[0]) and seen[0].shape == (1, 128, 2, 2, 2)


def test_classical_augmentation_reaches_the_training(tmp_path):
    cases = balls(2)
    plain = train(cases, tmp_path / "a", steps=2, augmentation=None, **SMALL)
    with_it = train(cases, tmp_path / "b", steps=2, **SMALL)
    assert not np.array_equal(plain.features(cases[0][0]), with_it.features(cases[0][0]))
    assert with_it.training["augmentation"]["rotate_degrees"] == (15, 15, 15) and not CLASSICAL.flip


def test_pairs_of_a_prepared_cohort(tiny_run, tmp_path):
    store = Prepared.open(tiny_run / "prepared")
    pairs = pairs_of(store, store.indices("train"))
    assert len(pairs) == len(store.indices("train"))
    done = train(pairs, tmp_path, **{**SMALL, "labels": len(store.label_values)}, steps=1)
    assert done.predict(pairs[0][0]).shape == store.shape


def test_it_trains_alone_while_other_processes_wait(tmp_path, monkeypatch):
    """Under torchrun its stages are the first process's: whoever met the others in a collective would hang."""
    from medgen.training import loop
    from medgen.training.distributed import World

    def meet(*_):
        raise AssertionError("a collective")

    monkeypatch.setattr(loop, "world", lambda device=None: World(0, 2))
    for name in ("broadcast", "all_reduce"):
        monkeypatch.setattr(torch.distributed, name, meet)
    train(balls(2), tmp_path, steps=2, **SMALL)
