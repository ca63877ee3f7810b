import numpy as np
import pytest

from medgen.edit.flow import coarse, exponential, jacobian, pull, refine
from medgen.edit.homotopy import follow, simple, to_count
from medgen.edit.push import solve
from medgen.measure.topology import topology


def test_the_exponential_of_a_linear_velocity_is_the_matrix_exponential():
    x = np.stack(np.meshgrid(*(np.arange(24.0) - 11.5,) * 3, indexing="ij"))
    moved = exponential((0.1 * x).astype(np.float32))
    inner = (slice(None), *(slice(8, 16),) * 3)
    np.testing.assert_allclose(moved[inner], (np.exp(0.1) - 1) * x[inner], atol=5e-3)
    np.testing.assert_allclose(jacobian(moved)[8:16, 8:16, 8:16], np.exp(0.3), atol=5e-3)


def test_pulling_by_whole_voxels_copies():
    ids = np.random.default_rng(0).integers(0, 4, (9, 8, 7)).astype(np.int16)
    shift = np.zeros((3, 9, 8, 7), np.float32)
    shift[0] = 1
    for nearest in (False, True):
        np.testing.assert_array_equal(pull(ids, shift, nearest=nearest)[:-1], ids[1:])


def test_the_largest_partial_volume_wins():
    ids = np.zeros((4, 1, 1), np.int16)
    ids[2:] = 5
    shift = np.zeros((3, 4, 1, 1), np.float32)
    for by, first in ((0.4, 2), (0.6, 1)):
        shift[0] = by
        assert np.flatnonzero(pull(ids, shift))[0] == first


def test_a_linear_field_is_refined_exactly_inside():
    x = np.arange(12.0)[:, None, None] * np.ones((1, 6, 5))
    fine = refine(coarse(x, (3, 2, 2)), (3, 2, 2), tuple(slice(0, n) for n in x.shape))
    np.testing.assert_allclose(fine[1:-1], x[1:-1], atol=1e-5)


def test_the_potential_solves_its_equation():
    rate = np.random.default_rng(0).standard_normal((7, 6, 5))
    spacing = (1.0, 2.0, 1.5)
    u = np.pad(solve(rate, spacing), 1, mode="edge")  # no flow through the faces
    core = u[1:-1, 1:-1, 1:-1]
    ends = ((u[2:, 1:-1, 1:-1], u[:-2, 1:-1, 1:-1]), (u[1:-1, 2:, 1:-1], u[1:-1, :-2, 1:-1]),
            (u[1:-1, 1:-1, 2:], u[1:-1, 1:-1, :-2]))  # fmt: skip
    laplace = sum((a + b - 2 * core) / s**2 for (a, b), s in zip(ends, spacing, strict=True))
    np.testing.assert_allclose(laplace, rate - rate.mean(), atol=1e-4)


def test_simple_voxels_are_those_that_change_no_figure():
    """Components and Euler number of the voxels and of what is around them, counted before and after."""
    rng = np.random.default_rng(1)
    where = (1 * 3 + 1) * 3 + 1
    for density in (0.15, 0.3, 0.5, 0.7, 0.85):
        for _ in range(30):
            cube = rng.random((3, 3, 3)) < density
            one = bool(simple(np.ascontiguousarray(cube), np.array([where]))[0])
            on, off = cube.copy(), cube.copy()
            on[1, 1, 1], off[1, 1, 1] = True, False
            a, b = topology(on), topology(off)
            if one:
                assert (a.components, a.euler) == (b.components, b.euler)
            elif (a.components, a.euler) == (b.components, b.euler):
                # The same figures by chance: a tunnel and a piece come together.
                assert b.components != 1 or off.sum() > 1


def ring(n=15):
    x, y, z = np.meshgrid(*(np.arange(n) - n // 2,) * 3, indexing="ij")
    return np.abs(np.hypot(x, y) - 4) + np.abs(z) <= 1.5


@pytest.mark.parametrize("share", [0.4, 0.7, 1.6, 2.5])
def test_a_ring_stays_a_ring_at_any_volume(share):
    mask = ring()
    count = round(share * mask.sum())
    score = np.random.default_rng(0).random(mask.shape)
    changed = to_count(mask, count, score, np.ones_like(mask))
    assert changed.sum() == count
    assert (topology(changed).components, topology(changed).euler) == (1, 0)


def test_following_a_ball_leaves_a_hole_in_the_ring():
    mask = ring()
    x, y, z = np.meshgrid(*(np.arange(15) - 7,) * 3, indexing="ij")
    ball = x**2 + y**2 + z**2 <= 36
    after = follow(mask, ball)
    assert (topology(after).components, topology(after).euler) == (1, 0)
    assert (after != ball).sum() < 0.1 * ball.sum()
