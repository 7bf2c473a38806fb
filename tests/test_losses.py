"""Likelihoods called by themselves, on every backend: arrays, symbolic tensors, class ids."""

import keras
import numpy as np
import pytest
from keras import ops
from scipy import special

from keras_uncertainty_mtl import Bernoulli, Categorical, Gaussian, Laplace

LIKELIHOODS = [Gaussian(), Laplace(), Bernoulli(), Categorical(), Categorical(approximate=True)]


def ids_of(likelihoods):
    return [f"{type(item).__name__}-{getattr(item, 'approximate', '')}" for item in likelihoods]


@pytest.mark.parametrize("likelihood", LIKELIHOODS, ids=ids_of(LIKELIHOODS))
def test_symbolic_tensors_have_a_symbolic_loss(likelihood):
    predictions = keras.Input((5,))
    target_shape = likelihood.target_shape(predictions.shape)
    targets = keras.Input(target_shape[1:], dtype=likelihood.target_dtype)
    assert likelihood.loss(targets, predictions).shape == target_shape
    assert likelihood.negative_log_likelihood(targets, predictions, 0.5).shape == target_shape


@pytest.mark.parametrize("likelihood", LIKELIHOODS, ids=ids_of(LIKELIHOODS))
def test_arrays_have_a_tensor_of_losses(likelihood):
    predictions = np.full((2, 5), 0.5, "float32")
    targets = np.ones(likelihood.target_shape(predictions.shape), likelihood.target_dtype)
    losses = likelihood.loss(targets, predictions)
    assert ops.is_tensor(losses)
    expected = {Gaussian: 0.25, Laplace: 0.5, Bernoulli: np.log1p(np.exp(-0.5))}
    of_one = expected.get(type(likelihood), np.log(5))  # all classes are equally likely
    np.testing.assert_allclose(
        ops.convert_to_numpy(losses), np.full(targets.shape, of_one), rtol=1e-6
    )


# --- Classes, against SciPy's softmax -------------------------------------------------------------

SHAPE = (3, 4, 5)
both_forms = pytest.mark.parametrize("approximate", [False, True], ids=["exact", "approximate"])


def logits_and_classes(scale=2.0):
    rng = np.random.default_rng(0)
    return rng.normal(0, scale, SHAPE), rng.integers(SHAPE[-1], size=SHAPE[:-1])


def cross_entropy(logits, classes):
    log_probabilities = special.log_softmax(logits, axis=-1)
    return -np.take_along_axis(log_probabilities, classes[..., None], axis=-1)[..., 0]


@both_forms
@pytest.mark.parametrize("scale", [0.1, 1.0, 1e4])
def test_the_raw_loss_of_classes_is_their_cross_entropy(scale, approximate):
    logits, classes = logits_and_classes(scale)
    losses = Categorical(approximate=approximate).loss(
        classes, ops.convert_to_tensor(logits, "float32")
    )
    expected = cross_entropy(logits, classes)
    np.testing.assert_allclose(ops.convert_to_numpy(losses), expected, rtol=1e-5, atol=1e-6)


def weighted_nll(logits, classes, log_variance, weights):
    """The weighted sum of the exact negative log-likelihoods, as a function of two variables."""
    return ops.sum(
        ops.convert_to_tensor(weights, "float32")
        * Categorical().negative_log_likelihood(classes, logits.value, log_variance.value)
    )


@pytest.mark.parametrize("temperature", [1e3, 1.0, 1 / 30])
def test_the_exact_form_has_the_gradients_of_a_softmax_at_a_temperature(
    temperature, value_and_gradients
):
    logits, classes = logits_and_classes()
    weights = np.random.default_rng(1).normal(size=classes.shape)
    f, s = (
        keras.Variable(logits.astype("float32")),
        keras.Variable(np.log(temperature), dtype="float32"),
    )
    value, (of_logits, of_log_variance) = value_and_gradients(
        lambda: weighted_nll(f, classes, s, weights), [f, s]
    )
    scaled = logits / temperature
    expected = np.sum(weights * cross_entropy(scaled, classes))
    np.testing.assert_allclose(value, expected, rtol=1e-4, atol=1e-5)
    difference = special.softmax(scaled, axis=-1) - np.eye(SHAPE[-1])[classes]
    difference *= weights[..., None]
    np.testing.assert_allclose(
        of_logits, difference / temperature, rtol=1e-4, atol=2e-5 / temperature
    )
    np.testing.assert_allclose(of_log_variance, -np.sum(difference * scaled), rtol=1e-4, atol=1e-5)


def test_the_exact_form_may_have_a_temperature_for_each_class(value_and_gradients):
    logits, classes = logits_and_classes()
    log_variances = np.random.default_rng(1).normal(size=SHAPE[-1])
    f, s = (keras.Variable(value.astype("float32")) for value in (logits, log_variances))
    value, (gradient,) = value_and_gradients(lambda: weighted_nll(f, classes, s, 1.0), [s])
    scaled = logits * np.exp(-log_variances)
    np.testing.assert_allclose(value, cross_entropy(scaled, classes).sum(), rtol=1e-5)
    difference = special.softmax(scaled, axis=-1) - np.eye(SHAPE[-1])[classes]
    np.testing.assert_allclose(gradient, -(difference * scaled).sum(axis=(0, 1)), rtol=1e-4)


def test_large_logits_and_low_temperatures_do_not_overflow(value_and_gradients):
    logits = np.array([[1e30, 0.0, -1e30], [-1e30, -1e30, 0.0]], "float32")
    f, s = keras.Variable(logits), keras.Variable(np.log(1e-6), dtype="float32")
    value, gradients = value_and_gradients(
        lambda: weighted_nll(f, np.array([0, 2]), s, 1.0), [f, s]
    )
    assert value == 0
    for gradient in gradients:
        np.testing.assert_array_equal(gradient, np.zeros_like(gradient))


# The errors of a CPU. JAX raises none.
ERRORS = {
    "tensorflow": {"InvalidArgumentError"},
    "jax": {},
    "torch": {"IndexError", "RuntimeError"},
}


@both_forms
@pytest.mark.filterwarnings("ignore:invalid value encountered in cast")
@pytest.mark.parametrize(
    "dtype",
    [
        "int32",
        "float32",
        pytest.param(
            "int64",
            marks=pytest.mark.backends(
                "tensorflow", "torch", reason="JAX keeps the lower half of 64 bits"
            ),
        ),
    ],
)
@pytest.mark.parametrize("wrong", [-100, -1, 5, 300, np.nan])
def test_a_class_out_of_range_costs_nan_or_raises_an_error(wrong, dtype, approximate):
    likelihood = Categorical(approximate=approximate)
    logits, targets = ops.zeros((2, 5)), np.array([1.0, wrong]).astype(dtype)
    for losses in (
        lambda: likelihood.loss(targets, logits),
        lambda: likelihood.negative_log_likelihood(targets, logits, 0.5),
    ):
        try:
            values = ops.convert_to_numpy(losses())
        except Exception as error:
            assert type(error).__name__ in ERRORS[keras.backend.backend()]  # noqa: PT017
            continue
        assert np.isfinite(values[0])
        assert np.isnan(values[1])


@both_forms
@pytest.mark.parametrize("mode", ["eager", "graph"])
@pytest.mark.backends("tensorflow", reason="only TensorFlow checks numerics")
def test_classes_in_range_pass_checks_of_numerics(approximate, mode):
    import tensorflow as tf

    logits, classes = logits_and_classes()

    def loss():
        return Categorical(approximate=approximate).loss(classes, tf.constant(logits))

    tf.debugging.enable_check_numerics()
    try:
        losses = loss() if mode == "eager" else tf.function(loss)()
    finally:
        tf.debugging.disable_check_numerics()
    np.testing.assert_allclose(losses, cross_entropy(logits, classes), rtol=1e-6)


@both_forms
@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16", "uint32"])
@pytest.mark.parametrize("num_classes", [256, 300])
def test_integers_of_any_type_are_ids_of_many_classes(
    num_classes, dtype, approximate, value_and_gradients
):
    logits = np.random.default_rng(0).normal(size=(4, num_classes))
    classes = np.array([0, 3, 44, 127])
    f, likelihood = keras.Variable(logits.astype("float32")), Categorical(approximate=approximate)

    def loss():
        ids = ops.convert_to_tensor(classes.astype(dtype))
        raw = likelihood.loss(ids, f.value)
        return ops.sum(raw + likelihood.negative_log_likelihood(ids, f.value, 0.0))

    value, (gradient,) = value_and_gradients(loss, [f])
    # At σ = 1 both forms are the raw loss.
    np.testing.assert_allclose(value, 2 * cross_entropy(logits, classes).sum(), rtol=1e-5)
    expected = 2 * (special.softmax(logits, axis=-1) - np.eye(num_classes)[classes])
    np.testing.assert_allclose(gradient, expected, atol=1e-6)


@both_forms
def test_truth_values_are_classes(approximate):
    losses = Categorical(approximate=approximate).loss(np.array([True, False]), ops.zeros((2, 5)))
    np.testing.assert_allclose(ops.convert_to_numpy(losses), np.log([5, 5]), rtol=1e-6)


@both_forms
@pytest.mark.parametrize("shape", [(0,), (2, 0)])
def test_no_elements_have_no_loss_and_no_gradient(shape, approximate, value_and_gradients):
    likelihood = Categorical(approximate=approximate)
    targets = ops.zeros(shape, "int32")
    f, s = keras.Variable(np.zeros((*shape, 5), "float32")), keras.Variable(0.5)
    assert likelihood.loss(targets, f.value).shape == shape

    def loss():
        losses = likelihood.negative_log_likelihood(targets, f.value, s.value)
        assert losses.shape == shape
        return ops.sum(losses)

    value, (of_logits, of_log_variance) = value_and_gradients(loss, [f, s])
    assert value == of_log_variance == 0
    assert of_logits.shape == f.shape


@both_forms
def test_a_functional_model_may_end_in_losses(approximate):
    likelihood = Categorical(approximate=approximate)
    logits, classes = logits_and_classes()
    y, f = keras.Input((4,), dtype="int32"), keras.Input((4, 5))
    outputs = likelihood.loss(y, f), likelihood.negative_log_likelihood(y, f, ops.zeros(()))
    expected = cross_entropy(logits, classes)
    for losses in keras.Model([y, f], outputs)([classes, logits.astype("float32")]):
        np.testing.assert_allclose(ops.convert_to_numpy(losses), expected, rtol=1e-5)


@both_forms
@pytest.mark.parametrize("flag", [-1.0, 2.0])
def test_a_flag_that_is_neither_no_nor_yes_has_no_loss(flag, approximate):
    losses = Bernoulli(approximate=approximate).loss(
        ops.convert_to_tensor([[flag], [1.0]]), ops.zeros((2, 1))
    )
    np.testing.assert_array_equal(np.isnan(ops.convert_to_numpy(losses))[:, 0], [True, False])
