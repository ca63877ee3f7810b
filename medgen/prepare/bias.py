"""N4 bias field correction. It is not invertible: which field a generated image should carry is unknown."""

import numpy as np
import SimpleITK as sitk  # noqa: N813


def correct_bias(
    image: np.ndarray, mask: np.ndarray, spacing_mm: tuple[float, float, float], *, shrink: int = 4
) -> np.ndarray:
    """Divide out the slowly varying field of a coil.

    The field is estimated on a grid ``shrink`` times coarser and divided out at full resolution. Voxels that are not
    positive take no part in the estimate (N4 works on logarithms).

    Args:
        image: (X, Y, Z) intensities.
        mask: (X, Y, Z) bool, where to estimate.
        spacing_mm: of the voxels.
        shrink: factor of the coarse grid; less where the image is small.

    Returns:
        float32 (X, Y, Z), with the foreground's mean as before.

    Reference:
        Tustison et al. 2010, "N4ITK: improved N3 bias correction", IEEE TMI 29(6).
    """
    usable = mask & (image > 0)
    if not usable.any():
        return image.astype(np.float32)
    full = sitk.GetImageFromArray(np.ascontiguousarray(image, dtype=np.float32))
    full.SetSpacing([float(s) for s in reversed(spacing_mm)])
    where = sitk.GetImageFromArray(usable.astype(np.uint8))
    where.CopyInformation(full)
    factors = [max(1, min(shrink, n // 16)) for n in full.GetSize()]
    n4 = sitk.N4BiasFieldCorrectionImageFilter()
    n4.SetMaximumNumberOfIterations([50, 50, 30])
    n4.Execute(sitk.Shrink(full, factors), sitk.Shrink(where, factors))
    log_field = sitk.GetArrayFromImage(n4.GetLogBiasFieldAsImage(full))
    # Far outside the mask the splines extrapolate freely.
    log_field = np.clip(log_field, *np.percentile(log_field[usable], [0.1, 99.9]))
    corrected = image / np.exp(log_field)
    mean = float(corrected[usable].mean())
    return (corrected * (float(image[usable].mean()) / mean)).astype(np.float32)
