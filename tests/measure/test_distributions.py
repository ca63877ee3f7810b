"""Figures between sets of features, against independent implementations and closed forms."""

import numpy as np
import pytest
from scipy import linalg, ndimage, stats
from sklearn.decomposition import PCA
from sklearn.metrics.pairwise import polynomial_kernel, rbf_kernel
from sklearn.neighbors import NearestNeighbors

from medgen.measure.bootstrap import bootstrap, percentile_interval
from medgen.measure.features import Projection
from medgen.measure.frechet import frechet, frechet_gaussians
from medgen.measure.mmd import median_bandwidth, mmd2, mmd2_polynomial, mmd2_rbf, polynomial, rbf
from medgen.measure.neighbours import first_to_second, leave_one_out, nearest, nearness, voxel_space
from medgen.measure.prdc import prdc

RNG = np.random.default_rng(0)
X, Y = RNG.normal(0, 1, (40, 6)), RNG.normal(0.4, 1.3, (31, 6))


def mmd2_by_loops(x, y, kernel):
    n, m = len(x), len(y)
    within_x = sum(kernel(x[i], x[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    within_y = sum(kernel(y[i], y[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return within_x + within_y - 2 * sum(kernel(a, b) for a in x for b in y) / (n * m)


def test_kernels_equal_sklearn():
    assert rbf(X, Y, 1.7) == pytest.approx(rbf_kernel(X, Y, gamma=1 / (2 * 1.7**2)))
    assert polynomial(X, Y) == pytest.approx(polynomial_kernel(X, Y, degree=3, coef0=1))  # gamma is 1 / d there


def test_mmd_equals_the_double_sums_of_the_paper():
    s = median_bandwidth(X)
    assert s == pytest.approx(np.median([np.linalg.norm(X[i] - X[j]) for i in range(40) for j in range(i)]))
    assert mmd2_rbf(X, Y, s) == pytest.approx(
        mmd2_by_loops(X, Y, lambda a, b: np.exp(-((a - b) ** 2).sum() / (2 * s**2)))
    )
    assert mmd2_polynomial(X, Y) == pytest.approx(mmd2_by_loops(X, Y, lambda a, b: (a @ b / 6 + 1) ** 3))


def test_mmd_is_unbiased_and_has_the_gaussian_closed_form():
    def draws(shift):
        sets = ((RNG.normal(0, 1, (12, 3)), RNG.normal(shift, 1, (9, 3))) for _ in range(3000))
        return np.array([mmd2_rbf(x, y, 1.5) for x, y in sets])

    null = draws(0.0)
    assert abs(null.mean()) < 4 * null.std() / np.sqrt(len(null)) and null.min() < 0
    # E k(x, y) for x - y ~ N(d, 2 I) is (s^2 / (s^2 + 2))^(D/2) exp(-|d|^2 / (2 (s^2 + 2))).
    s2 = 1.5**2
    expected = 2 * (s2 / (s2 + 2)) ** 1.5 * (1 - np.exp(-(3 * 0.8**2) / (2 * (s2 + 2))))
    moved = draws(0.8)
    assert moved.mean() == pytest.approx(expected, abs=4 * moved.std() / np.sqrt(len(moved)))


def test_a_bootstrap_of_mmd_is_not_shifted_by_rows_drawn_twice():
    x, y = RNG.normal(0, 1, (2, 40, 4))
    s = median_bandwidth(x)
    k = rbf(x, x, s), rbf(y, y, s), rbf(x, y, s)
    replicates = [mmd2(*k, RNG.integers(0, 40, 40), RNG.integers(0, 40, 40)) for _ in range(400)]
    assert np.mean(replicates) == pytest.approx(mmd2(*k), abs=0.003)


def test_frechet_equals_scipy_and_the_one_dimensional_form():
    cx, cy = np.cov(X.T), np.cov(Y.T)
    expected = ((X.mean(0) - Y.mean(0)) ** 2).sum() + np.trace(cx + cy - 2 * linalg.sqrtm(cx @ cy).real)
    assert frechet(X, Y) == pytest.approx(expected) and frechet(X, X) == pytest.approx(0, abs=1e-9)
    sx, sy = X[:, :1].std(ddof=1), Y[:, :1].std(ddof=1)
    one = (X[:, 0].mean() - Y[:, 0].mean()) ** 2 + (sx - sy) ** 2
    assert frechet(X[:, :1], Y[:, :1]) == pytest.approx(one)


def test_frechet_of_singular_covariances():
    wide = np.diag([4.0, 0.0, 0.0])
    tilted = np.diag([0.0, 9.0, 0.0])
    # Orthogonal lines: no transport along either is shared.
    assert frechet_gaussians(np.zeros(3), wide, np.zeros(3), tilted) == pytest.approx(13)
    assert frechet_gaussians(np.zeros(3), wide, np.ones(3), wide) == pytest.approx(3)
    few = RNG.normal(size=(4, 20))
    assert np.isfinite(frechet(few, few + 1)) and frechet(few, few + 1) == pytest.approx(20, rel=1e-6)


def prdc_by_sklearn(real, made, k):
    def radii(points):
        return NearestNeighbors(n_neighbors=k + 1).fit(points).kneighbors(points)[0][:, k]

    r_real, r_made = radii(real), radii(made)
    hits = np.array([[np.linalg.norm(r - m) <= r_real[i] for m in made] for i, r in enumerate(real)])
    back = np.array([[np.linalg.norm(r - m) <= r_made[j] for j, m in enumerate(made)] for r in real])
    return hits.any(0).mean(), back.any(1).mean(), hits.sum(0).mean() / k, hits.any(1).mean()


@pytest.mark.parametrize("k", [1, 3, 5])
def test_prdc_equals_an_implementation_on_sklearn(k):
    assert tuple(prdc(X, Y, k).means().values()) == pytest.approx(prdc_by_sklearn(X, Y, k))


def test_prdc_tells_collapse_from_noise():
    real = RNG.normal(size=(60, 4))
    collapsed = prdc(real, np.repeat(real[:3], 20, axis=0) + RNG.normal(0, 0.01, (60, 4)), 5).means()
    assert collapsed["precision"] > 0.9 and collapsed["recall"] < 0.1 and collapsed["coverage"] < 0.5
    noisy = prdc(real, RNG.normal(0, 6, (60, 4)), 5).means()
    assert noisy["precision"] < 0.2 and noisy["coverage"] < 0.2
    same = prdc(real, RNG.normal(size=(60, 4)), 5).means()
    assert min(same["precision"], same["recall"], same["coverage"]) > 0.7 and same["density"] == pytest.approx(
        1, abs=0.4
    )


def test_projection_equals_sklearn_up_to_its_one_scale():
    data = RNG.normal(size=(50, 30)) @ RNG.normal(size=(30, 30))
    p, pca = Projection.fit(data, 8), PCA(8).fit(data)
    ours, theirs = p(data), pca.transform(data)
    assert np.abs(ours * p.scale) == pytest.approx(np.abs(theirs), abs=1e-8)
    assert p.explained == pytest.approx(pca.explained_variance_ratio_.sum())
    assert ours.var(axis=0, ddof=1).mean() == pytest.approx(1)
    assert Projection.fit(data[:5], 16)(data).shape == (50, 4)  # five cases span four directions


def test_nearest_neighbours_equal_sklearn():
    distance, row = nearest(Y, X)
    expected = NearestNeighbors(n_neighbors=1).fit(X).kneighbors(Y)
    assert distance == pytest.approx(expected[0][:, 0]) and (row == expected[1][:, 0]).all()
    assert leave_one_out(X) == pytest.approx(NearestNeighbors(n_neighbors=2).fit(X).kneighbors(X)[0][:, 1])


def test_copies_are_seen_and_new_draws_are_not():
    train, held_out = RNG.normal(size=(200, 5)), RNG.normal(size=(60, 5))
    copied = nearness(train[:40] + RNG.normal(0, 0.01, (40, 5)), held_out, train)
    assert copied.copies == 1 and copied.ratio < 0.1 and copied.held_out_copies < 0.1
    fresh = nearness(RNG.normal(size=(60, 5)), held_out, train)
    assert fresh.copies < 0.1 and fresh.ratio == pytest.approx(1, abs=0.25)
    assert fresh.threshold == pytest.approx(np.quantile(leave_one_out(train), 0.01))


def test_softness_looks_like_copying_by_distance_and_not_by_ratio():
    train, held_out, new = RNG.normal(size=(150, 20)), RNG.normal(size=(40, 20)), RNG.normal(size=(60, 20))
    fresh, soft, copied = (nearness(s, held_out, train, 0.05) for s in (new, 0.5 * new, 0.8 * train[:60] + 0.1 * new))
    assert soft.copies > 0.5 > 0.2 > fresh.copies
    assert max(fresh.singled_out, soft.singled_out) < 0.2 and copied.singled_out > 0.9
    assert first_to_second(np.array([[3.0, 1.0, 2.0], [0.0, 5.0, 4.0]])) == pytest.approx([0.5, 0.0])
    assert (first_to_second(np.array([[3.0]])) == 1).all() and (first_to_second(np.array([[3.0, np.inf]])) == 1).all()


def test_voxel_space_is_the_rms_of_block_means():
    a, b = RNG.normal(size=(2, 2, 6, 5, 4))
    # sklearn has no block mean: scipy's uniform filter, read at the middle of every block, is one.
    means = [np.stack([ndimage.uniform_filter(c, 2, origin=-1)[:6:2, :4:2, :4:2] for c in v]) for v in (a, b)]
    expected = np.sqrt(((means[0] - means[1]) ** 2).mean())
    assert np.linalg.norm(voxel_space(a) - voxel_space(b)) == pytest.approx(expected)
    assert np.linalg.norm(voxel_space(a, 1) - voxel_space(b, 1)) == pytest.approx(np.sqrt(((a - b) ** 2).mean()))


def test_bootstrap_equals_scipy():
    data = RNG.gamma(2, 1, 60)
    ours = bootstrap(lambda rows: float(data[rows].mean()), 60, resamples=4000)
    theirs = stats.bootstrap((data,), np.mean, n_resamples=4000, method="percentile", rng=1).confidence_interval
    assert ours.value == pytest.approx(data.mean())
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.03)
    again = bootstrap(lambda rows: float(data[rows].mean()), 60, resamples=4000)
    assert again == ours


def test_intervals_recentre_and_survive_undefined_replicates():
    replicates = np.array([1.0, 2.0, 3.0, np.nan])
    assert percentile_interval(5.0, replicates, level=0.5, recentre=True).low == pytest.approx(4.5)
    assert percentile_interval(5.0, replicates, level=0.5).high == pytest.approx(2.5)
    undefined = percentile_interval(float("nan"), replicates).to_json()
    assert undefined == {"value": None, "low": None, "high": None}
