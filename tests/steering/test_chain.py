import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from medgen.errors import InputError
from medgen.models.seam import Prediction
from medgen.registry import kinds
from medgen.steering import chain
from tests.steering.toy import KNOWN, SCHEMA, cond_of, context

X = torch.zeros(1, 1, 2, 2, 2)
ASKED = cond_of({"a": 4.0, "ball_ml": 3.0, "sex": "F"})


def model(x, sigma, cond, *, taps=()):
    """x0 = 1 where something is asked, else 0."""
    return Prediction(x + cond.present.any(1).float().reshape(-1, 1, 1, 1, 1))


def steered(steps, guidance=1.0):
    return float(chain.apply(model, steps, guidance, context())(X, torch.ones(1), ASKED).x0.mean())


def double(inner):
    def doubled(x, sigma, cond, *, taps=()):
        return Prediction(2 * inner(x, sigma, cond).x0)

    return doubled


def test_every_wrapper_is_there():
    assert set(kinds("steering", "wrap")) == {
        "autoguidance", "cfg", "composition", "per_covariate", "threshold", "volume_gradient",
    }  # fmt: skip


def test_the_first_entry_is_the_innermost_and_guidance_before_it():
    cfg, threshold = {"kind": "cfg", "scale": 3.0}, {"kind": "threshold", "limit": 2.0}
    assert steered([cfg, threshold]) == 2.0 and steered([threshold, cfg]) == 3.0
    assert steered([threshold], guidance=3.0) == 2.0
    assert steered([threshold, double], guidance=3.0) == 4.0
    assert chain.apply(model, [], 1.0, context()) is model


@pytest.mark.parametrize(
    ("step", "word"),
    [
        ({"kind": "cgf"}, "did you mean 'cfg'"),
        ({"kind": "cfg", "scle": 2}, "did you mean 'scale'"),
        ({"kind": "cfg", "scale": "2"}, "must be a number"),
        ({"kind": "cfg", "interval": 3}, "must be a list"),
        ({"kind": "cfg", "context": 3}, "no option 'context'"),
        ({"kind": "per_covariate", "weights": [1]}, "must be a mapping"),
        ({"kind": "per_covariate", "weights": {"b": 1}}, "unknown covariate 'b'"),
        ({"kind": "autoguidance", "weak": 3}, "must be a path"),
        ({"scale": 2}, "names its kind"),
        ({"kind": "gradient"}, "unknown steering kind"),
        ("cfg", "of the form"),
    ],
)
def test_faults_are_one_sentence(step, word):
    with pytest.raises(InputError, match=word) as caught:
        chain.check([step], known=KNOWN)
    assert "\n" not in str(caught.value)


def test_two_guidances_are_refused():
    with pytest.raises(InputError, match="would multiply"):
        chain.check([{"kind": "cfg", "scale": 2.0}], guidance=2.0)


def test_what_is_recorded_is_json_and_names_no_path(tmp_path):
    (tmp_path / "model.json").write_text("{}")
    steps = [{"kind": "autoguidance", "weak": str(tmp_path)}, {"kind": "cfg", "interval": (1, 2)}, double]
    rows = chain.recorded([*steps, partial(double)])
    assert str(tmp_path) not in json.dumps(rows) and len(rows[0]["weak"]) == 64
    assert rows[1] == {"kind": "cfg", "interval": [1, 2]}
    assert rows[2] == rows[3] == {"kind": "python", "function": f"{__name__}.double"}
    moved = chain.moved(steps[:2], lambda path: Path("x") / path.name)
    assert moved == [{"kind": "autoguidance", "weak": f"x/{tmp_path.name}"}, steps[1]]
    assert chain.decides([{"kind": "composition", "conditions": [{"where": {"a": 1}}]}, *steps], SCHEMA) == {"a"}


@pytest.mark.parametrize(
    ("kind", "drop_all", "drop_each", "columns", "refused"),
    [
        ("cfg", 0.1, 0.0, 6, False),
        ("cfg", 0.0, 0.1, 6, True),  # all six are left out once in a million rows
        ("cfg", 0.0, 0.1, 2, False),
        ("cfg", 0.0, 0.1, None, False),
        ("per_covariate", 0.1, 0.0, 6, True),  # never one alone
        ("per_covariate", 0.1, 0.0, 1, False),
        ("composition", 0.0, 0.1, 6, False),
        ("threshold", 0.0, 0.0, 6, False),
    ],
)
def test_nulls_that_training_hardly_showed_are_refused(kind, drop_all, drop_each, columns, refused):
    def check():
        chain.check_nulls([{"kind": kind}], 1.0, drop_all, drop_each, columns=columns)

    if refused:
        with pytest.raises(InputError, match=f"steering '{kind}' needs a model that was also trained without"):
            check()
    else:
        check()


def test_columns_that_only_the_mask_is_asked_cannot_be_steered():
    known = replace(KNOWN, by_mask=frozenset({"ball_ml"}))
    for step in (
        {"kind": "per_covariate", "weights": {"ball_ml": 2.0}},
        {"kind": "composition", "conditions": [{"where": {"ball_ml": 3.0}}]},
    ):
        chain.check([step], known=KNOWN)
        with pytest.raises(InputError, match="'ball_ml' is asked of the mask alone"):
            chain.check([step], known=known)
