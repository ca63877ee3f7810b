"""What a user may choose about preparation."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from medgen.errors import InputError
from medgen.files import digest, sha256_file
from medgen.prepare.resample import Interpolation

Registration = Literal["none", "rigid", "affine"]


@dataclass(frozen=True)
class PrepareOptions:
    """Choices, with defaults that suit most cohorts.

    Attributes:
        spacing_mm: edges of a prepared voxel along R, A, S; None takes the cohort's median voxel size.
        shape: of the prepared grid; None takes the smallest multiple of ``stride`` that covers every case's box.
        stride: every extent of the shape is a multiple of it (what the codec needs).
        n4: N4 bias field correction; not invertible.
        register: to the template: not at all, with 6 degrees of freedom or with 12.
        template: a NIfTI file; None is the skull-stripped 1 mm MNI152 T1 that nilearn ships.
        interpolation: of images, where a grid is not hit exactly.
        percentiles: of the foreground's intensities that become -1 and 1.
        crop: "foreground" covers each case's foreground and labels plus a margin, "none" its whole image.
        margin_voxels: prepared voxels around the foreground, as far as the image reaches.
        channels: those to keep, in order; None keeps all.
        half: store images as float16 (steps of 1/2048 at worst) rather than float32.
    """

    spacing_mm: float | tuple[float, float, float] | None = None
    shape: tuple[int, int, int] | None = None
    stride: int = 16
    n4: bool = False
    register: Registration = "none"
    template: Path | None = None
    interpolation: Interpolation = "linear"
    percentiles: tuple[float, float] = (0.5, 99.5)
    crop: Literal["foreground", "none"] = "foreground"
    margin_voxels: int = 2
    channels: tuple[str, ...] | None = None
    half: bool = True

    def __post_init__(self) -> None:
        if self.stride < 1:
            raise InputError(f"prepare: stride must be at least 1, not {self.stride}")
        if self.shape is not None and (min(self.shape) < 1 or any(n % self.stride for n in self.shape)):
            raise InputError(f"prepare: shape {list(self.shape)} must be multiples of the stride {self.stride}")
        spacing = self.spacing_mm if isinstance(self.spacing_mm, tuple) else (self.spacing_mm,)
        if any(s is not None and not 0 < s < 1000 for s in spacing):
            raise InputError(f"prepare: spacing_mm must be positive, not {self.spacing_mm}")
        low, high = self.percentiles
        if not 0 <= low < high <= 100:
            raise InputError(f"prepare: percentiles must rise within 0..100, not {list(self.percentiles)}")
        if self.margin_voxels < 0:
            raise InputError(f"prepare: margin_voxels must not be negative, not {self.margin_voxels}")
        for name, value, known in (
            ("register", self.register, ("none", "rigid", "affine")),
            ("interpolation", self.interpolation, ("linear", "bspline")),
            ("crop", self.crop, ("foreground", "none")),
        ):
            if value not in known:
                raise InputError(f"prepare: {name} is one of {', '.join(known)}, not '{value}'")
        if self.template is not None and not self.template.is_file():
            raise InputError(f"{self.template} does not exist; give a NIfTI file as the template")

    def to_json(self) -> dict[str, Any]:
        """As plain JSON, the template by its content."""
        template = None if self.template is None else sha256_file(self.template)
        return {**asdict(self), "template": template}

    def digest_of(self, *names: str) -> str:
        """Digest of some of the choices."""
        value: Mapping[str, Any] = self.to_json()
        return digest({name: value[name] for name in names})
