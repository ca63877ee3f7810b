"""The anatomy of a phantom: the MNI152 template, warped by diffeomorphisms, with its labels.

A phantom is a *pull* map from its voxels to the template, so that each map of the template is sampled once::

    template point = exp(-a u) ( A ( exp(v) (x) ) )        x in RAS+ mm of the phantom

``v`` is a random smooth velocity, ``A`` the head's scale, aspect and pose, and ``u`` a fixed flow out of the lateral
ventricles. ``u`` is a potential flow: its sources are the ventricles, its sinks the white matter around them. The
amplitude ``a`` is solved so that the label, as written, holds the volume that the causal model asks for. The flow of a
smooth velocity is a diffeomorphism, and so is their composition: the Jacobian determinant stays positive.

Reference:
    Arsigny et al., A Log-Euclidean Framework for Statistics on Diffeomorphisms, MICCAI 2006 (scaling and squaring).
"""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage as ndi

from medgen.cohort.phantom_causal import Subject
from medgen.cohort.phantom_template import Grid, Template

CSF, GM, WM, VENTRICLES = 1, 2, 3, 4
LABEL_NAMES = {CSF: "CSF", GM: "GM", WM: "WM", VENTRICLES: "Ventricles"}

SQUARINGS = 6
BROAD_MM, BROAD_AMPLITUDE_MM = 22.0, 3.6  # velocity: shapes of lobes
FINE_MM, FINE_AMPLITUDE_MM = 10.0, 1.9  # velocity: shapes of gyri
MIRRORED = 0.6  # how far the right half of the velocity follows the left: heads are nearly symmetric
ASPECT_SPREAD = 0.025
ROTATION_SPREAD_DEG = 1.5
SHIFT_SPREAD_MM = 1.0
AMPLITUDE_RANGE = (-6.0, 12.0)  # of the ventricles' flow
VOLUME_TOLERANCE = 0.01


@dataclass(frozen=True)
class Anatomy:
    """A phantom before the scanner: fractions of tissue (X, Y, Z), a finer texture, and the label as written."""

    csf: np.ndarray
    gm: np.ndarray
    wm: np.ndarray
    brain: np.ndarray
    texture: np.ndarray
    label: np.ndarray


def exponential(velocity_mm: np.ndarray, grid: Grid) -> np.ndarray:
    """The displacement (3, X, Y, Z) in mm of the flow of a stationary velocity after unit time.

    Scaling and squaring: exp(v) = (exp(v / 2^n))^(2^n), the innermost factor taken as x + v / 2^n.
    """
    points = grid.points()
    displacement = velocity_mm / 2**SQUARINGS
    for _ in range(SQUARINGS):
        displacement = displacement + move(displacement, grid, points + displacement)
    return displacement


def move(displacement_mm: np.ndarray, grid: Grid, points_mm: np.ndarray) -> np.ndarray:
    """A displacement field at world points, (3, ...) in mm."""
    return np.stack([grid.sample(component, points_mm) for component in displacement_mm])


def random_velocity(rng: np.random.Generator, grid: Grid) -> np.ndarray:
    """A smooth random velocity (3, X, Y, Z) in mm: two scales of smoothed white noise."""
    velocity = np.zeros((3, *grid.shape), dtype=np.float32)
    for width_mm, amplitude_mm in ((BROAD_MM, BROAD_AMPLITUDE_MM), (FINE_MM, FINE_AMPLITUDE_MM)):
        width = width_mm / grid.spacing_mm
        # White noise smoothed by a Gaussian of width s has variance 1 / (2 sqrt(pi) s)^3.
        gain = amplitude_mm * (2 * np.sqrt(np.pi) * width) ** 1.5
        for component in velocity:
            noise = rng.standard_normal(grid.shape, dtype=np.float32)
            smooth = ndi.gaussian_filter(noise, width, mode="wrap")
            component += gain * (smooth - smooth.mean())  # a mean would be a shift, which the pose draws
    mirror = velocity[:, ::-1] * np.reshape([-1.0, 1.0, 1.0], (3, 1, 1, 1)).astype(np.float32)
    return (velocity + MIRRORED * mirror) / np.float32(np.hypot(1.0, MIRRORED))


def random_pose(rng: np.random.Generator, head_scale: float) -> np.ndarray:
    """The (4, 4) map A from head to template: scale, aspect of unit determinant, small rotation and shift."""
    aspect = ASPECT_SPREAD * rng.standard_normal(3)
    angles = np.deg2rad(ROTATION_SPREAD_DEG) * rng.standard_normal(3)
    linear = np.diag(np.exp(-(aspect - aspect.mean())) / head_scale)
    for axis, angle in enumerate(angles):
        i, j = [a for a in range(3) if a != axis]
        turn = np.eye(3)
        turn[i, i] = turn[j, j] = np.cos(angle)
        turn[i, j], turn[j, i] = -np.sin(angle), np.sin(angle)
        linear = linear @ turn
    pose = np.eye(4)
    pose[:3, :3] = linear
    pose[:3, 3] = SHIFT_SPREAD_MM * rng.standard_normal(3)
    return pose


def pull_map(template: Template, subject: Subject, rng: np.random.Generator) -> np.ndarray:
    """Template coordinates (3, X, Y, Z) in mm of every voxel of a subject, the ventricles at their drawn volume."""
    coarse, points = template.coarse, template.target.points()
    centre = np.reshape([(a + b) / 2 for a, b in zip(points[:, 0, 0, 0], points[:, -1, -1, -1], strict=True)], (3, 1))
    displacement = exponential(random_velocity(rng, coarse), coarse)
    pose = random_pose(rng, subject.head_scale)
    moved = (points + move(displacement, coarse, points)).reshape(3, -1)
    posed = (centre + pose[:3, :3] @ (moved - centre) + pose[:3, 3:]).reshape(points.shape)

    low, high = (np.reshape(b, (3, 1, 1, 1)) for b in template.ventricle_box_mm)
    near = posed[:, ((posed > low) & (posed < high)).all(axis=0)]
    amplitude = _solve_amplitude(template, near, subject.ventricles_ml)
    widened = exponential(-amplitude * template.ventricle_flow, coarse)
    return posed + move(widened, coarse, posed)


def _solve_amplitude(template: Template, near: np.ndarray, target_ml: float) -> float:
    """Secant steps on the logarithm of the label's volume, which grows with the amplitude, kept in a bracket."""
    coarse, grid = template.coarse, template.grid

    def excess(amplitude: float) -> float:
        displacement = exponential(-amplitude * template.ventricle_flow, coarse)
        inside = grid.sample(template.ventricles, near + move(displacement, coarse, near), outside=0.0) > 127.5
        return float(np.log(max(inside.sum(), 0.5) * template.target.voxel_ml / target_ml))

    low, high = AMPLITUDE_RANGE
    # About one voxel is the best that counting can do.
    tolerance = max(VOLUME_TOLERANCE, template.target.voxel_ml / target_ml)
    a, f = 0.0, excess(0.0)
    slope = 1.0
    for _ in range(12):
        if abs(f) <= tolerance:
            break
        low, high = (a, high) if f < 0 else (low, a)
        guess = a - f / slope
        if not low < guess < high:
            guess = (low + high) / 2
        f_guess = excess(guess)
        if f_guess != f:
            slope = max((f_guess - f) / (guess - a), 0.05)
        a, f = guess, f_guess
    return a


def make_anatomy(template: Template, subject: Subject, rng: np.random.Generator) -> Anatomy:
    """Sample the template's maps once through the subject's pull map and label the tissues."""
    points = pull_map(template, subject, rng)
    maps = (template.t1, template.gm, template.wm, template.sulci)
    t1, gm, wm, sulci = (template.grid.sample(m, points) / 255.0 for m in maps)
    brain = template.grid.sample(template.brain, points, outside=0.0) > 127.5
    chamber = template.grid.sample(template.ventricles, points, outside=0.0) / 255.0

    below = template.csf_below(subject.csf_share)
    sulcal = 1.0 / (1.0 + np.exp((sulci - below) / 0.035))
    wm_share = wm / np.maximum(gm + wm, 1e-3)
    solid = (1.0 - sulcal) * (1.0 - chamber)
    csf = chamber + (1.0 - chamber) * sulcal
    # What the template shows beyond the mean of its tissues: thalamus against cortex, tracts, cerebellum.
    texture = (t1 - (0.66 + 0.15 * wm_share)) * solid

    label = np.where(wm_share > 0.5, WM, GM)
    label = np.where(sulci < below, CSF, label)
    label = np.where(chamber > 0.5, VENTRICLES, label) * brain
    return Anatomy(csf, solid * (1.0 - wm_share), solid * wm_share, brain, texture, label.astype(np.uint8))
