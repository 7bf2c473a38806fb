"""The cross-entropy at a temperature, beside SciPy's softmax and its gradient in closed form."""

import keras
import numpy as np
import pytest
from keras import ops
from scipy import special

from keras_uncertainty_mtl import Categorical
from keras_uncertainty_mtl.cross_entropy import cross_entropy, tempered_cross_entropy

SHAPE = (3, 4, 5)

KEEPS_64_BITS = pytest.mark.backends(
    "tensorflow", "torch", reason="JAX keeps the lower half of 64 bits"
)

# What a class out of range raises on a CPU; with JAX nothing does.
ERRORS = {"tensorflow": "InvalidArgumentError", "torch": "IndexError"}


def data(scale=2.0):
    rng = np.random.default_rng(0)
    return rng.normal(0, scale, SHAPE), rng.integers(SHAPE[-1], size=SHAPE[:-1])


def log_probabilities(logits, classes, w=1.0):
    values = special.log_softmax(w * logits, axis=-1)
    return np.take_along_axis(values, classes[..., None], axis=-1)[..., 0]


@pytest.mark.parametrize("scale", [0.1, 1.0, 1e4])
def test_cross_entropy_is_minus_the_log_of_a_softmax(scale):
    logits, classes = data(scale)
    losses = cross_entropy(ops.convert_to_tensor(logits, "float32"), classes)
    expected = -log_probabilities(logits, classes)
    np.testing.assert_allclose(ops.convert_to_numpy(losses), expected, rtol=1e-5, atol=1e-6)


# One for all elements, one for each of stacked tasks, and one for each element.
@pytest.mark.parametrize("shape", [(), (3, 1, 1), (3, 4, 1)], ids=str)
@pytest.mark.parametrize("w", [1e-3, 1.0, 30.0])
def test_tempered_cross_entropy_and_its_gradients(shape, w, value_and_gradients):
    logits, classes = data()
    w = w * np.random.default_rng(1).uniform(0.5, 2.0, shape)
    # None weighs as much as another.
    upstream = np.random.default_rng(2).normal(size=classes.shape)
    variables = [keras.Variable(value.astype("float32")) for value in (logits, np.asarray(w))]
    weights = ops.convert_to_tensor(upstream, "float32")

    def loss():
        losses = tempered_cross_entropy(*(variable.value for variable in variables), classes)
        return ops.sum(weights * losses)

    value, (of_logits, of_temperature) = value_and_gradients(loss, variables)
    np.testing.assert_allclose(
        value, -np.sum(upstream * log_probabilities(logits, classes, w)), rtol=1e-4, atol=1e-5
    )
    softmax = special.softmax(w * logits, axis=-1)
    difference = upstream[..., None] * (softmax - np.eye(SHAPE[-1])[classes])
    np.testing.assert_allclose(of_logits, w * difference, rtol=1e-4, atol=2e-5 * np.max(w))
    of_each = np.sum(difference * logits, axis=-1, keepdims=True)
    axes = tuple(axis for axis in range(3) if (1, 1, 1, *shape)[axis - 3] == 1)
    expected = of_each.sum(axis=axes, keepdims=True).reshape(shape)
    np.testing.assert_allclose(of_temperature, expected, rtol=1e-4, atol=1e-5)


def test_large_logits_and_low_temperatures_do_not_overflow(value_and_gradients):
    logits = keras.Variable(np.array([[1e30, 0.0, -1e30], [-1e30, -1e30, 0.0]], "float32"))
    w = keras.Variable(1e6)

    def loss():
        return ops.sum(tempered_cross_entropy(logits.value, w.value, np.array([0, 2])))

    value, gradients = value_and_gradients(loss, [logits, w])
    assert value == 0
    for gradient in gradients:
        np.testing.assert_array_equal(gradient, np.zeros_like(gradient))


@pytest.mark.parametrize("approximate", [False, True])
@pytest.mark.filterwarnings("ignore:invalid value encountered in cast")
@pytest.mark.parametrize("dtype", ["int32", pytest.param("int64", marks=KEEPS_64_BITS), "float32"])
@pytest.mark.parametrize("wrong", [-100, -1, 5, 300, np.nan])
def test_a_class_out_of_range_is_nan_or_an_error(wrong, dtype, approximate):
    likelihood = Categorical(approximate=approximate)
    logits, targets = ops.zeros((2, 5)), np.array([1.0, wrong]).astype(dtype)
    for losses in (
        lambda: likelihood.loss(targets, logits),
        lambda: likelihood.negative_log_likelihood(targets, logits, 0.5),
    ):
        try:
            values = ops.convert_to_numpy(losses())
        except Exception as error:
            assert type(error).__name__ == ERRORS[keras.backend.backend()]  # noqa: PT017
            continue
        assert np.isfinite(values[0])
        assert np.isnan(values[1])


@pytest.mark.parametrize("approximate", [False, True])
@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16", "uint32"])
@pytest.mark.parametrize("num_classes", [256, 300])
def test_integers_of_any_kind_are_ids_of_many_classes(
    num_classes, dtype, approximate, value_and_gradients
):
    rng = np.random.default_rng(0)
    logits, targets = rng.normal(size=(4, num_classes)), np.array([0, 3, 44, 127])
    variable = keras.Variable(logits.astype("float32"))
    likelihood = Categorical(approximate=approximate)

    def loss():
        ids = ops.convert_to_tensor(targets.astype(dtype))
        raw = likelihood.loss(ids, variable.value)
        return ops.sum(raw + likelihood.negative_log_likelihood(ids, variable.value, 0.0))

    value, (gradient,) = value_and_gradients(loss, [variable])
    # exp(-s) is 1: both are the same, but for an approximate one that adds ½ · s, which is 0.
    np.testing.assert_allclose(value, -2 * log_probabilities(logits, targets).sum(), rtol=1e-5)
    expected = 2 * (special.softmax(logits, axis=-1) - np.eye(num_classes)[targets])
    np.testing.assert_allclose(gradient, expected, atol=1e-6)


def test_there_may_be_a_temperature_for_each_class(value_and_gradients):
    logits, classes = data()
    s = np.random.default_rng(1).normal(size=SHAPE[-1])
    variable = keras.Variable(s.astype("float32"))

    def loss():
        tensor = ops.convert_to_tensor(logits, "float32")
        return ops.sum(Categorical().negative_log_likelihood(classes, tensor, variable.value))

    value, (gradient,) = value_and_gradients(loss, [variable])
    scaled = logits * np.exp(-s)
    np.testing.assert_allclose(value, -log_probabilities(scaled, classes).sum(), rtol=1e-5)
    difference = special.softmax(scaled, axis=-1) - np.eye(SHAPE[-1])[classes]
    np.testing.assert_allclose(gradient, -(difference * scaled).sum(axis=(0, 1)), rtol=1e-4)


@pytest.mark.parametrize("approximate", [False, True])
@pytest.mark.parametrize("shape", [(0,), (2, 0)])
def test_no_elements_have_no_loss(shape, approximate, value_and_gradients):
    likelihood = Categorical(approximate=approximate)
    targets = ops.zeros(shape, "int32")
    logits, s = keras.Variable(np.zeros((*shape, 5), "float32")), keras.Variable(0.5)
    assert likelihood.loss(targets, logits.value).shape == shape

    def loss():
        losses = likelihood.negative_log_likelihood(targets, logits.value, s.value)
        assert losses.shape == shape
        return ops.sum(losses)

    value, (of_logits, of_s) = value_and_gradients(loss, [logits, s])
    assert value == of_s == 0
    assert of_logits.shape == logits.shape


@pytest.mark.parametrize("approximate", [False, True])
def test_a_functional_model_may_end_in_losses(approximate):
    likelihood = Categorical(approximate=approximate)
    logits, classes = data()
    y, f = keras.Input((4,), dtype="int32"), keras.Input((4, 5))
    outputs = likelihood.loss(y, f), likelihood.negative_log_likelihood(y, f, ops.zeros(()))
    expected = -log_probabilities(logits, classes)
    for losses in keras.Model([y, f], outputs)([classes, logits.astype("float32")]):
        np.testing.assert_allclose(ops.convert_to_numpy(losses), expected, rtol=1e-5)


@pytest.mark.parametrize("shape", [(4, 3), (4,), (3, 4, 1)], ids=str)
def test_ids_of_another_shape_are_refused(shape):
    for function in (cross_entropy, lambda f, y: tempered_cross_entropy(f, ops.ones(()), y)):
        with pytest.raises(ValueError, match=r"without their last axis, \(3, 4\)"):
            function(ops.zeros(SHAPE), np.zeros(shape, "int32"))


@pytest.mark.backends("tensorflow", reason="Keras does so on TensorFlow")
def test_of_probabilities_keras_takes_the_logits_and_warns():
    logits = ops.convert_to_tensor(data()[0], "float32")
    probabilities = keras.activations.softmax(logits)
    classes = ops.convert_to_tensor(data()[1])
    with pytest.warns(UserWarning, match="from_logits"):
        losses = Categorical(approximate=True).loss(classes, probabilities)
    np.testing.assert_allclose(losses, -log_probabilities(*data()), rtol=1e-5)
