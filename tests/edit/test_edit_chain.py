import json

import numpy as np
import pytest

from medgen.edit import chain
from medgen.errors import InputError
from medgen.registry import kinds
from tests.edit.scenes import NAMES, ball

STEPS = [
    {"kind": "warp", "displacement_mm": 2.0, "smooth_mm": 6.0},
    {"kind": "volume", "structure": "chamber"},
    {"kind": "lesion_insert", "label": "Lesion", "new": True, "n": [2, 2], "ml": [0.05, 0.1], "within": ["tissue"]},
    {"kind": "lesion_remove", "label": "lesion", "below_ml": 0.01},
]


def test_every_edit_is_there():
    assert kinds("edit", "edit") == ["lesion_insert", "lesion_remove", "mirror", "volume", "warp"]


def test_edits_follow_each_other_and_their_key():
    chain.check(STEPS)
    chain.check(STEPS, NAMES)
    one, same, other = (
        chain.apply(STEPS, ball(), {"chamber_ml": 1.0}, key) for key in ((0, 1, 0), (0, 1, 0), (0, 1, 1))
    )
    np.testing.assert_array_equal(one.ids, same.ids)
    assert (one.ids != other.ids).any()
    assert one.names == (*NAMES, "Lesion")
    assert one.volumes_ml()["Chamber"] == pytest.approx(1.0)
    assert chain.apply([], ball(), {}, (0, 0, 0)).ids.tolist() == ball().ids.tolist()


def test_the_same_entry_twice_draws_twice():
    warp = {"kind": "warp", "smooth_mm": 6.0}
    once = chain.apply([warp], ball(), {}, (5, 0, 0))
    first = chain.apply([{**warp, "displacement_mm": 0.0}, warp], ball(), {}, (5, 0, 0))
    assert (once.ids != first.ids).any()


@pytest.mark.parametrize(
    ("step", "word"),
    [
        ({"kind": "wrap"}, "did you mean 'warp'"),
        ({"kind": "warp", "smooth": 3}, "did you mean 'smooth_mm'"),
        ({"kind": "warp", "smooth_mm": "3"}, "must be a number"),
        ({"kind": "warp", "displacement_mm": 9.0, "smooth_mm": 3.0}, "smooth_mm to 9 or more"),
        ({"kind": "volume", "structure": "chambr"}, "edit 'volume': .*did you mean 'Chamber'"),
        ({"kind": "lesion_remove"}, "name the lesions' label"),
        ({"kind": "lesion_remove", "label": 7}, "the labels are"),
        ({"displacement_mm": 3}, "names its kind"),
        ("warp", "names its kind"),
    ],
)
def test_faults_are_one_sentence(step, word):
    with pytest.raises(InputError, match=word) as caught:
        chain.check([step], NAMES)
    assert "\n" not in str(caught.value)


def test_what_is_recorded_is_json_and_names_no_path(tmp_path):
    (tmp_path / "mask.nii").write_bytes(b"x")
    rows = chain.recorded([{"kind": "lesion_insert", "label": 3, "n": (1, 2), "bank": str(tmp_path)}])
    assert str(tmp_path) not in json.dumps(rows)
    assert rows[0]["n"] == [1, 2] and len(rows[0]["bank"][0]) == 64
