"""`Gibbs`: elements that are missing, losses below 0, targets of other shapes, losses of users."""

import functools

import keras
import numpy as np
import pytest
from keras import losses, ops
from scipy import special, stats
from sklearn.metrics import mean_pinball_loss, mean_poisson_deviance
from sklearn.metrics.pairwise import paired_cosine_distances

from keras_uncertainty_mtl import (
    Categorical,
    Gaussian,
    Gibbs,
    Likelihood,
    MultiTaskModel,
    UncertaintyWeighting,
    likelihoods,
)

NAN = float("nan")


@pytest.fixture
def loss_and_gradient(value_and_gradients):
    """The combined loss of one task at σ = 1, and its gradient in the predictions."""

    def run(likelihood, targets, predictions, weight=None):
        layer = UncertaintyWeighting({"task": likelihood})
        layer.build(predictions.shape)
        f = keras.Variable(predictions.astype("float32"))

        def loss():
            return layer.combined_loss(
                {"task": f.value}, {"task": targets}, weight, training=False, report=False
            )

        value, (gradient,) = value_and_gradients(loss, [f])
        return value / layer.task_weights()["task"], gradient

    return run


def positive(shape=(6, 4), seed=0):
    rng = np.random.default_rng(seed)
    return rng.uniform(0.1, 0.9, (2, *shape)).astype("float32")


def bits(shape=(6, 4)):
    targets, predictions = positive(shape)
    return np.round(targets), predictions


# --- Losses that are taken apart ------------------------------------------------------------------

APART = {
    "huber": (losses.Huber(delta=0.2), positive),
    "log-cosh": (losses.LogCosh(), positive),
    "mape": (losses.MeanAbsolutePercentageError(), positive),
    "msle": (losses.MeanSquaredLogarithmicError(), positive),
    "hinge": (losses.Hinge(), bits),
    "squared-hinge": (losses.SquaredHinge(), bits),
    "binary-focal": (losses.BinaryFocalCrossentropy(gamma=1.5), bits),
    "bce-smoothed": (losses.BinaryCrossentropy(from_logits=True, label_smoothing=0.1), bits),
    "squared": (losses.MeanSquaredError(), positive),
    "absolute": (losses.MeanAbsoluteError(), positive),
    "function": (losses.huber, positive),
    "partial": (functools.partial(losses.huber, delta=0.2), positive),
}


def elements_of(loss, targets, predictions):
    call = getattr(loss, "call", loss)
    return ops.convert_to_numpy(call(targets[..., None], predictions[..., None]))


@pytest.mark.parametrize("name", APART)
@pytest.mark.parametrize("missing", [NAN, -5.0])
def test_elements_that_are_missing_are_left_out_alone(name, missing, loss_and_gradient):
    loss, draw = APART[name]
    targets, predictions = draw()
    expected = elements_of(loss, targets, predictions)
    full, _ = loss_and_gradient(Gibbs(loss, missing=missing), targets, predictions)
    call = getattr(loss, "call", loss)
    rows = ops.convert_to_numpy(call(targets, predictions))
    np.testing.assert_allclose(full, rows.mean(), rtol=1e-5)

    shown = np.random.default_rng(1).random(targets.shape) < 0.6
    holed = np.where(shown, targets, missing).astype("float32")
    value, gradient = loss_and_gradient(Gibbs(loss, missing=missing), holed, predictions)
    np.testing.assert_allclose(value, expected[shown].mean(), rtol=1e-5)
    assert np.all(gradient[~shown] == 0)
    assert np.any(gradient[shown] != 0)

    weight = np.random.default_rng(2).exponential(size=targets.shape).astype("float32")
    value, _ = loss_and_gradient(Gibbs(loss), targets, predictions, weight)
    np.testing.assert_allclose(value, np.average(expected, weights=weight), rtol=1e-5)


@pytest.mark.parametrize("loss", [losses.BinaryCrossentropy, losses.BinaryFocalCrossentropy])
def test_an_average_over_another_axis_is_taken_apart(loss, loss_and_gradient):
    targets, predictions = bits((5, 4, 3))
    expected = elements_of(loss(), targets, predictions)
    targets[1, 2, 0] = targets[3, 3, 2] = NAN
    value, _ = loss_and_gradient(Gibbs(loss(axis=1), missing=NAN), targets, predictions)
    np.testing.assert_allclose(value, expected[~np.isnan(targets)].mean(), rtol=1e-5)


def test_predictions_without_channels_are_taken_apart(loss_and_gradient):
    targets, predictions = positive((6,))
    value, _ = loss_and_gradient(Gibbs("huber"), targets, predictions)
    np.testing.assert_allclose(value, np.mean((targets - predictions) ** 2) / 2, rtol=1e-5)


def soft(shape=(6, 4)):
    targets, predictions = positive(shape)
    return (each / each.sum(axis=-1, keepdims=True) for each in (targets, predictions))


def mean_cube(y_true, y_pred):
    return ops.mean(ops.abs(y_true - y_pred) ** 3, axis=-1)


@keras.saving.register_keras_serializable(package="test_gibbs")
class OwnHuber(losses.Huber):
    """A stock loss with code of its own, of which nothing is known."""

    def call(self, y_true, y_pred):
        return super().call(y_true, y_pred) / (1 + ops.mean(ops.abs(y_true), axis=-1))


# A loss of several targets, the axes of one value, and the shape of the targets.
WHOLE = {
    "cosine": (losses.CosineSimilarity(), (1,), (6, 4)),
    "cosine-axis": (losses.CosineSimilarity(axis=1), (1,), (6, 4, 3)),
    "dice": (losses.Dice(axis=(1, 2, 3)), (1, 2, 3), (6, 4, 3, 2)),
    "dice-of-channels": (losses.Dice(axis=(1, 2)), (1, 2), (6, 4, 3, 2)),
    "tversky": (losses.Tversky(axis=(1, 2)), (1, 2), (6, 4, 3)),
    "smoothed": (losses.CategoricalCrossentropy(label_smoothing=0.1), (1,), (6, 4)),
    "categorical-axis": (losses.CategoricalCrossentropy(axis=1), (1,), (6, 4, 4)),
    "divergence": (losses.KLDivergence(), (1,), (6, 4)),
    "hinge": (losses.CategoricalHinge(), (1,), (6, 4)),
    "function": (mean_cube, (1,), (6, 4)),
    "subclass": (OwnHuber(), (1,), (6, 4)),
}


@pytest.mark.parametrize("name", WHOLE)
def test_a_value_counts_if_all_of_its_targets_are_there(name, loss_and_gradient):
    loss, axes, shape = WHOLE[name]
    targets, predictions = soft(shape)
    likelihood = Gibbs(loss, missing=NAN)
    values = ops.convert_to_numpy(likelihood.loss(targets, predictions))
    shown = np.ones(shape, bool)
    shown[(2, *(slice(None) if axis in axes else 1 for axis in range(1, len(shape))))] = False
    holed = np.where(shown, targets, NAN)
    value, gradient = loss_and_gradient(likelihood, holed, predictions)
    np.testing.assert_allclose(value, values[shown.all(axis=axes)].mean(), rtol=1e-5)
    assert np.all(gradient[~shown] == 0)


@pytest.mark.parametrize("name", WHOLE)
def test_a_value_of_which_some_targets_are_missing_is_nan(name, loss_and_gradient):
    loss, _, shape = WHOLE[name]
    targets, predictions = soft(shape)
    targets[(2, *(1,) * (len(shape) - 1))] = NAN
    value, _ = loss_and_gradient(Gibbs(loss, missing=NAN), targets, predictions)
    assert np.isnan(value)


def test_one_hot_targets_of_which_some_are_missing_are_nan(loss_and_gradient):
    targets, predictions = np.eye(3, dtype="float32"), np.zeros((3, 3), "float32")
    targets[0, 1] = NAN
    for approximate in (False, True):
        likelihood = Categorical(sparse=False, approximate=approximate, missing=NAN)
        assert np.isnan(loss_and_gradient(likelihood, targets, predictions)[0])


def test_calibration_refuses_a_value_of_which_some_targets_are_missing():
    inputs = keras.Input((3,))
    outputs = {"task": keras.layers.Dense(3)(inputs)}
    model = MultiTaskModel(inputs, outputs, {"task": Gibbs("cosine_similarity", missing=NAN)})
    x, y = np.random.default_rng(0).normal(size=(2, 8, 3)).astype("float32")
    y[1, 1] = NAN
    model.compile("adam")
    with pytest.raises(ValueError, match="Task 'task': the loss must be finite"):
        model.calibrate(x, {"task": y}, verbose=0)


def test_circle_takes_no_missing_labels():
    config = keras.saving.serialize_keras_object(Gibbs("circle"))
    config["config"]["missing"] = -1
    with pytest.raises(ValueError, match=r"'task': The Circle loss.*Received: missing=-1"):
        UncertaintyWeighting({"task": config})


# --- Values that are harmless ---------------------------------------------------------------------


def log_depth(y_true, y_pred):
    return ops.abs(ops.log(y_true) - y_pred)


def relative(y_true, y_pred):
    return ops.mean(ops.abs(y_true - y_pred) * (1 / y_true), axis=-1)


class LogNormal(Likelihood):
    def loss(self, targets, predictions):
        return ops.square(ops.log(targets) - predictions)


class LogGaussian(Gaussian):
    def loss(self, targets, predictions):
        return ops.square(ops.log(targets) - ops.log(predictions))


@pytest.mark.parametrize("missing", [0.0, NAN])
@pytest.mark.parametrize(
    "make",
    [
        *(functools.partial(Gibbs, loss) for loss in (log_depth, relative)),
        *(LogNormal, LogGaussian),
        functools.partial(Gibbs, losses.CategoricalCrossentropy(label_smoothing=0.1)),
    ],
)
@pytest.mark.parametrize("hide", ["missing", "weight"])
def test_a_missing_target_does_no_harm_to_a_logarithm(make, missing, hide, loss_and_gradient):
    targets, predictions = positive()
    shown = np.arange(6) % 2 == 0
    expected, of_shown = loss_and_gradient(make(), targets[shown], predictions[shown])
    targets[~shown] = missing
    arguments = {"missing": missing} if hide == "missing" else {}
    weight = shown.astype("float32") if hide == "weight" else None
    value, gradient = loss_and_gradient(make(**arguments), targets, predictions, weight)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(gradient[shown], of_shown, rtol=1e-5)
    assert np.all(gradient[~shown] == 0)


@pytest.mark.parametrize("make", [functools.partial(Gibbs, log_depth), LogNormal])
def test_a_batch_without_labels_does_no_harm_to_a_logarithm(make, loss_and_gradient):
    predictions = positive()[1]
    targets = np.zeros_like(predictions)
    value, gradient = loss_and_gradient(make(missing=0), targets, predictions)
    assert value == 0
    assert np.all(gradient == 0)


def test_a_missing_target_has_a_value_of_its_own_channel(loss_and_gradient):
    """A rate in the first channel, of which the loss takes the log-odds, a count in the second."""

    def log_odds(y_true, y_pred):
        rate = y_true[:, 0]
        return ops.stack([ops.log(rate) - ops.log(1 - rate), y_true[:, 1]], 1) ** 2 - 0 * y_pred

    targets = np.array([[0.25, 900.0], [0.0, 800.0], [0.125, 0.0]], "float32")
    likelihood = Gibbs(log_odds, missing=0)
    value, _ = loss_and_gradient(likelihood, targets, np.zeros((3, 2), "float32"))
    seen = [*special.logit([0.25, 0.125]) ** 2, 900.0**2, 800.0**2]
    np.testing.assert_allclose(value, np.mean(seen), rtol=1e-5)


@pytest.mark.parametrize("dtype", ["uint8", "int32"])
def test_a_missing_class_is_filled_by_another(dtype, loss_and_gradient):
    _, predictions = soft()
    targets = np.array([3, 255, 0, 2, 255, 1], dtype)
    loss = losses.CategoricalGeneralizedCrossEntropy(q=0.5)
    value, gradient = loss_and_gradient(Gibbs(loss, missing=255), targets, predictions)
    of_class = predictions[targets != 255, targets[targets != 255]]
    np.testing.assert_allclose(value, np.mean((1 - np.sqrt(of_class)) / 0.5), rtol=1e-5)
    assert np.all(np.isfinite(gradient))


# --- Losses below 0 -------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", ["cosine_similarity", losses.CosineSimilarity(axis=-1)])
def test_the_cosine_similarity_is_a_distance(loss, loss_and_gradient):
    targets, predictions = positive()
    value, _ = loss_and_gradient(loss, targets, predictions)
    expected = paired_cosine_distances(targets, predictions).mean()
    np.testing.assert_allclose(value, expected, rtol=1e-4)


def test_the_poisson_loss_is_half_the_deviance(loss_and_gradient):
    rng = np.random.default_rng(0)
    predictions = rng.uniform(0.5, 60, (50, 2)).astype("float32")
    targets = rng.poisson(predictions)
    value, gradient = loss_and_gradient("poisson", targets, predictions)
    expected = mean_poisson_deviance(targets.ravel(), predictions.ravel()) / 2
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(gradient * 100, 1 - targets / predictions, rtol=1e-4, atol=1e-4)
    assert loss_and_gradient("poisson", predictions, predictions)[0] >= 0


def test_the_divergence_of_sums_other_than_one_is_not_below_zero(loss_and_gradient):
    targets, predictions = soft()
    value, _ = loss_and_gradient("kl_divergence", targets, predictions)
    expected = stats.entropy(targets, predictions, axis=-1).mean()
    np.testing.assert_allclose(value, expected, rtol=1e-4, atol=1e-6)
    flat = np.full_like(predictions, 0.9)
    value, _ = loss_and_gradient("kl_divergence", targets, flat)
    # SciPy's `kl_div` has the same terms.
    np.testing.assert_allclose(value, special.kl_div(targets, flat).sum(-1).mean(), rtol=1e-4)


@pytest.mark.parametrize("name", ["cosine_similarity", "poisson", "kl_divergence"])
def test_sigma_follows_a_loss_that_was_below_zero(name):
    targets, predictions = soft()
    layer = UncertaintyWeighting({"task": name})
    layer.build(predictions.shape)
    loss = Gibbs(name).loss(targets, predictions)
    layer.combined_loss(predictions, targets, training=True, report=False)
    mean = ops.convert_to_numpy(loss).mean()
    assert layer.sigmas()["task"] == pytest.approx(np.sqrt(2 * mean), rel=1e-4)


@pytest.mark.filterwarnings("ignore:Model .* the loss of")
def test_a_mean_loss_below_zero_is_nan():
    inputs = keras.Input((3,))
    outputs = {"task": keras.layers.Dense(2)(inputs)}

    def below_zero(y_true, y_pred):
        return ops.mean(ops.square(y_true - y_pred), axis=-1) - 100.0

    model = MultiTaskModel(inputs, outputs, {"task": below_zero})
    model.compile("sgd")
    x, y = np.ones((8, 3), "float32"), {"task": np.ones((8, 2), "float32")}
    logs = model.evaluate(x, y, verbose=0, return_dict=True)
    assert np.isnan(logs["loss"])
    assert logs["task_loss"] < -50


# --- Targets of another shape ---------------------------------------------------------------------


def sparse_focal(y_true, y_pred):
    classes = ops.cast(ops.reshape(y_true, (-1,)), "int32")
    logs = ops.log_softmax(y_pred, axis=-1)
    log = ops.take_along_axis(logs, classes[:, None], axis=-1)[:, 0]
    return -((1 - ops.exp(log)) ** 2) * log


QUANTILES = np.array([0.1, 0.5, 0.9], "float32")


def pinball(y_true, y_pred, quantiles=QUANTILES):
    return ops.mean(Pinball(quantiles)(y_true, y_pred), axis=-1)


class Pinball:
    """A callable object, and one that cannot be hashed."""

    __hash__ = None

    def __init__(self, quantiles=QUANTILES):
        self.quantiles = quantiles

    def __call__(self, y_true, y_pred):
        quantiles = ops.convert_to_tensor(self.quantiles)
        error = ops.reshape(y_true, (-1, 1)) - y_pred
        return ops.maximum(quantiles * error, (quantiles - 1) * error)


OTHER_SHAPES = {
    "gce": losses.CategoricalGeneralizedCrossEntropy(q=0.5),
    "gce-function": functools.partial(losses.categorical_generalized_cross_entropy, q=0.5),
    "sparse": Gibbs(losses.SparseCategoricalCrossentropy(from_logits=True)),
    "focal": sparse_focal,
    "pinball": pinball,
    "partial": functools.partial(pinball, quantiles=QUANTILES),
    "object": Pinball(),
}


@pytest.mark.parametrize("shape", [(6,), (6, 1)])
@pytest.mark.parametrize("name", OTHER_SHAPES)
def test_a_loss_takes_targets_of_another_shape_as_in_keras(name, shape, loss_and_gradient):
    loss = OTHER_SHAPES[name]
    _, predictions = soft((6, 3))
    targets = np.array([0, 2, 1, 1, 0, 2]).reshape(shape)
    value, _ = loss_and_gradient(loss, targets, predictions)
    stock = keras.Sequential([keras.layers.Input((3,)), keras.layers.Identity()])
    stock.compile(loss=getattr(loss, "keras_loss", loss))
    # Of a column of class ids, Keras's GCE takes each with the predictions of all samples.
    given = targets.ravel() if "gce" in name else targets
    expected = stock.evaluate(predictions, given, verbose=0)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    if "ball" in name:
        of_each = [
            mean_pinball_loss(targets.ravel(), predictions[:, column], alpha=quantile)
            for column, quantile in enumerate(QUANTILES)
        ]
        np.testing.assert_allclose(value, np.mean(of_each), rtol=1e-5)


@pytest.mark.parametrize("name", ["pinball", "object"])
def test_quantiles_leave_missing_targets_out(name, loss_and_gradient):
    _, predictions = soft((6, 3))
    targets = np.array([0.1, NAN, 0.4, NAN, 0.9, 0.2], "float32")
    shown = ~np.isnan(targets)
    value, gradient = loss_and_gradient(
        Gibbs(OTHER_SHAPES[name], missing=NAN), targets, predictions
    )
    expected, _ = loss_and_gradient(OTHER_SHAPES[name], targets[shown], predictions[shown])
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    assert np.all(gradient[~shown] == 0)


def test_circle_and_ctc_are_taken_by_name(loss_and_gradient):
    rng = np.random.default_rng(4)
    embeddings = rng.normal(size=(6, 4)).astype("float32")
    embeddings /= np.linalg.norm(embeddings, axis=-1, keepdims=True)
    logits = rng.normal(size=(6, 5, 4)).astype("float32")
    for name, loss, targets, outputs in (
        ("circle", losses.Circle(), np.array([0, 0, 1, 1, 2, 2]), embeddings),
        ("ctc", losses.CTC(), rng.integers(1, 4, (6, 2)), logits),
    ):
        value, _ = loss_and_gradient(name, targets, outputs)
        expected = ops.convert_to_numpy(loss(targets, outputs))
        np.testing.assert_allclose(value, expected, rtol=1e-4)


def test_another_batch_is_refused(loss_and_gradient):
    with pytest.raises(ValueError, match=r"'task': Gibbs expects targets of shape \(6, 3\)"):
        loss_and_gradient(pinball, np.zeros(5, "float32"), np.zeros((6, 3), "float32"))


# --- Partials and objects -------------------------------------------------------------------------


@pytest.mark.parametrize("from_logits", [False, True])
def test_a_partial_of_a_cross_entropy_is_its_likelihood(from_logits):
    for loss, kind in (
        (losses.binary_crossentropy, "Bernoulli"),
        (losses.sparse_categorical_crossentropy, "Categorical"),
    ):
        likelihood = likelihoods.get(functools.partial(loss, from_logits=from_logits))
        assert type(likelihood).__name__ == kind
        assert (likelihood.from_logits, likelihood.approximate) == (from_logits, not from_logits)


@keras.saving.register_keras_serializable(package="test_gibbs")
class Scaled:
    """A callable object that Keras can save."""

    def __init__(self, factor):
        self.factor = factor

    def __call__(self, y_true, y_pred):
        return self.factor * ops.abs(y_true - y_pred)

    def get_config(self):
        return {"factor": self.factor}

    @classmethod
    def from_config(cls, config):
        return cls(**config)


@pytest.mark.parametrize("loss", [Scaled(3.0), functools.partial(mean_cube), Pinball()])
def test_an_object_is_saved_or_refused(loss, tmp_path):
    inputs = keras.Input((3,))
    model = MultiTaskModel(inputs, {"task": keras.layers.Dense(1)(inputs)}, {"task": Gibbs(loss)})
    if not isinstance(loss, Scaled):
        with pytest.raises(ValueError, match=r"(?s)'task': Saving expects a loss.*Received: "):
            model.save(tmp_path / "model.keras")
        return
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.weighting.tasks["task"].keras_loss.factor == 3.0


def error_of_no_name(y_true, y_pred):
    return keras.ops.abs(y_true - y_pred)


def saved_with(loss, path):
    inputs = keras.Input((2,))
    MultiTaskModel(inputs, {"a": keras.layers.Dense(1)(inputs)}, {"a": loss}).save(path)
    return path


@pytest.mark.filterwarnings("ignore:The object being serialized includes a `lambda`")
def test_a_lambda_loads_where_that_is_allowed(tmp_path):
    path = saved_with(lambda y_true, y_pred: abs(y_true - y_pred), tmp_path / "m.keras")
    with pytest.raises((TypeError, ValueError), match=r"lambda.*safe_mode=False"):
        keras.models.load_model(path)
    loaded = keras.models.load_model(path, safe_mode=False)
    loss = loaded.weighting.tasks["a"].loss(np.float32([[3.0]]), np.float32([[1.0]]))
    np.testing.assert_array_equal(loss, [[2.0]])


def test_a_loss_that_is_not_found_has_keras_own_error(tmp_path):
    path = saved_with(error_of_no_name, tmp_path / "m.keras")
    with pytest.raises(TypeError, match=r"Could not locate function 'error_of_no_name'"):
        keras.models.load_model(path)
    own = {"error_of_no_name": error_of_no_name}
    assert keras.models.load_model(path, custom_objects=own).weighting.tasks["a"].keras_loss
