"""Sums and means agree with NumPy, on one device and on several."""

import numpy as np
import pytest
import tensorflow as tf

from keras_uncertainty_mtl._reductions import (
    global_mean,
    num_replicas,
    sum_over_replicas,
    weighted_sum,
)

pytestmark = pytest.mark.backends("tensorflow", reason="uses TensorFlow's graphs and strategies")


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("known", [False, True], ids=["shape-unknown", "shape-known"])
@pytest.mark.parametrize("shape", [(5,), (5, 3), (2, 3, 4, 2)])
def test_the_ratio_of_the_sums_is_the_average(shape, known, weighted, per_channel):
    if per_channel and len(shape) == 1:
        shape = (*shape, 1)
    channels = shape[-1] if per_channel else 1
    shape = (2, *shape)  # two tasks
    rng = np.random.default_rng(0)
    values, weights = rng.normal(size=shape), rng.exponential(size=shape)
    signature = tf.TensorSpec(shape if known else [2] + [None] * (len(shape) - 1), "float64")

    @tf.function(input_signature=[signature, signature])
    def sums(values, weights):
        arguments = weights if weighted else None, channels
        return weighted_sum(values, *arguments), weighted_sum(tf.ones_like(values), *arguments)

    total, weight = sums(values, weights)
    axes = tuple(range(1, len(shape) - per_channel))
    expected = np.average(values, axis=axes, weights=weights if weighted else None)
    assert total.shape == weight.shape == (2, channels)
    np.testing.assert_allclose(total / weight, expected.reshape(2, channels), rtol=1e-12)


@pytest.mark.parametrize("per_channel", [False, True])
def test_values_without_weight_count_for_nothing(per_channel):
    weights = np.array([[[1.0, 0.0], [2.0, 3.0], [0.0, 0.5]]])
    values = tf.constant(np.where(weights == 0, 1e9, [[[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]]))
    with tf.GradientTape() as tape:
        tape.watch(values)
        total = weighted_sum(values, tf.constant(weights), 2 if per_channel else 1)
    expected = np.array([1 * 1 + 2 * 3, 3 * 4 + 0.5 * 6])
    np.testing.assert_allclose(total[0], expected if per_channel else [expected.sum()], rtol=1e-15)
    np.testing.assert_array_equal(tape.gradient(total, values), weights)


def test_rounding_errors_of_many_pixels_do_not_add_up():
    values = np.random.default_rng(0).exponential(size=(1, 8, 256, 512)).astype("float32")
    total = tf.function(weighted_sum, jit_compile=True)(tf.constant(values), None, 1)
    np.testing.assert_allclose(total, [[values.sum(dtype="float64")]], rtol=1e-6)


@pytest.mark.parametrize("shape", [(1, 0, 4, 5), (1, 3, 0, 5), (1, 3, 4, 0)])
def test_the_sum_of_no_pixels_is_zero(shape):
    assert weighted_sum(tf.zeros(shape), None, 1) == 0


@pytest.mark.parametrize("hidden", [np.nan, np.inf, -np.inf])
def test_a_weight_of_zero_hides_no_nan_or_infinity(hidden):
    total = weighted_sum(tf.constant([[1.0, hidden]]), tf.constant([[1.0, 0.0]]), 1)
    assert np.isnan(total)


def test_the_mean_of_nothing_and_its_gradient_are_zero():
    values = tf.constant([[5.0, 7.0], [1.0, 2.0]])
    with tf.GradientTape() as tape:
        tape.watch(values)
        totals = tf.constant([[0.0], [4.0]])
        means = global_mean(weighted_sum(values, tf.constant([[0.0, 0.0], [1.0, 3.0]]), 1), totals)
    np.testing.assert_array_equal(means, [[0], [1.75]])
    np.testing.assert_array_equal(tape.gradient(means, values), [[0, 0], [0.25, 0.75]])


def test_one_device_is_one_replica():
    assert num_replicas() == 1
    np.testing.assert_array_equal(sum_over_replicas(tf.constant([1.0, 2.0])), [1, 2])


# The elements of four replicas, one of which has none.
REPLICAS = [[1.0, 2.0, 4.0], [], [8.0], [16.0, 32.0]]


@pytest.fixture(scope="module")
def on_replicas():
    """Runs a function of its elements on every replica, and returns all results."""
    strategy = tf.distribute.MirroredStrategy([f"CPU:{index}" for index in range(4)])

    def run(function):
        elements = strategy.experimental_distribute_values_from_function(
            lambda context: tf.constant(REPLICAS[context.replica_id_in_sync_group], "float64")
        )
        results = tf.function(lambda: strategy.run(function, (elements,)))()
        return tf.nest.map_structure(
            lambda result: np.array(strategy.experimental_local_results(result)), results
        )

    return run


def test_every_replica_has_the_sum_over_replicas(on_replicas):
    counts, sums = on_replicas(
        lambda elements: (tf.constant(num_replicas()), sum_over_replicas(tf.reduce_sum(elements)))
    )
    np.testing.assert_array_equal(counts, [4] * 4)
    np.testing.assert_array_equal(sums, [63] * 4)


def global_sums(values, weights):
    """The sum of one replica, and the total weight of all."""
    weights = tf.ones_like(values) if weights is None else weights
    total = sum_over_replicas(weighted_sum(weights[tf.newaxis], None, 1))
    return weighted_sum(values[tf.newaxis], weights[tf.newaxis], 1), total


def test_the_global_mean_is_over_the_elements_of_all_replicas(on_replicas):
    def step(elements):
        scale = tf.constant(3.0, "float64")
        with tf.GradientTape() as tape:
            tape.watch(scale)
            mean = global_mean(*global_sums(scale**2 * elements, None))
        return mean, tape.gradient(mean, scale)

    means, gradients = on_replicas(step)
    elements = np.concatenate(REPLICAS)
    np.testing.assert_allclose(means, [[[np.mean(9 * elements)]]] * 4, rtol=1e-12)
    # The gradient of scale² · element is 2 · scale · element. Keras averages it over the replicas.
    np.testing.assert_allclose(np.mean(gradients), np.mean(6 * elements), rtol=1e-12)


def test_the_global_mean_of_nothing_is_zero_on_all_replicas(on_replicas):
    def step(elements):
        scale = tf.constant(3.0, "float64")
        with tf.GradientTape() as tape:
            tape.watch(scale)
            mean = global_mean(*global_sums(scale * elements, tf.zeros_like(elements)))
        return mean, tape.gradient(mean, scale)

    means, gradients = on_replicas(step)
    np.testing.assert_array_equal(means, [[[0]]] * 4)
    np.testing.assert_array_equal(gradients, [0] * 4)
