"""How often samplers, guidance and steering ask the network, counted against what they are known to ask."""

from typing import Any

import pytest

from medgen.cohort.joint import Joint
from medgen.cohort.schema import Covariate, Schema, with_ranges
from medgen.diffusion import flow
from medgen.doctor.evaluations import Sampling
from medgen.errors import InputError
from medgen.models.condition import ConditionEncoder

ROWS = [{"age": 20.0 + i, "ventricles_ml": 10.0 + (i * 7) % 11} for i in range(20)]
SCHEMA = with_ranges(Schema((Covariate("age"), Covariate("ventricles_ml", unit="ml"))), ROWS)


def sampling(sampler: str = "euler", steps: int = 5, guidance: float = 1.0, steering: Any = ()) -> Sampling:
    encoder, joint = ConditionEncoder.fit(SCHEMA, ROWS), Joint.fit(SCHEMA, ROWS)
    labels = ("background", "ventricles")
    return Sampling(flow.build(), sampler, {}, steps, guidance, steering, encoder, joint, labels, ROWS[0])


@pytest.mark.parametrize(("sampler", "rows"), [("euler", 5), ("heun", 9), ("dpmpp", 5)])
def test_solvers(sampler: str, rows: int) -> None:
    found = sampling(sampler).of_a_sample()
    assert (found.rows, found.rows_back, found.at_once, found.decodes) == (rows, 0, 1, 0)


def test_guidance_asks_twice_and_only_in_its_interval() -> None:
    found = sampling(guidance=2.0).of_a_sample()
    assert (found.rows, found.at_once) == (10, 2)
    part = sampling(steering=({"kind": "cfg", "scale": 2.0, "interval": [0.1, 2.0]},)).of_a_sample()
    assert 5 < part.rows < 10


def test_steering_by_volumes_decodes_and_differentiates() -> None:
    found = sampling(steering=({"kind": "volume_gradient", "interval": [0.0, 1000.0], "repeats": 2},)).of_a_sample()
    assert found.decodes_back == 10 and found.rows_back == 0
    through = ({"kind": "volume_gradient", "interval": [0.0, 1000.0], "through": True},)
    assert sampling(steering=through).of_a_sample().rows_back == 5
    with pytest.raises(InputError, match="cannot ask for the volume of 'tumour'"):
        sampling(steering=({"kind": "volume_gradient", "labels": ["tumour"]},)).of_a_sample()


def test_paths_of_a_teacher_and_what_a_student_is_asked() -> None:
    plain, guided = (sampling(guidance=g).of_a_path(steps=2, teacher_steps=8) for g in (1.0, 3.0))
    assert plain.rows >= 2 * 8 - 1 and guided.rows == 2 * plain.rows
    asked = sampling().of_an_objective("trajectory", {}, steps=4)
    assert asked.rows + asked.rows_back == 1
