import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from medgen import config
from medgen.errors import InputError
from medgen.stages.check import check
from medgen.stages.encoding import _encodables
from medgen.stages.run import Run
from tests.tiny import TINY


def run_of(folder, **sections):
    raw = copy.deepcopy(TINY)
    for section, values in sections.items():
        raw[section] = {**raw.get(section, {}), **values}
    return Run(config.build(raw, "test"), folder, lambda *_: None)


def test_copies_have_their_volumes_measured_again(tiny_run):
    augment = {"scale": 0.3, "rotate_degrees": 5, "gamma": 0.1}
    run = run_of(tiny_run, latents={"copies": 3, "augment": augment})
    plain, *copies = _encodables(run, 0, 3)
    assert [c.copy for c in copies] == [1, 2, 3] and plain.volumes_ml is None
    own = run.store.cases[0].covariates
    for one in copies:
        assert one.image.shape == plain.image.shape and not torch.equal(one.image, plain.image)
        assert float(one.image.min()) >= -1 and float(one.image.max()) <= 1
        for k, name in enumerate(("csf_ml", "gm_ml", "wm_ml", "ventricles_ml"), start=1):
            grown = float((one.label == k).sum() / (plain.label == k).sum())
            assert one.volumes_ml[name] == pytest.approx(own[name] * grown, rel=1e-5)
    assert np.ptp([c.volumes_ml["gm_ml"] for c in copies]) > 0.02 * own["gm_ml"]
    fewer = list(_encodables(run, 0, 1))
    assert torch.equal(fewer[1].image, copies[0].image), "asking for more copies changes none"
    mirror = copies[0].mirrored()
    assert torch.equal(mirror.image.flip(2), copies[0].image) and torch.equal(mirror.label.flip(1), copies[0].label)


def test_copies_that_change_nothing_are_refused():
    with pytest.raises(InputError, match="copies would all equal their case"):
        config.build({"name": "a", "latents": {"copies": 2, "augment": {"chance": 0.0}}}, "test")


@pytest.mark.parametrize(
    ("diffusion", "word"),
    [
        ({"patch": [3, 4, 4]}, "diffusion.patch .* multiples of 2"),
        ({"full_share": 0.3}, "set diffusion.patch"),
        (
            {
                "patch": [4, 4, 4],
                "network": "hybrid_unet",
                "network_options": {
                    "channels": [32, 32],
                    "attention": [False, False],
                    "res_blocks": [1, 1],
                    "head_channels": [0, 0],
                },
            },
            "is not told where a crop lies",
        ),
    ],
)
def test_patches_are_checked_before_anything_runs(tmp_path, diffusion, word):
    run = run_of(tmp_path, diffusion=diffusion)
    with pytest.raises(InputError, match=word) as caught:
        check(replace(run, folder=tmp_path))
    assert "\n" not in str(caught.value)
