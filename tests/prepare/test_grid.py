import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation

from medgen.cohort.load import LoadedCase
from medgen.measure.overlap import dice
from medgen.prepare.grid import GeometryRecord, Grid
from medgen.prepare.options import PrepareOptions
from medgen.prepare.plan import make_plan, target_grid
from medgen.prepare.resample import copy_voxels, exact_steps, resample_label
from medgen.prepare.scan import scan_loaded
from medgen.volume import Volume, corners_mm

FEW = settings(max_examples=15, deadline=None)
FLIPS = [
    np.array([[s if p[i] == j else 0 for j in range(3)] for i, s in enumerate(signs)], dtype=float)
    for p in itertools.permutations(range(3))
    for signs in itertools.product((1.0, -1.0), repeat=3)
]

degrees = st.floats(-60, 60)
edges = st.floats(0.5, 3.0)
metres = st.floats(-200, 200)
oblique = st.tuples(st.tuples(degrees, degrees, degrees), st.tuples(edges, edges, edges), st.sampled_from(FLIPS))


def affine_of(how, origin=(0.0, 0.0, 0.0)) -> np.ndarray:
    angles, spacing, flip = how
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", angles, degrees=True).as_matrix() @ flip @ np.diag(spacing)
    affine[:3, 3] = origin
    return affine


def blobs(shape, count: int, seed: int) -> np.ndarray:
    """A label map of smooth bodies."""
    rng = np.random.default_rng(seed)
    fields = np.stack([gaussian_filter(rng.normal(size=shape), 4.0) for _ in range(count + 1)])
    return fields.argmax(axis=0).astype(np.uint8)


def planned(data: np.ndarray, affine: np.ndarray, options: PrepareOptions) -> GeometryRecord:
    loaded = LoadedCase({"T1w": Volume(data[None].astype(np.float32), affine)}, None, None)
    scan = scan_loaded(loaded, options, ("T1w",), said_in="a case")
    return GeometryRecord(scan.source, target_grid(scan, make_plan([scan], options, ("T1w",)), options), scan.world)


@FEW
@given(how=oblique, origin=st.tuples(metres, metres, metres), moved=oblique, spacing=edges)
def test_points_come_back_within_a_thousandth_of_a_millimetre(how, origin, moved, spacing):
    affine = affine_of(how, origin)
    data = np.random.default_rng(0).normal(size=(9, 11, 13))
    record = planned(data, affine, PrepareOptions(spacing_mm=spacing, stride=4))
    record = GeometryRecord(record.source, record.target, affine_of(moved, (3.0, -2.0, 7.0)))
    read = GeometryRecord.from_json(json.loads(json.dumps(record.to_json())))
    points = corners_mm((9, 11, 13), affine)
    assert np.abs(read.to_source_points(read.to_prepared_points(points)) - points).max() < 1e-3
    voxels = np.array([[0.0, 0, 0], [8, 10, 12], [3.3, 2.1, 7.7]])
    prepared = read.to_prepared_voxels(voxels)
    in_mm = prepared @ record.target.affine[:3, :3].T + record.target.affine[:3, 3]
    back = read.to_source_points(in_mm)
    assert np.abs(back - (voxels @ affine[:3, :3].T + affine[:3, 3])).max() < 1e-3
    assert np.abs(read.to_source_voxels(prepared) - voxels).max() < 1e-6


@FEW
@given(how=oblique, origin=st.tuples(metres, metres, metres), shape=st.tuples(*[st.integers(3, 17)] * 3))
def test_prepared_axes_run_towards_ras_and_the_record_is_json(how, origin, shape):
    source = Grid(shape, affine_of(how, origin))
    ras = source.ras()
    assert Volume(np.zeros((1, *ras.shape)), ras.affine).orientation == "RAS"
    # Rounded before they are sorted: an angle of 1e-273 degrees puts corners in another order.
    ours, theirs = (sorted(np.round(corners_mm(*_pair(g)), 6).tolist()) for g in (ras, source))
    assert np.allclose(ours, theirs, atol=1e-5)
    record = GeometryRecord(source, ras, np.eye(4))
    read = GeometryRecord.from_json(json.loads(json.dumps(record.to_json())))
    assert np.array_equal(read.source.affine, source.affine) and read.source.shape == shape
    assert np.array_equal(read.index_map, record.index_map)


def _pair(grid: Grid):
    return grid.shape, grid.affine


@FEW
@given(how=oblique, origin=st.tuples(metres, metres, metres), seed=st.integers(0, 99))
def test_flips_permutations_crops_and_pads_are_exact(how, origin, seed):
    """Without a change of spacing nothing is interpolated, however oblique the scan is."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 5, size=(7, 10, 12)).astype(np.uint8)
    image = rng.normal(size=label.shape).astype(np.float32)
    affine = affine_of((how[0], (1.1, 1.1, 1.1), how[2]), origin)
    record = planned(image, affine, PrepareOptions(crop="none", stride=8))
    assert record.target.shape == tuple(8 * -(-n // 8) for n in record.source.ras().shape)
    assert exact_steps(record.index_map, record.target.shape) is not None
    prepared = record.apply_label(label)
    assert np.array_equal(np.bincount(prepared[prepared > 0]), np.bincount(label[label > 0]))
    assert np.array_equal(record.invert_label(prepared), label)
    assert np.array_equal(record.invert_image(record.apply_image(image)), image)


@pytest.mark.parametrize("flip", FLIPS[::5])
def test_copying_agrees_with_a_loop_over_voxels(flip):
    data = np.arange(4 * 5 * 6, dtype=np.float32).reshape(4, 5, 6)
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = flip, (2, -1, 3)
    shape = (5, 7, 6)
    steps = exact_steps(matrix, shape)
    expected = np.full(shape, -7.0, dtype=np.float32)
    for t in np.ndindex(shape):
        s = (flip @ t + (2, -1, 3)).astype(int)
        if (s >= 0).all() and (s < data.shape).all():
            expected[t] = data[tuple(s)]
    assert np.array_equal(copy_voxels(data, steps, shape, -7.0), expected)


def test_copying_from_afar_is_all_fill():
    matrix = np.eye(4)
    matrix[0, 3] = 50
    steps = exact_steps(matrix, (3, 3, 3))
    assert (copy_voxels(np.ones((4, 4, 4)), steps, (3, 3, 3), 9.0) == 9.0).all()


@settings(max_examples=5, deadline=None)
@given(how=oblique, seed=st.integers(0, 99))
def test_labels_survive_an_oblique_round_trip(how, seed):
    label = np.pad(blobs((34, 34, 34), 5, seed), 15)
    source = Grid(label.shape, affine_of((how[0], (1.0, 1.0, 1.0), how[2])))
    centre = np.array([(n - 1) / 2 for n in label.shape])
    target = Grid(label.shape, np.eye(4))
    world = np.eye(4)
    world[:3, 3] = source.affine[:3, :3] @ centre - centre + 0.37
    record = GeometryRecord(source, target, world)
    back = record.invert_label(record.apply_label(label))
    large = [i for i in range(1, 6) if (label == i).sum() > 1000]
    assert large and min(dice(back, label, large)) >= 0.95


def test_a_hundred_labels_go_as_two_do():
    label = np.kron(np.arange(125).reshape(5, 5, 5), np.ones((6, 6, 6))).astype(np.int32)
    matrix = np.eye(4)
    matrix[:3, 3] = 0.25
    moved = resample_label(label, matrix, label.shape)
    assert moved.dtype == np.int32 and set(np.unique(moved)) == set(range(125))
    assert (moved == label)[:-1, :-1, :-1].all()


def test_argmax_matches_the_dense_computation():
    """Running maxima on bounding boxes give what all partial volumes at once give."""
    label = blobs((20, 22, 24), 4, 3)
    matrix = affine_of(((12, -7, 30), (1.7, 1.3, 2.1), np.eye(3)), (1.3, -0.4, 2.2))
    shape = (12, 14, 11)
    dense = []
    for k in range(5):
        hot = (label == k).astype(np.uint8)
        record = GeometryRecord(Grid(label.shape, np.eye(4)), Grid(shape, matrix), np.eye(4))
        dense.append(record.apply_image(hot, fill=float(k == 0)))
    ours = resample_label(label, matrix, shape)
    top = np.sort(dense, axis=0)
    clear = top[-1] - top[-2] > 1e-4
    assert clear.mean() > 0.95
    assert np.array_equal(ours[clear], np.argmax(dense, axis=0)[clear])


def test_upsampled_probabilities_are_smoother_than_upsampled_labels():
    """A ball of radius 20 at 3 mm, back on 1 mm: soft probabilities keep its surface."""
    fine = Grid((60, 60, 60), np.eye(4))
    radius = np.linalg.norm(np.indices(fine.shape) - 29.5, axis=0)
    ball = (radius < 20).astype(np.uint8)
    coarse = np.diag([3.0, 3.0, 3.0, 1.0])
    coarse[:3, 3] = 1.0
    record = GeometryRecord(fine, Grid((20, 20, 20), coarse), np.eye(4))
    share = record.apply_image(ball, fill=0.0)
    smooth = record.invert_probabilities(np.stack([1 - share, share]))
    blocky = record.invert_label(record.apply_label(ball))
    assert smooth.dtype == np.uint8
    assert dice(smooth, ball, [1])[0] > 0.985 and dice(smooth, ball, [1]) > dice(blocky, ball, [1])


@pytest.mark.parametrize("interpolation", ["linear", "bspline"])
def test_images_resample_a_ramp_exactly_and_do_not_alias(interpolation):
    grid = Grid((40, 40, 40), np.eye(4))
    inside = np.diag([3.0, 3.0, 3.0, 1.0])
    inside[:3, 3] = 8.5
    record = GeometryRecord(grid, Grid((8, 8, 8), inside), np.eye(4))
    x = np.indices(grid.shape)[0].astype(np.float32)
    assert np.abs(record.apply_image(x, interpolation=interpolation)[:, 0, 0] - (8.5 + 3 * np.arange(8))).max() < 1e-3
    stripes = np.where(x % 2 == 0, 1.0, -1.0)
    assert np.abs(record.apply_image(stripes, interpolation=interpolation)).max() < 0.05


def test_volume_of_a_registered_voxel_is_the_subjects():
    world = np.diag([0.9, 0.8, 0.7, 1.0])
    record = GeometryRecord(Grid((9, 9, 9), np.eye(4)), Grid((9, 9, 9), np.diag([2.0, 2, 2, 1])), world)
    assert record.voxel_ml == pytest.approx(8 * 0.9 * 0.8 * 0.7 / 1000)
