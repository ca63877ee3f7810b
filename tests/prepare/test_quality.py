import numpy as np
import pytest

from medgen.prepare.quality import flag_outliers, noise_level, robust_z, signal_to_noise


def test_noise_of_known_size_is_found_beside_edges():
    rng = np.random.default_rng(0)
    steps = np.where(np.indices((40, 40, 40))[0] % 40 < 20, 100.0, 300.0)
    inside = np.ones(steps.shape, dtype=bool)
    assert noise_level(steps + rng.normal(0, 4, steps.shape), inside) == pytest.approx(4, rel=0.3)
    noisy = 200 + rng.normal(0, 4, steps.shape)
    assert signal_to_noise(noisy, inside, 0.0) == pytest.approx(50, rel=0.05)
    assert signal_to_noise(steps * 0 + 1, inside, 0.0) is None


def test_one_odd_case_is_flagged_and_missing_figures_are_not():
    rows = [{"ml": 10.0 + 0.1 * i, "snr": None} for i in range(9)] + [{"ml": 40.0, "snr": None}]
    flags = flag_outliers(rows)
    assert set(flags[-1]) == {"ml"} and flags[-1]["ml"] > 3.5
    assert not any(flags[:-1])


def test_too_few_or_equal_values_say_nothing():
    assert robust_z([1.0, 2.0, 100.0]) == [None] * 3
    assert robust_z([5.0] * 8) == [None] * 8
