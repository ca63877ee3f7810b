import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation

from medgen.errors import InputError
from medgen.prepare.grid import GeometryRecord, Grid, transform_points
from medgen.prepare.register import load_template, register
from medgen.volume import Volume, corners_mm

ANGLES = [8, -5, 6]


@pytest.fixture(scope="module")
def small() -> Volume:
    """The template at 4 mm, to be quick."""
    fine = load_template()
    smooth = gaussian_filter(fine.data[0], 1.5)[::4, ::4, ::4]
    return Volume(smooth[None], fine.affine @ np.diag([4.0, 4.0, 4.0, 1.0]))


def subject_of(template: Volume, world: np.ndarray) -> Volume:
    """The template as seen by a scanner of its own axes, moved by ``world`` (template to subject)."""
    centre = (np.array(template.shape) - 1) / 2
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("z", 10, degrees=True).as_matrix() @ np.diag([-4.0, 4.0, 4.0])
    affine[:3, 3] = transform_points(world @ template.affine, centre[None])[0] - affine[:3, :3] @ centre
    there = GeometryRecord(Grid(template.shape, template.affine), Grid(template.shape, affine), np.linalg.inv(world))
    return Volume(there.apply_image(template.data, fill=0.0), affine)


@pytest.mark.parametrize(("kind", "stretch"), [("rigid", (1, 1, 1)), ("affine", (0.88, 0.93, 0.9))])
def test_a_known_transform_is_found(small, kind, stretch):
    world = np.eye(4)
    world[:3, :3] = Rotation.from_euler("xyz", ANGLES, degrees=True).as_matrix() @ np.diag(stretch)
    world[:3, 3] = (12.0, -20.0, 90.0)
    found = register(subject_of(small, world), small, kind)
    points = corners_mm(small.shape, small.affine) * 0.6
    gap_mm = np.linalg.norm(transform_points(found, points) - transform_points(world, points), axis=1)
    assert gap_mm.max() < 4.0  # one voxel
    assert np.linalg.det(found[:3, :3]) == pytest.approx(np.linalg.det(world[:3, :3]), rel=0.04)


def test_registration_is_the_same_each_time(small):
    subject = subject_of(small, np.diag([0.95, 0.95, 0.95, 1.0]))
    assert np.array_equal(register(subject, small, "rigid"), register(subject, small, "rigid"))


def test_what_is_no_brain_of_a_human_is_refused(small):
    mouse = Volume(small.data, small.affine @ np.diag([0.1, 0.1, 0.1, 1.0]))
    with pytest.raises(InputError, match="could not be registered"):
        register(mouse, small, "affine", said_in="case m")
