import copy
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import ndimage

from medgen import config
from medgen.errors import InputError
from medgen.measure.sharpness import content, laplacian_variance
from medgen.stages.check import check
from medgen.stages.copies import augmented
from medgen.stages.encoding import _encodable, latents
from medgen.stages.run import Run
from medgen.store import latent_writer
from medgen.store.augment import Augmentation
from tests.tiny import TINY


def run_of(folder, **sections):
    raw = copy.deepcopy(TINY)
    for section, values in sections.items():
        raw[section] = {**raw.get(section, {}), **values}
    return Run(config.build(raw, "test"), folder, lambda *_: None)


def test_copies_have_their_volumes_measured_again(tiny_run):
    augment = {"scale": 0.3, "rotate_degrees": 5, "gamma": 0.1}
    run = run_of(tiny_run, latents={"copies": 3, "augment": augment})
    plain, *copies = (_encodable(run, (0, k)) for k in range(4))
    assert [c.copy for c in copies] == [1, 2, 3] and plain.volumes_ml is None
    own = run.store.cases[0].covariates
    for one in copies:
        assert one.image.shape == plain.image.shape and not torch.equal(one.image, plain.image)
        assert float(one.image.min()) >= -1 and float(one.image.max()) <= 1
        for k, name in enumerate(("csf_ml", "gm_ml", "wm_ml", "ventricles_ml"), start=1):
            grown = float((one.label == k).sum() / (plain.label == k).sum())
            assert one.volumes_ml[name] == pytest.approx(own[name] * grown, rel=1e-5)
    assert np.ptp([c.volumes_ml["gm_ml"] for c in copies]) > 0.02 * own["gm_ml"]
    mirror = copies[0].mirrored()
    assert torch.equal(mirror.image.flip(2), copies[0].image) and torch.equal(mirror.label.flip(1), copies[0].label)


def test_a_copy_is_as_sharp_as_its_case_and_nothing_stays_nothing():
    rng = np.random.default_rng(0)
    image = np.full((1, 40, 40, 40), -1.0, np.float32)
    texture = ndimage.gaussian_filter(rng.normal(size=(28, 30, 30)), 1.0)
    image[0, 6:34, 5:35, 5:35] = 0.5 * (texture / texture.std()).clip(-1.5, 1.5)
    ids = np.full((40, 40, 40), -1, np.int16)  # of a case whose label is not known everywhere
    ids[:20] = 0
    ids[10:14, 10:20, 10:20] = 2
    there = np.ones((40, 40, 40), bool)
    there[:6] = there[34:] = there[:, :5] = False  # a crop: it ends in the midst of what it shows
    augmentation = Augmentation(rotate_degrees=(6.0, 6.0, 6.0), translate_voxels=0.5, intensity_shift=0.2)
    for k in range(4):
        made, label = augmented(image, ids, there, augmentation, (7, 0, k))
        again = augmented(image, ids, there, augmentation, (7, 0, k))
        assert np.array_equal(made, again[0]) and np.array_equal(label, again[1])
        of_copy, of_case = (laplacian_variance(v, content(v, dark=-0.99)) for v in (made, image))
        assert of_copy > 0.8 * of_case, "a linear warp keeps 0.55 to 0.59 of it"
        assert (made[0][~there] == -1).all() and made.min() >= -1 and made.max() <= 1
        assert (made[0][6:34, 5:30, 10:30] > -1).all(), "up to the ends of the crop, which are not turned"
        assert set(np.unique(label)) == {-1, 0, 2} and label.dtype == ids.dtype
        assert (label == 2).sum() == pytest.approx((ids == 2).sum(), rel=0.15)


def test_label_maps_alone_have_copies_too():
    ids = np.zeros((16, 16, 16), np.int16)
    ids[4:12, 4:12, 4:12] = 1
    nothing = np.empty((0, *ids.shape), np.float32)
    augmentation = Augmentation(rotate_degrees=(6.0, 6.0, 6.0), scale=0.2, intensity_shift=0.2, noise=0.1)
    made, label = augmented(nothing, ids, np.ones(ids.shape, bool), augmentation, (7, 0, 1))
    assert made.shape == nothing.shape and (label != ids).any() and set(np.unique(label)) == {0, 1}
    grey = np.zeros((1, *ids.shape), np.float32)
    beside = augmented(grey, ids, np.ones(ids.shape, bool), augmentation, (7, 0, 1))
    assert np.array_equal(beside[1], label), "with and without an image the same map"


def test_an_encoding_that_was_stopped_goes_on(tiny_run, tmp_path, monkeypatch):
    monkeypatch.setattr(latent_writer, "_SECONDS", 0.0)
    folder = shutil.copytree(tiny_run, tmp_path / "run")
    shutil.rmtree(folder / "latents")
    whole = run_of(shutil.copytree(folder, tmp_path / "whole"), latents={"copies": 2, "mirror": True})
    latents(whole)
    seen = []

    def stops(stage, done, total, remark):
        seen.append(done)
        if done == 3 and len(seen) == 3:
            raise KeyboardInterrupt

    run = replace(run_of(folder, latents={"copies": 2, "mirror": True}), progress=stops)
    with pytest.raises(KeyboardInterrupt):
        latents(run)
    assert not (folder / "latents" / "index.json").exists()
    latents(run)
    assert seen == [1, 2, 3, 4, 5, 6, 7, 8], "what was encoded is not encoded again"
    seen.clear()
    latents(run)
    assert not seen, "what is whole stays, where its config comes back"
    for name in ("mean.npy", "logvar.npy", "reached.npy", "index.json"):
        assert (folder / "latents" / name).read_bytes() == (tmp_path / "whole" / "latents" / name).read_bytes()


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
