"""Rigid or affine registration of a subject to a template, as one 4x4 matrix."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
import SimpleITK as sitk  # noqa: N813
from scipy import ndimage

from medgen.errors import InputError
from medgen.prepare.foreground import find_foreground
from medgen.volume import Volume, read_volume

_BINS = 32
_WORKING_MM = 2.0
_SHRINK = (3, 2, 1)
_SMOOTH_MM = (4.0, 2.0, 1.0)
_SAMPLED = 0.2
_AROUND_MM = 10.0
_SCALES = (0.4, 2.5)
_FLIP = np.diag([-1.0, -1.0, 1.0, 1.0])


@contextmanager
def one_thread() -> Iterator[None]:
    """Keep SimpleITK to one thread: metric sums then have one order, and worker processes do not fight."""
    before = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    try:
        yield
    finally:
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(before)


@lru_cache(maxsize=2)
def load_template(path: Path | None = None) -> Volume:
    """The template: a NIfTI file of one channel, or the 1 mm MNI152 T1 brain that nilearn ships.

    Raises:
        InputError: unreadable, or more than one channel.
    """
    if path is not None:
        volume = read_volume(path)
        if volume.data.shape[0] != 1:
            raise InputError(f"{path} has {volume.data.shape[0]} channels; a template has one")
        return volume.reoriented("RAS")
    from nilearn.datasets import load_mni152_template  # slow to import, rarely needed

    image = load_mni152_template(resolution=1)
    return Volume(np.asarray(image.dataobj, dtype=np.float32)[None], np.asarray(image.affine, dtype=np.float64))


def register(
    moving: Volume, template: Volume, kind: Literal["rigid", "affine"] = "affine", *, said_in: str = "the image"
) -> np.ndarray:
    """Find the map from the template's world to the subject's.

    Centres of mass are laid on each other, then Mattes mutual information is climbed over three resolutions, rigidly
    first and then with 12 degrees of freedom. The result depends on the two images alone: one thread, fixed seed.

    Args:
        moving: the subject, (1, X, Y, Z).
        template: (1, X, Y, Z).
        kind: "rigid" or "affine".
        said_in: the subject's file, for the message.

    Returns:
        (4, 4), RAS+ millimetres of the template to RAS+ millimetres of the subject.

    Raises:
        InputError: nothing sensible was found (a scale beyond 0.4 to 2.5 along some axis).

    Reference:
        Mattes et al. 2003, "PET-CT image registration in the chest using free-form deformations", IEEE TMI 22(1).
    """
    fixed_image, moving_image = _to_itk(template), _to_itk(moving)
    mask = _mask(template, fixed_image)
    with one_thread():
        start = sitk.CenteredTransformInitializer(
            fixed_image, moving_image, sitk.Euler3DTransform(), sitk.CenteredTransformInitializerFilter.MOMENTS
        )
        rigid = sitk.Euler3DTransform(start)
        _climb(fixed_image, moving_image, mask, rigid, _SHRINK[:2], _SMOOTH_MM[:2], said_in)
        transform: sitk.Euler3DTransform | sitk.AffineTransform = rigid
        if kind == "affine":
            transform = sitk.AffineTransform(3)
            transform.SetCenter(rigid.GetCenter())
            transform.SetMatrix(rigid.GetMatrix())
            transform.SetTranslation(rigid.GetTranslation())
            _climb(fixed_image, moving_image, mask, transform, _SHRINK[1:], _SMOOTH_MM[1:], said_in)
    world = _FLIP @ _as_matrix(transform) @ _FLIP
    scales = np.linalg.svd(world[:3, :3], compute_uv=False)
    if scales.min() < _SCALES[0] or scales.max() > _SCALES[1]:
        raise InputError(
            f"{said_in} could not be registered to the template (scales {scales.round(2).tolist()}); "
            "check its orientation, or prepare without registration"
        )
    return world


def _climb(
    fixed: sitk.Image,
    moving: sitk.Image,
    mask: sitk.Image,
    transform: sitk.Transform,
    shrink: tuple[int, ...],
    smooth_mm: tuple[float, ...],
    said_in: str,
) -> None:
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(_BINS)
    method.SetMetricFixedMask(mask)
    method.SetMetricSamplingStrategy(method.REGULAR)
    method.SetMetricSamplingPercentagePerLevel([min(1.0, _SAMPLED * s / shrink[-1]) for s in shrink], seed=1)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(
        learningRate=2.0, minStep=0.01, numberOfIterations=100, relaxationFactor=0.6, gradientMagnitudeTolerance=1e-6
    )
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel(list(shrink))
    method.SetSmoothingSigmasPerLevel(list(smooth_mm))
    method.SmoothingSigmasAreSpecifiedInPhysicalUnitsOn()
    method.SetInitialTransform(transform, inPlace=True)
    try:
        method.Execute(fixed, moving)
    except RuntimeError as error:
        if "map outside" not in str(error):
            raise
        raise InputError(
            f"{said_in} could not be registered to the template (no overlap); "
            "check its voxel sizes and orientation, or prepare without registration"
        ) from None


def _mask(template: Volume, like: sitk.Image) -> sitk.Image:
    """The template's foreground and a rim: the edge of the brain says most."""
    inside = find_foreground(template.data[0]).mask
    rim = [2 * round(_AROUND_MM / s) + 1 for s in template.spacing_mm]
    grown = ndimage.maximum_filter(inside.astype(np.uint8), size=rim)
    mask = sitk.GetImageFromArray(np.ascontiguousarray(grown.T))
    _place(mask, template)
    return sitk.Resample(mask, like, sitk.Transform(), sitk.sitkNearestNeighbor)


def _to_itk(volume: Volume) -> sitk.Image:
    """A float image in ITK's LPS+ world, robustly clipped so that a bright vessel does not waste bins."""
    data = volume.data[0].astype(np.float32)
    inside = data[find_foreground(data).mask]
    low, high = np.percentile(inside, [0.5, 99.5])
    image = sitk.GetImageFromArray(np.ascontiguousarray(np.clip(data, min(low, float(data.min())), high).T))
    _place(image, volume)
    # Voxels finer than this cost time and add nothing to twelve parameters.
    return sitk.BinShrink(image, [max(1, int(_WORKING_MM / s + 0.01)) for s in volume.spacing_mm])


def _place(image: sitk.Image, volume: Volume) -> None:
    affine = _FLIP @ volume.affine
    spacing = np.array(volume.spacing_mm)
    image.SetOrigin(affine[:3, 3].tolist())
    image.SetSpacing(spacing.tolist())
    image.SetDirection((affine[:3, :3] / spacing).ravel().tolist())


def _as_matrix(transform: sitk.Euler3DTransform | sitk.AffineTransform) -> np.ndarray:
    """The map x -> A (x - c) + t + c as a (4, 4)."""
    matrix = np.eye(4)
    matrix[:3, :3] = np.array(transform.GetMatrix()).reshape(3, 3)
    centre = np.array(transform.GetCenter())
    matrix[:3, 3] = np.array(transform.GetTranslation()) + centre - matrix[:3, :3] @ centre
    return matrix
