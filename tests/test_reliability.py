"""Calibration errors and central intervals agree with scikit-learn and SciPy."""

import numpy as np
import pytest
from scipy import stats
from sklearn.calibration import calibration_curve

from keras_uncertainty_mtl.reliability import central_mass, reliability


def probabilities_of(samples, *classes, seed=0):
    return np.random.default_rng(seed).dirichlet(np.full(classes or 2, 0.7), size=samples)


@pytest.mark.parametrize("bins", [1, 7, 10])
@pytest.mark.parametrize("shape", [(), (1,)])
def test_the_reliability_of_flags_is_that_of_scikit_learn(bins, shape):
    probabilities = probabilities_of(500)[:, 0]
    labels = np.random.default_rng(1).random(500) < probabilities**2
    found = reliability(labels, probabilities.reshape(500, *shape), bins)
    frequency, confidence = calibration_curve(labels, probabilities, n_bins=bins)
    np.testing.assert_allclose(found.frequency, frequency)
    np.testing.assert_allclose(found.confidence, confidence)
    assert found.share.sum() == pytest.approx(1)


@pytest.mark.parametrize("pixels", [(), (4, 3)])
def test_classes_are_compared_by_their_most_likely_one(pixels):
    probabilities = probabilities_of(500, 3).repeat(np.prod(pixels, dtype=int), axis=0)
    rng = np.random.default_rng(1)
    labels = rng.integers(3, size=len(probabilities))
    frequency, confidence = calibration_curve(
        labels == probabilities.argmax(axis=1), probabilities.max(axis=1), n_bins=10
    )
    found = reliability(
        labels.reshape(500, *pixels), probabilities.reshape(500, *pixels, 3), bins=10
    )
    np.testing.assert_allclose(found.frequency, frequency)
    np.testing.assert_allclose(found.confidence, confidence)


def test_the_calibration_error_is_the_mean_distance():
    # Two of three predictions at 0.9 come true, and the one at 0.6 does.
    probabilities = np.array([[0.9, 0.1], [0.1, 0.9], [0.9, 0.1], [0.6, 0.4]])
    found = reliability([0, 1, 1, 0], probabilities)
    assert found.expected_calibration_error == pytest.approx(0.75 * (0.9 - 2 / 3) + 0.25 * 0.4)


def test_certainty_is_in_the_last_bin():
    found = reliability([1, 0], [1.0, 0.0], bins=4)
    np.testing.assert_array_equal(found.confidence, [0, 1])
    assert found.expected_calibration_error == 0


@pytest.mark.parametrize(
    ("labels", "probabilities"), [((5,), (4, 3)), ((4, 3), (4,)), ((4,), (5,))]
)
def test_shapes_of_labels_and_probabilities_must_fit(labels, probabilities):
    with pytest.raises(ValueError, match=r"`probabilities` must have the shape.*Received: labels"):
        reliability(np.zeros(labels, int), np.full(probabilities, 0.5))


CLASSES = np.array([[0.9, 0.1], [0.2, 0.8], [0.5, 0.5]])


@pytest.mark.parametrize(
    ("labels", "received"),
    [([0, -1, 1], "from -1 to 1"), ([0, 2, 1], "from 0 to 2"), ([0, np.nan, 1], "nan")],
)
@pytest.mark.parametrize("probabilities", [CLASSES, CLASSES[:, 0]])
def test_labels_that_are_no_classes_are_refused(labels, received, probabilities):
    message = f"`labels` must be whole numbers from 0 to 1.*Received: .*{received}.*observed"
    with pytest.raises(ValueError, match=message):
        reliability(labels, probabilities)


@pytest.mark.parametrize(
    "no_probabilities",
    [
        [[2.0, -1.0], [0.5, 0.5], [0.5, 0.5]],
        [[0.3, 0.3], [0.5, 0.5], [0.5, 0.5]],  # the first row adds up to 0.6
        [[np.nan, 1.0], [0.5, 0.5], [0.5, 0.5]],
        [-3.0, 0.5, 0.5],
        [0.2, 0.5, 1.1],
        [0.2, np.nan, 0.5],
    ],
)
def test_logits_are_refused(no_probabilities):
    with pytest.raises(ValueError, match=r"`probabilities` must be between 0 and 1.*Received: val"):
        reliability([0, 1, 1], no_probabilities)


def test_rounded_probabilities_are_accepted():
    rng = np.random.default_rng(0)
    probabilities = probabilities_of(100, 50).astype("float16")
    exact = probabilities.astype("float64") / probabilities.sum(axis=-1, dtype="float64")[:, None]
    labels = rng.integers(50, size=100)
    errors = [reliability(labels, p).expected_calibration_error for p in (probabilities, exact)]
    np.testing.assert_allclose(*errors, atol=1e-2)


@pytest.mark.parametrize(
    ("name", "distribution"), [("gaussian", stats.norm), ("laplace", stats.laplace)]
)
@pytest.mark.parametrize("level", [0.1, 0.5, 0.95, 0.999])
def test_a_target_at_the_end_of_a_central_interval_has_its_mass(name, distribution, level):
    locations, scales = np.array([[1.0], [-30.0]]), np.array([[0.1], [7.0]])
    for end in distribution.interval(level, locations, scales):
        np.testing.assert_allclose(central_mass(end, locations, scales, name), level, rtol=1e-9)
        of_vector = central_mass(end[:, 0], locations, scales, name)
        np.testing.assert_allclose(of_vector, level, rtol=1e-9)


def test_other_distributions_and_shapes_are_refused():
    with pytest.raises(ValueError, match=r"one of \['gaussian', 'laplace'\]. Received: 'cauchy'"):
        central_mass([1.0], [1.0], [1.0], "cauchy")
    for shapes in ((3, 1), (4,), (4,)), ((4,), (4,), (1,)), ((4, 3), (4,), (4,)):
        with pytest.raises(ValueError, match=r"one shape. Received: the shapes \("):
            central_mass(*map(np.ones, shapes))


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("place", ["targets", "locations", "scales"])
def test_a_nan_or_infinity_is_refused(place, value):
    arrays = {name: np.ones(4) for name in ("targets", "locations", "scales")}
    arrays[place][2] = value
    with pytest.raises(ValueError, match=f"`{place}` must be finite. Received: 1 NaN .* of 4"):
        central_mass(**arrays)


@pytest.mark.parametrize("scale", [0.0, -2.0])
def test_a_scale_that_is_not_positive_is_refused(scale):
    with pytest.raises(ValueError, match=f"`scales` must be positive. Received: .*{scale}"):
        central_mass([1.0, 2.0], [1.0, 2.0], [1.0, scale])
