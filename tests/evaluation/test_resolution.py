"""The resolution that a model claims is the one its codec was measured to have."""

from dataclasses import replace
from pathlib import Path

from medgen.files import read_json
from medgen.generation.model import read_spec


def test_sidecars_and_card_say_what_was_measured(tiny_run: Path) -> None:
    measured = read_json(tiny_run / "autoencoder" / "quality.json")["effective_resolution_mm"]
    spec, _ = read_spec(tiny_run / "model")
    assert list(spec.effective_resolution_mm) == measured and all(
        mm >= voxel for mm, voxel in zip(measured, spec.spacing_mm, strict=True)
    )
    sidecar = next(
        raw for p in sorted((tiny_run / "synthetic").rglob("*.json")) if "geometry_record" in (raw := read_json(p))
    )
    assert sidecar["effective_resolution_mm"] == measured
    said = f"effective resolution {' x '.join(f'{mm:g}' for mm in measured)} mm"
    assert said in (tiny_run / "model" / "README.md").read_text()
    # A model of before it was measured claims its grid's.
    old = replace(spec, trained_on={k: v for k, v in spec.trained_on.items() if k != "codec"})
    assert old.effective_resolution_mm == spec.spacing_mm
