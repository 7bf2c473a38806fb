"""Rules of the literature have the losses and weights of their papers' equations."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy import special

from benchmarks import methods
from keras_uncertainty_mtl import Categorical, Gaussian, Laplace

pytestmark = pytest.mark.backends("tensorflow", reason="the benchmarks run on TensorFlow")

TASKS = {"square": Gaussian(), "value": Laplace(), "class": Categorical()}
LOSSES = np.array([4.0, 0.5, 1.25])


def built(rule, *arguments, **keywords):
    layer = rule(TASKS, *arguments, **keywords)
    layer.build({"square": (None, 1), "value": (None, 1), "class": (None, 3)})
    return layer


def loss_and_weights(layer, losses=LOSSES):
    """The combined loss, and its gradient in each of the tasks' losses."""
    losses = tf.constant(losses, "float32")
    with tf.GradientTape() as tape:
        tape.watch(losses)
        loss = layer.weigh(losses)
    return float(loss), tape.gradient(loss, losses).numpy()


def assert_weighs(layer, weights, losses=LOSSES):
    loss, found = loss_and_weights(layer, losses)
    np.testing.assert_allclose(found, weights, rtol=1e-5)
    assert loss == pytest.approx(np.dot(weights, losses), rel=1e-5)


def test_raw_losses_are_those_of_keras():
    rng = np.random.default_rng(0)
    targets = {
        "square": rng.normal(size=(8, 1)),
        "value": rng.normal(size=(8, 1)),
        "class": rng.integers(0, 3, size=8),
    }
    predictions = {
        task: rng.normal(size=(8, size)) for task, size in zip(TASKS, (1, 1, 3), strict=True)
    }
    layer = built(methods.FixedWeights, loss_weights={"square": 2.0, "value": 3.0, "class": 5.0})
    expected = (
        2.0 * keras.losses.MeanSquaredError()(targets["square"], predictions["square"])
        + 3.0 * keras.losses.MeanAbsoluteError()(targets["value"], predictions["value"])
        + 5.0
        * keras.losses.SparseCategoricalCrossentropy(from_logits=True)(
            targets["class"], predictions["class"]
        )
    )
    assert float(layer.combined_loss(predictions, targets, training=False)) == pytest.approx(
        float(expected), rel=1e-5
    )


def test_plain_uncertainty_is_equation_10():
    layer = built(methods.PlainUncertainty)
    assert_weighs(layer, np.ones(3))
    s = np.array([-1.0, 0.5, 2.0])
    layer.log_variance.assign(s)
    loss, weights = loss_and_weights(layer)
    assert loss == pytest.approx(np.sum(np.exp(-s) * LOSSES + s / 2), rel=1e-5)
    np.testing.assert_allclose(weights, np.exp(-s), rtol=1e-5)


def test_the_positive_regulariser_adds_log_of_one_plus_variance():
    layer = built(methods.PositiveRegulariser)
    s = np.array([-1.0, 0.5, 2.0])
    layer.log_variance.assign(s)
    loss, weights = loss_and_weights(layer)
    assert loss == pytest.approx(np.sum(LOSSES / (2 * np.exp(s)) + np.log(1 + np.exp(s))), rel=1e-5)
    np.testing.assert_allclose(weights, 0.5 / np.exp(s), rtol=1e-5)


def test_analytical_weights_are_inverse_losses():
    assert_weighs(built(methods.AnalyticalUncertainty), 1 / LOSSES)


def test_softmax_weights_are_the_softmax_of_inverse_losses():
    layer = built(methods.SoftmaxUncertainty, temperature=3.0)
    assert_weighs(layer, special.softmax(1 / LOSSES / 3))


def test_dynamic_weights_follow_the_ratio_of_two_epochs():
    layer = built(methods.DynamicWeightAverage, steps_per_epoch=2)
    epochs = np.array([[4.0, 2.0, 1.0], [2.0, 2.0, 3.0], [1.0, 8.0, 1.0]])
    for epoch, weights in enumerate(
        [
            np.ones(3),
            np.ones(3),
            3 * special.softmax(epochs[1] / epochs[0] / 2),
            3 * special.softmax(epochs[2] / epochs[1] / 2),
        ]
    ):
        for step in range(2):
            losses = epochs[min(epoch, 2)] * (0.5, 1.5)[step]  # whose mean is the epoch's
            assert_weighs(layer, weights, losses)


def test_random_weights_are_drawn_anew_in_each_step():
    layer = built(methods.RandomWeights, seed=0)
    draws = np.array([loss_and_weights(layer)[1] for _ in range(3)])
    np.testing.assert_allclose(draws.sum(axis=1), 3, rtol=1e-5)
    assert len(np.unique(draws)) == draws.size


@pytest.mark.parametrize(
    ("rule", "trains"), [(methods.PlainUncertainty, True), (methods.AnalyticalUncertainty, False)]
)
def test_log_variances_are_trained_only_where_the_loss_has_them(rule, trains):
    assert len(built(rule).trainable_variables) == int(trains)


def test_units_are_those_of_standardised_targets():
    rng = np.random.default_rng(0)
    targets = {
        "square": rng.normal(scale=10, size=100),
        "value": rng.normal(scale=0.1, size=100),
        "class": rng.integers(0, 3, size=100),
    }
    weights = methods.units(TASKS, targets)
    assert weights["square"] == pytest.approx(1 / targets["square"].var())
    assert weights["value"] == pytest.approx(1 / targets["value"].std())
    assert weights["class"] == 1
