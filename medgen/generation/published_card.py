"""The card of a model with published weights: whose they are, and what is not known of them."""

from collections.abc import Mapping
from typing import Any


def published_card(spec: Mapping[str, Any], columns: str) -> str:
    """README.md of an imported model folder.

    Args:
        spec: the model's spec as plain data.
        columns: what can be asked for, one line a covariate.
    """
    trained = spec["trained_on"]
    shape, spacing = (" x ".join(f"{n:g}" for n in spec[key]) for key in ("shape", "spacing_mm"))
    hashes = "\n".join(f"- {name} file, SHA-256 `{sha256}`" for name, sha256 in trained["weights_sha256"].items())
    notes = "\n".join(f"- {note}" for note in trained["notes"])
    return f"""# {spec["name"]}

Published weights of the layout `{trained["imported"]}`, converted by medgen; medgen trained none of them. The model
draws an image (channel: {", ".join(spec["channels"])}) without a label map.

**Licence:** {trained["licence"]}. The weights are those of the source, and medgen's own licence does not cover them.
Read the source's before you use, share or publish weights or samples.

- Grid: {shape} voxels of {spacing} mm.
- Codec `{spec["codec"]["kind"]}`, latent {" x ".join(map(str, spec["latent_shape"]))}; process
  `{spec["process"]["kind"]}`; network `{spec["network"]["kind"]}`.
- On the same random input the original networks and medgen's agreed within 1e-5 when the weights were converted.
{hashes}

## What can be asked for

{columns}

{notes}

## Use

    medgen generate THIS_FOLDER OUT --n 4 --seed 0

## Limits

Samples follow the source's training cases, its scanners, sites and population included; they are made for training and
testing of algorithms, not for diagnosis. Whether the model repeats its training cases cannot be checked without them.
"""
