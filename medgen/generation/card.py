"""The model card: what a colleague must know before using a model."""

from collections.abc import Mapping
from typing import Any

from medgen.generation.published_card import published_card


def model_card(spec: Mapping[str, Any]) -> str:
    """README.md of a model folder, from its spec as plain data."""
    trained = spec["trained_on"]
    columns = "\n".join(_column(c) for c in spec["schema"]) or "none: the model is unconditional"
    if trained.get("imported"):
        return published_card(spec, columns)
    labels = ", ".join(f"{value} {name}" for value, name in zip(spec["label_values"], spec["label_names"], strict=True))
    spacing = " x ".join(f"{s:g}" for s in spec["spacing_mm"])
    shape = " x ".join(map(str, spec["shape"]))
    codec = _codec(trained) if trained.get("codec") else ""
    licence = trained.get("licence") or "not stated: ask whoever trained it before you share it"
    distilled = _distilled(trained["distilled"]) if trained.get("distilled") else ""
    ancestors = "".join(_ancestor(a) for a in trained.get("ancestors", []))
    return f"""# {spec["name"]}

A latent diffusion model of 3D medical images made by medgen. {_route(spec, labels or "none")}

- Trained on {trained["cases"]} cases of {trained["subjects"]} subjects; {trained["validation"]} cases held out.
- Grid: {shape} voxels of {spacing} mm; samples finer than that are interpolated.
- Codec `{spec["codec"]["kind"]}`, latent {" x ".join(map(str, spec["latent_shape"]))}; process
  `{spec["process"]["kind"]}`; network `{spec["network"]["kind"]}`.
{codec}{distilled}{ancestors}- Licence of what it learnt from: {licence}.

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


def _route(spec: Mapping[str, Any], labels: str) -> str:
    """What a sample is, and where its label comes from."""
    channels = ", ".join(spec["channels"])
    if not spec["channels"]:
        return f"It draws label maps\n({labels}) for an image model to follow."
    if spec.get("mask"):
        return (
            f"Its model in `labels/` draws a label map\n({labels}), and an image (channels: {channels}) is drawn that "
            "follows it. Images follow\nmasks that are given as well: `medgen generate --masks`."
        )
    return f"It draws an image\n(channels: {channels}) and its label map ({labels}) together."


def _codec(trained: Mapping[str, Any]) -> str:
    c, below = trained["codec"], trained.get("codec_below", [])
    whose = "held-out" if c["held_out"] else "training"
    kept = [f"PSNR {c['psnr_db']} dB, SSIM {c['ssim']}"] if c["psnr_db"] is not None else []
    text = f"- The codec keeps {', '.join(kept) or 'labels'} on {c['cases']} {whose} cases"
    if "effective_resolution_mm" in c:
        text += f"; effective resolution {' x '.join(f'{mm:g}' for mm in c['effective_resolution_mm'])} mm"
    if "dice" in c:
        text += "; Dice " + ", ".join(f"{name} {value}" for name, value in c["dice"].items())
    warning = f"- **Codec below its thresholds:** {'; '.join(below)}.\n" if below else ""
    return f"{text}.\n{warning}"


def _distilled(d: Mapping[str, Any]) -> str:
    steering = "and its steering " if d["steering"] else ""
    return (
        f"- Draws in {d['steps']} steps of Euler, one evaluation each, what `{d['teacher']}` (SHA-256 "
        f"{d['teacher_sha256']}) draws\n  in {d['teacher_steps']} steps of Heun with guidance {d['guidance']:g}; "
        f"that guidance {steering}is part of it: ask for no more, and for no other\n  number of steps. Its samples lie "
        f"{d['rmse']:g} from the teacher's (standardised latents, root mean square); the teacher's\n  own in as few "
        f"steps lie {d['rmse_teacher_in_as_many_steps']:g} away.\n"
    )


def _ancestor(a: Mapping[str, Any]) -> str:
    licence = f", licence: {a['licence']}" if a.get("licence") else ", licence not stated"
    return f"- Fine-tuned from `{a['name']}` (SHA-256 {a['sha256']}{licence}).\n"


def _column(c: Mapping[str, Any]) -> str:
    if c["kind"] == "text":
        return f"- `{c['name']}`: a text, of which {c['tokens']} tokens are read"
    if c["levels"]:
        return f"- `{c['name']}`: {', '.join(c['levels'])}"
    if c["minimum"] is None:
        return f"- `{c['name']}`: never observed"
    return f"- `{c['name']}`: {c['minimum']:g} to {c['maximum']:g} {c['unit']}".rstrip()
