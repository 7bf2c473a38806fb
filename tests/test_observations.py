"""Missing targets, Keras masks and sample weights agree with NumPy's selection and average."""

from itertools import combinations

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy.special import softmax

from keras_uncertainty_mtl import (
    Bernoulli,
    Categorical,
    Gaussian,
    Gibbs,
    Laplace,
    MultiTaskModel,
    UncertaintyWeighting,
)
from keras_uncertainty_mtl._observations import observe

pytestmark = pytest.mark.backends(
    "tensorflow", reason="uses TensorFlow's tapes; see test_properties.py"
)

NAN = float("nan")
BATCH, STEPS, CHANNELS = 5, 4, 3
SHAPE = (BATCH, STEPS, CHANNELS)
HUBER = keras.losses.Huber()


def added_loss(likelihood, predictions, targets, sample_weight=None, dtype="float64", mask=None):
    """The loss that the layer adds, and its gradient in the predictions."""
    predictions = tf.constant(predictions)
    weighting = UncertaintyWeighting({"task": likelihood}, dtype=dtype)
    weighting.build(predictions.shape)
    with tf.GradientTape() as tape:
        tape.watch([predictions, weighting.trainable_variables[0].value])
        outputs = tf.identity(predictions)
        if mask is not None:
            outputs = Masked(mask)(outputs)
        weighting(
            outputs,
            tf.constant(targets),
            None if sample_weight is None else tf.constant(sample_weight),
        )
        (loss,) = weighting.losses
    return float(loss), *tape.gradient(loss, [predictions, weighting.trainable_variables[0].value])


class Masked(keras.layers.Layer):
    """Returns its inputs with a mask, as an `Embedding(mask_zero=True)` does."""

    def __init__(self, mask):
        super().__init__(autocast=False)
        self._mask = mask

    def call(self, inputs):
        return inputs

    def compute_mask(self, inputs, previous_mask):
        return tf.constant(self._mask)


def reals(rng):
    return rng.normal(size=SHAPE)


def one_hot(rng):
    return np.eye(CHANNELS)[rng.integers(CHANNELS, size=SHAPE[:-1])]


# A likelihood, its targets, the value of missing ones, and a value that must never count.
TASKS = {
    "gaussian": (Gaussian, reals, NAN, NAN),
    "laplace": (Laplace, reals, -999.0, NAN),
    "categorical": (
        Categorical,
        lambda rng: rng.integers(CHANNELS, size=SHAPE[:-1]),
        255,
        -7,
    ),
    "one-hot": (lambda **kwargs: Categorical(sparse=False, **kwargs), one_hot, -1.0, NAN),
    "bernoulli": (
        Bernoulli,
        lambda rng: rng.integers(2, size=SHAPE).astype("float64"),
        -1.0,
        NAN,
    ),
    "huber": (lambda **kwargs: Gibbs(HUBER, **kwargs), reals, NAN, NAN),
}
REASONS = ("missing", "mask", "zero weight of a sample", "zero weight of a step")


@pytest.mark.parametrize(
    "reasons",
    [reasons for count in range(1, 5) for reasons in combinations(REASONS, count)],
    ids=" and ".join,
)
@pytest.mark.parametrize("task", TASKS)
def test_hidden_elements_count_for_nothing(task, reasons):
    make, draw, missing, unseen = TASKS[task]
    rng = np.random.default_rng(1)
    targets, predictions = draw(rng), rng.normal(size=SHAPE)
    likelihood = make(missing=missing if "missing" in reasons else None, initial_sigma=0.7)

    # Each reason hides some steps of the sequences; the others stay visible.
    visible = np.ones((BATCH, STEPS), bool)
    weight, mask = np.ones((BATCH, STEPS)), None
    holed = targets.copy()
    if "zero weight of a sample" in reasons:
        weight[3] = 0
    if "zero weight of a step" in reasons:
        weight[[0, 4], [1, 0]] = 0
        weight[2] = [1, 2, 3, 4]
    if "mask" in reasons:
        mask = np.ones((BATCH, STEPS), bool)
        mask[1, 2:] = mask[3, 3:] = mask[4, :1] = False
        visible &= mask
    visible &= weight != 0
    holed[~visible] = unseen
    if "missing" in reasons:
        for step in ((0, 0), (1, 1), (3, 3)):
            holed[step] = missing
            visible[step] = False
    if "zero weight of a step" in reasons:
        sample_weight, shown_weight = weight, weight[visible]
    elif "zero weight of a sample" in reasons:
        sample_weight, shown_weight = weight[:, 0], None
    else:
        sample_weight, shown_weight = None, None

    loss, gradient, to_log_variance = added_loss(
        likelihood, predictions, holed, sample_weight, mask=mask
    )
    shown, shown_gradient, shown_to_log_variance = added_loss(
        likelihood, predictions[visible], targets[visible], shown_weight
    )
    np.testing.assert_allclose(loss, shown, rtol=1e-12)
    np.testing.assert_allclose(to_log_variance, shown_to_log_variance, rtol=1e-10, atol=1e-14)
    np.testing.assert_allclose(gradient.numpy()[visible], shown_gradient, rtol=1e-10, atol=1e-15)
    np.testing.assert_array_equal(gradient.numpy()[~visible], 0)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("reason", ["missing", "mask", "weight"])
def test_a_hidden_batch_has_no_loss_and_no_gradient(task, reason):
    make, draw, missing, unseen = TASKS[task]
    rng = np.random.default_rng(1)
    targets = np.full_like(draw(rng), missing if reason == "missing" else unseen)
    loss, *gradients = added_loss(
        make(missing=missing if reason == "missing" else None, initial_sigma=0.7),
        rng.normal(size=SHAPE),
        targets,
        np.zeros(BATCH) if reason == "weight" else None,
        mask=np.zeros(SHAPE[:2], bool) if reason == "mask" else None,
    )
    assert loss == 0
    for gradient in gradients:
        np.testing.assert_array_equal(gradient, 0)


# --- Weights --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "shape",
    [(BATCH,), (BATCH, 1), (BATCH, 1, 1), (BATCH, STEPS), (BATCH, STEPS, 1), SHAPE],
)
@pytest.mark.parametrize("dtype", ["float64", "float32", "int64", "uint8", "bool"])
def test_weights_of_any_shape_and_dtype_average(shape, dtype):
    rng = np.random.default_rng(2)
    targets, predictions = rng.normal(size=SHAPE), rng.normal(size=SHAPE)
    weight = rng.integers(0, 4, shape).astype(dtype)
    loss, *_ = added_loss(Gaussian(initial_sigma=1.0), predictions, targets, weight)
    leading = weight.astype("float64").reshape(shape + (1,) * (3 - len(shape)))
    expected = np.average(
        0.5 * (targets - predictions) ** 2, weights=np.broadcast_to(leading, SHAPE)
    )
    np.testing.assert_allclose(loss, expected, rtol=1e-12)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("factor", [1e-6, 1e6])
def test_the_scale_of_the_weights_does_not_matter(task, factor):
    make, draw, *_ = TASKS[task]
    rng = np.random.default_rng(3)
    targets, predictions, weight = draw(rng), rng.normal(size=SHAPE), rng.exponential(size=BATCH)
    likelihood = make(initial_sigma=0.7)
    loss, *_ = added_loss(likelihood, predictions, targets, weight)
    scaled, *_ = added_loss(likelihood, predictions, targets, factor * weight)
    np.testing.assert_allclose(scaled, loss, rtol=1e-12)


@pytest.mark.parametrize("shape", [(BATCH + 1,), (STEPS,), (1,), (BATCH, STEPS + 1), (*SHAPE, 2)])
def test_weights_that_do_not_fit_are_refused(shape):
    with pytest.raises(ValueError, match=r"(?s)'task'.*`sample_weight` must have.*Received: shape"):
        added_loss(Gaussian(), np.ones(SHAPE), np.ones(SHAPE), np.ones(shape))


def test_weights_of_classes_are_refused():
    with pytest.raises(ValueError, match=r"(?s)'task'.*`sample_weight` must have.*Received: shape"):
        added_loss(Categorical(), np.ones(SHAPE), np.ones(SHAPE[:-1], int), np.ones(SHAPE))


def test_a_mask_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"(?s)'task'.*mask must have.*Received: shape"):
        added_loss(Gaussian(), np.ones(SHAPE), np.ones(SHAPE), mask=np.ones((BATCH, 7), bool))


# --- Precision ------------------------------------------------------------------------------------


@pytest.mark.parametrize("half", ["float16", "bfloat16"])
def test_losses_of_half_precision_outputs_are_in_single_precision(half):
    # 500² is more than float16 holds, and 1e-4² less.
    predictions = tf.cast([500.0, 1e-4, 3.0], half)
    targets = np.array([0.0, 0.0, 1000.25], "float32")
    exact = np.array(tf.cast(predictions, "float64")) - targets
    for sigma, rows in ((1.0, [0, 2]), (1e-4, [1])):
        loss, *_ = added_loss(
            Gaussian(initial_sigma=sigma),
            tf.gather(predictions, rows),
            targets[rows],
            dtype="float32",
        )
        expected = 0.5 * np.mean(exact[rows] ** 2) / sigma**2 + np.log(sigma)
        np.testing.assert_allclose(loss, expected, rtol=1e-6)


@pytest.mark.parametrize("shape", [(), (1,), (1, 1), (5,)])
def test_twins_take_no_weights_that_one_task_would_not(shape):
    """Twins are computed together with one axis more, over which such weights would broadcast."""
    tasks = {"one": Gaussian(), "twin": Gaussian()}
    arrays = dict.fromkeys(tasks, np.zeros((6, 1), "float32"))
    weights = {"one": np.ones(6, "float32"), "twin": np.ones(shape, "float32")}
    weighting = UncertaintyWeighting(tasks)
    weighting.build(dict.fromkeys(tasks, (6, 1)))
    for given in (weights, dict.fromkeys(tasks, weights["twin"])):
        with pytest.raises(ValueError, match=r"Task '(one|twin)': `sample_weight` must have one"):
            weighting.combined_loss(arrays, arrays, given, training=False)


@pytest.mark.parametrize("approximate", [False, True])
def test_the_sum_of_raw_losses_has_their_gradient(approximate):
    """A rule that weighs raw losses can train a network with this sum."""
    rng = np.random.default_rng(0)
    logits, classes = tf.constant(reals(rng)), rng.integers(CHANNELS, size=SHAPE[:-1])
    likelihood = Categorical(approximate=approximate)
    with tf.GradientTape() as tape:
        tape.watch(logits)
        total = observe(likelihood, 1, {"task": (logits, classes, None, None)}, "float64").loss_sum
    expected = softmax(logits, axis=-1) - np.eye(CHANNELS)[classes]
    np.testing.assert_allclose(tape.gradient(total, logits), expected, rtol=1e-6, atol=1e-9)


def test_twins_take_weights_of_unknown_sizes():
    """One twin weighs samples and the other elements, under one signature."""
    inputs = keras.Input((3,))
    outputs = {task: keras.layers.Dense(2)(inputs) for task in "ab"}
    model = MultiTaskModel(inputs, outputs, {"a": Gaussian(), "b": Gaussian()})
    model.compile("adam")
    y = dict.fromkeys("ab", np.ones((4, 2), "float32"))
    weights = {"a": np.ones((4, 1), "float32"), "b": np.ones((4, 2), "float32")}
    signature = (
        tf.TensorSpec((None, 3)),
        *(dict.fromkeys("ab", tf.TensorSpec((None, size))) for size in (2, None)),
    )
    data = tf.data.Dataset.from_generator(
        lambda: iter([(np.ones((4, 3), "float32"), y, weights)]), output_signature=signature
    )
    history = model.fit(data, verbose=0).history
    for task in "ab":
        mean_squared_error = np.mean((model.predict(np.ones((1, 3)), verbose=0)[task] - 1) ** 2)
        assert history[f"{task}_loss"][0] == pytest.approx(mean_squared_error, rel=0.1)


def test_a_missing_value_larger_than_signed_integers_hides_no_other():
    likelihood = Gaussian(missing=2**63)
    targets = np.array([0, 1, 2**63], "uint64")

    @tf.function
    def weights():
        tensors = {"task": (tf.zeros(3), targets, None, None)}
        return observe(likelihood, 1, tensors, "float32").weights

    np.testing.assert_array_equal(weights(), [[1, 1, 0]])
