"""The model card: what a colleague must know before using a model."""

from collections.abc import Mapping
from typing import Any


def model_card(spec: Mapping[str, Any]) -> str:
    """README.md of a model folder, from its spec as plain data."""
    trained = spec["trained_on"]
    labels = ", ".join(f"{value} {name}" for value, name in zip(spec["label_values"], spec["label_names"], strict=True))
    spacing = " x ".join(f"{s:g}" for s in spec["spacing_mm"])
    shape = " x ".join(map(str, spec["shape"]))
    columns = "\n".join(_column(c) for c in spec["schema"]) or "none: the model is unconditional"
    return f"""# {spec["name"]}

A latent diffusion model of 3D medical images made by medgen. It draws an image
(channels: {", ".join(spec["channels"])}) and its label map ({labels or "none"}) together.

- Trained on {trained["cases"]} cases of {trained["subjects"]} subjects; {trained["validation"]} cases held out.
- Grid: {shape} voxels of {spacing} mm; samples finer than that are interpolated.
- Codec `{spec["codec"]["kind"]}`, latent {" x ".join(map(str, spec["latent_shape"]))}; process
  `{spec["process"]["kind"]}`; network `{spec["network"]["kind"]}`.

## What can be asked for

{columns}

What is not asked for is drawn from the joint distribution of the training cases, given what is.

## Use

    medgen generate THIS_FOLDER OUT --n 32 --seed 0

## Limits

Samples follow the cohort the model was trained on, its scanners, sites and population included; they are made for
training and testing of algorithms, not for diagnosis. Requests beyond the ranges above are extrapolation. A model of
few cases can repeat them: compare samples with the training cases before you share any.
"""


def _column(c: Mapping[str, Any]) -> str:
    if c["levels"]:
        return f"- `{c['name']}`: {', '.join(c['levels'])}"
    if c["minimum"] is None:
        return f"- `{c['name']}`: never observed"
    return f"- `{c['name']}`: {c['minimum']:g} to {c['maximum']:g} {c['unit']}".rstrip()
