"""The causal model behind the phantom cohort: what causes what, with its constants.

The graph, drawn from causes to effects, every arrow an equation below::

    age ---> sulcal CSF share ---> grey matter volume (falls)
    age ---> ventricle volume <--- head scale <--- sex
    head scale ---> every volume

    age             ~ Uniform(20, 90) years
    sex             ~ Bernoulli(1/2) over F, M
    head_scale      = HEAD_SCALE[sex] * exp(HEAD_SPREAD * e1)           linear, relative to the MNI152 template
    log ventricles  = log V20 + VENTRICLE_GROWTH * (age - 20) + 3 log(head_scale / mean scale) + VENTRICLE_SPREAD * e2
    csf_share       = CSF_SHARE_20 + CSF_GROWTH * (age - 20) + CSF_SPREAD * e3   of what is not ventricle
    e1, e2, e3      ~ standard normal, cut at two standard deviations

``ventricles_ml`` and ``csf_share`` act on the anatomy in :mod:`medgen.cohort.phantom_shape`: the first by a warp that
widens the lateral ventricles, the second by moving the border between grey matter and the CSF of the sulci inwards.
The template is an average head about a fifth larger than most, hence scales below one. The constants were chosen to lie
where published normative curves lie (lateral ventricles from about 10 to 90 ml over adult life, a quarter of the
grey matter lost between 20 and 90), not fitted to any patient.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

AGE_RANGE_YEARS = (20.0, 90.0)
HEAD_SCALE = {"F": 0.890, "M": 0.935}  # men's heads are about 5 % larger along each axis
HEAD_SPREAD = 0.02
VENTRICLES_20_ML = 15.5
VENTRICLE_GROWTH = 0.0168  # per year: a factor of 3.2 from 20 to 90
VENTRICLE_SPREAD = 0.26
CSF_SHARE_20 = 0.09
CSF_GROWTH = 0.0017  # per year
CSF_SPREAD = 0.008
CUT = 2.0
# Streams of one subject's random numbers: what is drawn in one must not shift what is drawn in another.
STREAM_CAUSES, STREAM_ANATOMY, STREAM_SCANNER, STREAM_MISSING = range(4)


@dataclass(frozen=True)
class Subject:
    """The causes of one phantom: what is true before any voxel exists.

    Attributes:
        age_years: 20 to 90.
        sex: F or M.
        head_scale: linear size relative to the MNI152 template.
        ventricles_ml: volume that the lateral ventricles are warped to.
        csf_share: share of the brain outside the ventricles that is CSF, on the unwarped template.
    """

    age_years: float
    sex: Literal["F", "M"]
    head_scale: float
    ventricles_ml: float
    csf_share: float


def stream(seed: int, index: int, which: int) -> np.random.Generator:
    """The random numbers of subject ``index`` for one purpose; depends on nothing else."""
    return np.random.default_rng([seed, index, which])


def draw_subject(seed: int, index: int) -> Subject:
    """Draw the causes of subject ``index``, a pure function of (seed, index)."""
    rng = stream(seed, index, STREAM_CAUSES)
    age = round(float(rng.uniform(*AGE_RANGE_YEARS)), 1)
    sex: Literal["F", "M"] = "F" if rng.random() < 0.5 else "M"
    e1, e2, e3 = (_cut_normal(rng) for _ in range(3))
    years = age - 20.0
    head_scale = HEAD_SCALE[sex] * math.exp(HEAD_SPREAD * e1)
    mean_scale = sum(HEAD_SCALE.values()) / len(HEAD_SCALE)
    log_ventricles = (
        math.log(VENTRICLES_20_ML)
        + VENTRICLE_GROWTH * years
        + 3.0 * math.log(head_scale / mean_scale)
        + VENTRICLE_SPREAD * e2
    )
    csf_share = CSF_SHARE_20 + CSF_GROWTH * years + CSF_SPREAD * e3
    return Subject(age, sex, head_scale, math.exp(log_ventricles), csf_share)


def _cut_normal(rng: np.random.Generator) -> float:
    while True:
        e = float(rng.standard_normal())
        if abs(e) <= CUT:
            return e
