"""Every process of the room trains from a config, and every sampler of the other draws from what came out."""

import copy
import shutil
from functools import cache

import numpy as np
import pytest

from medgen import config, pipeline
from medgen.errors import InputError
from medgen.generation.generator import Drawing, Generator
from medgen.registry import kinds
from tests.tiny import TINY

OPTIONS = {"flow": {}, "edm": {"sigma_data": 1.0}, "vp": {"schedule": "linear", "prediction": "v"}}
SAMPLERS = {"ancestral": {"eta": 0.5}, "dpmpp": {"eta": 1.0}, "euler": {}, "heun": {"variable": "time"}, "plms": {}}


def experiment(process, options, **generate):
    raw = copy.deepcopy(TINY)
    raw["diffusion"] |= {"process": process, "process_options": options}
    raw["generate"] |= generate
    return config.build(raw, "test")


@pytest.fixture(scope="module")
def trained(tiny_run, tmp_path_factory):
    """Process -> a generator's model folder; prepared cohort and codec are those of the tiny run."""

    @cache
    def model(process):
        folder = tmp_path_factory.mktemp(process) / "run"
        shutil.copytree(tiny_run, folder)
        pipeline.run_experiment(experiment(process, OPTIONS[process], sampler="dpmpp"), folder=folder, until="model")
        return Generator.load(folder / "model", device="cpu")

    return model


def test_all_are_tried():
    assert set(kinds("diffusion", "build")) >= set(OPTIONS)
    assert set(kinds("sampling", "sample")) == set(SAMPLERS)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("process", OPTIONS)
def test_trains_and_generates(trained, process, sampler):
    loaded = trained(process)
    assert loaded.drawing.sampler == "dpmpp"
    drawing = Drawing(sampler, SAMPLERS[sampler], steps=4, guidance=1.5, space="grid")
    sample = Generator(loaded.model, drawing).sample(seed=3)
    assert all(np.isfinite(volume.data).all() for volume in sample.images.values())
    assert sample.sidecar["drawing"]["sampler"] == sampler


WRONG = {
    "process option": (("vp", {"prediction": "epsilon"}), {}, "eps, v, x0"),
    "process type": (("edm", {"rho": "seven"}), {}, "must be a number"),
    "sampler option": (("flow", {}), {"sampler": "ancestral", "sampler_options": {"eta": 2.0}}, "between 0"),
    "too many steps": (("vp", {"timesteps": 50}), {"steps": 60}, "more than the 50 timesteps"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_values_are_refused_before_the_first_stage(tmp_path, case):
    process, generate, said = WRONG[case]
    with pytest.raises(InputError, match=said):
        pipeline.run_experiment(experiment(*process, **generate), folder=tmp_path / "run")
    assert not (tmp_path / "run" / "prepared").exists()
