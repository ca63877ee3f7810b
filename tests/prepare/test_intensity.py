import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medgen.errors import InputError
from medgen.prepare.bias import correct_bias
from medgen.prepare.foreground import find_foreground
from medgen.prepare.intensity import IntensityRecord, fit_intensity
from medgen.volume import read_volume


def ball(shape=(24, 26, 28), radius=9.0) -> np.ndarray:
    centre = (np.array(shape) - 1) / 2
    return np.linalg.norm(np.indices(shape) - centre[:, None, None, None], axis=0) < radius


def stripped(seed=0, mean=400.0, std=80.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.where(ball(), rng.normal(mean, std, size=ball().shape), 0.0).astype(np.float32)


def fit(image, percentiles=(0.5, 99.5)) -> IntensityRecord:
    return fit_intensity(image, find_foreground(image), percentiles, said_in="a.nii.gz")


def test_foreground_of_each_kind():
    rng = np.random.default_rng(0)
    assert find_foreground(stripped()).kind == "stripped"
    assert np.array_equal(find_foreground(stripped()).mask, ball())
    head = np.abs(stripped() + rng.normal(0, 8, size=ball().shape))
    found = find_foreground(head)
    assert found.kind == "otsu" and (found.mask == ball()).mean() > 0.99
    crop = rng.normal(400, 120, size=(30, 30, 30)).clip(0)
    assert find_foreground(crop).kind == "all" and find_foreground(crop).mask.all()
    given_mask = find_foreground(head, ball().astype(np.uint8))
    assert given_mask.kind == "mask" and given_mask.background is None


def test_air_of_a_ct_is_no_foreground():
    rng = np.random.default_rng(1)
    body = np.where(ball(radius=11), rng.normal(40, 30, size=ball().shape), -1000 + rng.normal(0, 5, ball().shape))
    assert find_foreground(body).kind == "otsu"
    assert (find_foreground(body).mask == ball(radius=11)).mean() > 0.99


def test_background_of_a_stripped_image_is_minus_one_and_comes_back():
    image = stripped()
    record = fit(image)
    prepared = record.apply(image)
    assert (prepared[~ball()] == -1.0).all() and record.lo == 0.0
    assert (record.invert(prepared)[~ball()] == 0.0).all()


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 99), scale=st.floats(1e-3, 1e5), offset=st.sampled_from([0.0, 5.0, -3.0]), whole=st.booleans()
)
def test_units_come_back_between_lo_and_hi(seed, scale, offset, whole):
    image = stripped(seed, 4.0 + offset, 1.0) * np.float32(scale)
    image = np.rint(image) if whole and scale > 10 else image
    record = fit(image)
    back = IntensityRecord.from_json(record.to_json()).invert(record.apply(image))
    kept = (image >= record.lo + 0.011 * (record.hi - record.lo)) & (image <= record.hi) & ball()
    assert kept.sum() > 0.9 * ball().sum()
    assert np.abs(back[kept] - image[kept]).max() <= 1e-5 * (record.hi - record.lo)
    assert record.integer == (back.dtype.kind in "iu")


def test_an_image_standardised_to_zero_mean_keeps_its_dark_half():
    image = stripped(0, 0.0, 1.0)
    record = fit(image)
    assert record.lo < -2 and record.clipped_low < 0.01
    prepared = record.apply(image)
    assert (prepared[~ball()] == -1.0).all()
    assert (record.invert(prepared)[~ball()] == 0.0).all()


def test_ringing_below_the_background_is_clipped():
    image = stripped()
    image[12, 13, 14] = -30.0
    record = fit(image)
    assert record.lo == 0.0 and 0 < record.clipped_low < 0.01
    assert record.apply(image)[12, 13, 14] == -1.0


def test_a_constant_image_is_refused():
    with pytest.raises(InputError, match=r"a\.nii\.gz is constant"):
        fit(np.full((8, 8, 8), 7.0))


def test_whole_numbers_come_back_as_the_smallest_type_that_holds_them():
    for hi, kind in ((200.0, np.uint8), (3000.0, np.int16), (1e5, np.int32)):
        assert IntensityRecord(0.0, hi, True).invert(np.array([-1.0, 1.0])).dtype == kind


def test_n4_takes_a_smooth_field_out():
    shape = (40, 40, 40)
    inside = ball(shape, 17)
    rng = np.random.default_rng(0)
    tissue = np.where(np.indices(shape)[2] % 12 < 6, 300.0, 500.0) + rng.normal(0, 5, shape)
    field = np.exp(0.6 * (np.indices(shape)[0] / 40 - 0.5))
    biased = np.where(inside, tissue * field, 0).astype(np.float32)
    corrected = correct_bias(biased, inside, (1.0, 1.0, 1.0), shrink=2)
    bright = inside & (np.indices(shape)[2] % 12 >= 6)

    def spread(x):
        return float(x[bright].std() / x[bright].mean())

    assert spread(corrected) < 0.4 * spread(biased)
    assert (corrected[~inside] == 0).all()
    assert corrected[inside].mean() == pytest.approx(biased[inside].mean(), rel=1e-4)


@pytest.mark.parametrize("channel", ["T1w", "T2w", "FLAIR"])
def test_negative_values_of_real_images(data_dir, channel):
    image = read_volume(data_dir("ms") / f"sub-ms19/anat/sub-ms19_{channel}.nii.gz").data[0]
    assert image.min() < 0
    record = fit(image)
    prepared = record.apply(image)
    assert record.lo == 0.0 and record.clipped_low < 0.02 and not record.integer
    assert (prepared[image == 0] == -1.0).all() and prepared.max() == 1.0
