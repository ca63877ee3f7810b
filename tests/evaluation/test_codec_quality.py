import numpy as np
import pytest

from medgen import config
from medgen.errors import InputError
from medgen.evaluation.codec_quality import Thresholds, as_markdown, compare, missed

FIGURES = {
    "cases": 2,
    "held_out": True,
    "psnr_db": 24.0,
    "ssim": 0.8,
    "l1": 0.05,
    "sharpness": 0.3,
    "dice": {"GM": 0.7, "lesion": 0.5, "cyst": None},
    "sizes_ml": [0.1],
    "structures": {
        "GM": [
            {"from_ml": 0.0, "below_ml": 0.1, "count": 0, "dice": None, "recall": None},
            {"from_ml": 0.1, "below_ml": None, "count": 2, "dice": 0.7, "recall": 1.0},
        ],
        "lesion": [
            {"from_ml": 0.0, "below_ml": 0.1, "count": 9, "dice": 0.2, "recall": 0.4},
            {"from_ml": 0.1, "below_ml": None, "count": 1, "dice": 0.6, "recall": 1.0},
        ],
        "cyst": [
            {"from_ml": 0.0, "below_ml": 0.1, "count": 0, "dice": None, "recall": None},
            {"from_ml": 0.1, "below_ml": None, "count": 0, "dice": None, "recall": None},
        ],
    },
    "each": [{"case": "c0001", "psnr_db": 23.0, "ssim": 0.8, "l1": 0.05, "sharpness": 0.3}],
}


@pytest.mark.parametrize(
    ("bounds", "said"),
    [
        ({}, []),
        ({"min_psnr_db": 24, "min_ssim": 0.8, "max_l1": 0.05, "min_sharpness": 0.3}, []),
        ({"min_psnr_db": 25}, ["PSNR 24 dB, below 25"]),
        ({"max_l1": 0.04, "min_sharpness": 0.5}, ["sharpness 0.3, below 0.5", "L1 0.05, above 0.04"]),
        ({"min_dice": 0.6}, ["Dice, lesion 0.5, below 0.6"]),
        ({"min_dice": {"GM": 0.6, "lesion": 0.4}}, []),
        ({"min_dice": {"cyst": 0.1}}, ["Dice, cyst: no measured case has any"]),
        ({"min_dice_small": 0.3}, ["Dice of structures below 0.1 ml, lesion 0.2, below 0.3"]),
        ({"min_recall_small": {"GM": 0.3}}, ["recall of structures below 0.1 ml, GM: no measured case has any"]),
    ],
)
def test_bounds(bounds, said):
    assert missed(FIGURES, Thresholds(**bounds)) == said


def test_a_bound_on_labels_without_any_is_missed():
    bare = {k: v for k, v in FIGURES.items() if k not in ("dice", "sizes_ml", "structures")}
    assert missed(bare, Thresholds(min_dice=0.1)) == ["Dice: no measured case has any"]


def test_figures_of_a_pair():
    rng = np.random.default_rng(0)
    image = rng.uniform(-0.5, 0.5, (1, 12, 12, 12)).astype(np.float32)
    assert compare(image, image) == {"psnr_db": 100.0, "ssim": pytest.approx(1.0), "l1": 0.0, "sharpness": 1.0}
    half = compare(image / 2, image)
    assert half["sharpness"] == pytest.approx(0.25) and half["l1"] == pytest.approx(np.abs(image / 2).mean())


def test_the_page_tells_sizes_apart():
    page = as_markdown(FIGURES)
    assert "| lesion | 0.5 | below 0.1 ml | 9 | 0.2 | 0.4 |" in page
    assert "| | | 0.1 ml and more | 1 | 0.6 | 1.0 |" in page


@pytest.mark.parametrize(
    ("accept", "word"),
    [
        ({"min_psnr": 20}, "did you mean 'min_psnr_db'"),
        ({"min_dice": 1.5}, "autoencoder.accept.min_dice"),
        ({"min_dice": {"GM": -1}}, "autoencoder.accept.min_dice"),
        ({"sizes_ml": [1, 0.1]}, "must rise"),
        ({"sizes_ml": []}, "autoencoder.accept.sizes_ml"),
    ],
)
def test_faults_of_the_config_are_one_sentence(accept, word):
    with pytest.raises(InputError, match=word):
        config.build({"name": "a", "autoencoder": {"accept": accept}}, "test")
