"""Pairs held against real ones: what is alike passes each question, and each fault fails its own."""

from types import SimpleNamespace

import numpy as np
import pytest

from medgen.errors import InputError
from medgen.evaluation.alike import pairs_alike, prepared_alike
from medgen.evaluation.soundness import soundness
from medgen.files import read_json
from medgen.store.prepared import Prepared

NAMES, CHANNELS = ("background", "body", "tail"), ("T1w",)


def pair(seed: int, *, mirrored: bool = False, broken: bool = False, outline: float = 0.0, tail: bool = True):
    rng = np.random.default_rng(seed)
    label = np.zeros((24, 20, 20), np.uint8)
    x, y, z = rng.integers(-1, 2, 3)
    label[5 + x : 13 + x, 5 + y : 14 + y, 5 + z : 14 + z] = 1
    if tail:
        label[13 + x : 19 + x, 7 + y : 13 + y, 6 + z : 12 + z] = 2
    if broken:
        label[0, 0, 0] = 1
    image = rng.normal(0.02 * rng.normal(), 0.05, label.shape) + 0.3 * label
    body = label == 1
    shell = body.copy()
    for axis in range(3):
        shell &= np.roll(body, 1, axis) & np.roll(body, -1, axis)
    image[body & ~shell] += outline + 0.02 * rng.normal()
    if mirrored:
        label, image = np.flip(label, 0), np.flip(image, 0)
    return image[None].astype(np.float32), label


def cohort(count: int, start: int = 0, **options):
    return [pair(start + i, **options) for i in range(count)]


class Finds:
    """A segmenter that finds the body, and the tail in so many cases."""

    def __init__(self, dice: float) -> None:
        self.score = dice
        self.said: list[float] = []

    def dice(self, image, label):
        wrong = image[0][label == 1].mean() > 1  # the images of misfits are bright
        return [0.9, self.score if wrong else 0.9]


def ask(samples, segmenter=None, train=None):
    return soundness(
        train or cohort(8), cohort(10, 20), samples, names=NAMES, channels=CHANNELS, segmenter=segmenter, resamples=100
    )


def test_pairs_like_the_cohort_pass_each_question():
    found = ask(cohort(10, 50), Finds(0.1))
    assert found["met"] == {"pieces": True, "shell": True, "side": True, "agreement": True}
    assert found["cases"] == {"train": 8, "held_out": 10, "samples": 10}
    assert found["side"]["one_sided"] and found["pieces"]["body"]["one_piece_samples"] == 1.0
    assert found["agreement"]["mean"]["difference"] == {"value": 0.0, "low": 0.0, "high": 0.0}


@pytest.mark.parametrize(
    ("fault", "question"),
    [
        ({"broken": True}, "pieces"),
        ({"tail": False}, "pieces"),
        ({"outline": 0.2}, "shell"),
        ({"outline": -0.2}, "shell"),
        ({"mirrored": True}, "side"),
    ],
)
def test_each_fault_fails_its_question(fault, question):
    samples = cohort(6, 50) + cohort(4, 60, **fault)
    if question == "shell":
        samples = cohort(10, 50, **fault)
    found = ask(samples)
    assert found["met"][question] is False
    others = {key: met for key, met in found["met"].items() if key != question}
    assert others["agreement"] is None and (fault == {"tail": False} or False not in others.values())


def test_images_that_do_not_fit_their_labels_lower_the_dice():
    misfits = [(image + 5, label) for image, label in cohort(5, 60)]
    found = ask(cohort(5, 50) + misfits, Finds(0.5))
    assert found["met"]["agreement"] is False
    assert found["agreement"]["tail"]["samples"] == pytest.approx(0.7)
    assert found["agreement"]["mean"]["difference"]["value"] == pytest.approx(-0.1)


def test_a_cohort_of_both_sides_is_not_judged_for_its_side():
    both = cohort(4) + cohort(4, 4, mirrored=True)
    held_out = cohort(5, 20) + cohort(5, 25, mirrored=True)
    found = soundness(both, held_out, cohort(6, 50), names=NAMES, channels=CHANNELS)
    assert found["side"]["one_sided"] is False and found["met"]["side"] is None


def test_what_cannot_be_looked_at_is_said():
    with pytest.raises(InputError, match="too few"):
        soundness(cohort(3), [], cohort(3), names=NAMES, channels=CHANNELS)
    with pytest.raises(InputError, match="no label"):
        soundness(cohort(3), cohort(3), cohort(3), names=("background",), channels=CHANNELS)


def test_samples_come_to_the_cohorts_grid_with_its_label_ids(tiny_run, tmp_path):
    store = Prepared.open(tiny_run / "prepared")
    samples = prepared_alike(store, tiny_run / "synthetic", tmp_path / "prepared")
    pairs = pairs_alike(store, samples)
    assert len(pairs) == 3
    assert all(image.shape[1:] == label.shape == store.shape for image, label in pairs)
    first = read_json(next((tiny_run / "synthetic").glob("sub-syn000000/anat/*_T1w.json")))["measured"]
    voxel_ml = float(np.prod(store.spacing_mm)) / 1000
    most = int(np.argmax([first.get(f"{name}_ml", 0) for name in map(str.lower, store.label_names)]))
    assert (pairs[0][1] == most).sum() * voxel_ml == pytest.approx(
        first[f"{store.label_names[most].lower()}_ml"], rel=0.2
    )


def test_ids_go_by_name():
    store = SimpleNamespace(label_names=("background", "CSF", "GM", "WM"), label_values=(0, 1, 2, 3), channels=("T1w",))
    samples = SimpleNamespace(
        folder="made",
        channels=("T1w",),
        label_names=("background", "GM"),
        cases=[SimpleNamespace(case_id="a", has_label=True)],
        image=lambda i: np.zeros((1, 2, 1, 1), np.float32),
        label=lambda i: np.array([[[0]], [[1]]], np.uint8),
    )
    assert pairs_alike(store, samples)[0][1].ravel().tolist() == [0, 2]
    samples.label_names = ("background", "tumour")
    with pytest.raises(InputError, match="'tumour'"):
        pairs_alike(store, samples)
    samples.cases = [SimpleNamespace(case_id="a", has_label=False)]
    samples.label_names = ("background",)
    with pytest.raises(InputError, match="no labels"):
        pairs_alike(store, samples)
