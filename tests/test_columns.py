"""Many columns in one output: a σ, a temperature and a name for each, and labels for some."""

import keras
import numpy as np
import pytest
from keras import ops
from scipy import optimize, special

from keras_uncertainty_mtl import (
    Bernoulli,
    Categorical,
    Gaussian,
    Laplace,
    MultiTaskModel,
    UncertaintyWeighting,
    inference_model,
)

NAMES = ["a", "b", "c"]
SIGMAS = [0.5, 1.0, 2.0]
SAMPLES, CLASSES = 240, 4


def draw(kind, sequence=(), seed=0):
    """Logits and targets of three columns, with -1 for the labels that are missing."""
    rng = np.random.default_rng(seed)
    shape = (SAMPLES, *sequence, 3)
    temperatures = np.array([0.5, 1.0, 3.0])
    if kind == "flags":
        logits = rng.normal(0, 2, shape)
        targets = (logits / temperatures + rng.logistic(size=shape) > 0).astype("float32")
        return logits.astype("float32"), np.where(rng.random(shape) < 0.4, -1, targets)
    logits = rng.normal(0, 2, (*shape, CLASSES))
    noisy = logits / temperatures[:, None] + rng.gumbel(size=logits.shape)
    targets = np.where(rng.random(shape) < 0.4, -1, noisy.argmax(axis=-1))
    if kind == "one-hot":
        targets = np.where(targets[..., None] < 0, -1.0, np.eye(CLASSES)[targets])
    return logits.astype("float32"), targets


def likelihood_of(kind, **kwargs):
    if kind == "flags":
        return Bernoulli(missing=-1, **kwargs)
    return Categorical(sparse=kind == "classes", missing=-1, **kwargs)


def losses_of(kind, logits, targets):
    """SciPy's cross-entropy of each element, and where there is a label."""
    if kind == "flags":
        return -special.log_expit((2 * targets - 1) * logits), targets >= 0
    if kind == "one-hot":
        targets = np.where(targets[..., 0] < 0, -1, targets.argmax(axis=-1))
    logs = special.log_softmax(logits, axis=-1)
    losses = -np.take_along_axis(logs, np.maximum(targets, 0)[..., None], axis=-1)[..., 0]
    return losses, targets >= 0


def at_temperatures(kind, logits, sigmas):
    variances = np.square(sigmas)
    return logits / (variances if kind == "flags" else variances[:, None])


kinds = pytest.mark.parametrize("kind", ["flags", "classes", "one-hot"])


@kinds
@pytest.mark.parametrize("sequence", [(), (2,)])
@pytest.mark.parametrize("approximate", [False, True])
def test_the_loss_is_the_mean_over_the_labels_of_all_columns(
    kind, sequence, approximate, value_and_gradients
):
    logits, targets = draw(kind, sequence)
    arguments = {"per_channel": True, "initial_sigma": SIGMAS, "approximate": approximate}
    layer = UncertaintyWeighting({"assays": likelihood_of(kind, **arguments)})
    layer.build(logits.shape)
    f = keras.Variable(logits)

    def loss():
        tempered = layer({"assays": f.value})
        return layer.combined_loss(tempered, {"assays": targets}, training=False, report=False)

    value, (gradient,) = value_and_gradients(loss, [f])

    def expected(logits):
        if approximate:
            losses, shown = losses_of(kind, logits, targets)
            return (losses / np.square(SIGMAS) + np.log(SIGMAS))[shown].mean()
        losses, shown = losses_of(kind, at_temperatures(kind, logits, SIGMAS), targets)
        return losses[shown].mean()

    np.testing.assert_allclose(value, expected(logits), rtol=1e-5)
    _, shown = losses_of(kind, logits, targets)
    assert np.all(gradient[~shown] == 0)
    moved = np.zeros(logits.shape)
    at = tuple(np.argwhere(shown)[5])
    moved[at if kind == "flags" else (*at, 1)] = 1e-3
    difference = (expected(logits + moved) - expected(logits - moved)) / 2e-3
    np.testing.assert_allclose(np.sum(gradient * moved) / 1e-3, difference, rtol=1e-2, atol=1e-6)


@kinds
def test_the_closed_form_is_that_of_each_column(kind):
    logits, targets = draw(kind)
    layer = UncertaintyWeighting({"assays": likelihood_of(kind, channels=NAMES, approximate=True)})
    layer.build(logits.shape)
    layer.combined_loss({"assays": logits}, {"assays": targets}, training=True, report=False)
    losses, shown = losses_of(kind, logits, targets)
    means = [losses[shown[:, column], column].mean() for column in range(3)]
    expected = dict(zip(NAMES, np.sqrt(2 * np.array(means)), strict=True))
    assert layer.sigmas()["assays"] == pytest.approx(expected, rel=1e-5)


def model_of(kind, **arguments):
    """A model whose network hands its input on."""
    logits, targets = draw(kind)
    inputs = keras.Input(logits.shape[1:])
    outputs = {"assays": keras.layers.Dense(logits.shape[-1], use_bias=False)(inputs)}
    model = MultiTaskModel(inputs, outputs, {"assays": likelihood_of(kind, **arguments)})
    model.layers[1].set_weights([np.eye(logits.shape[-1])])
    model.compile(keras.optimizers.SGD(0.0))
    return model, logits, targets


def best_sigma(kind, logits, targets, column):
    """SciPy's σ of maximum likelihood for one column."""

    def nll(s):
        losses, shown = losses_of(kind, logits * np.exp(-s), targets)
        return losses[shown[:, column], column].mean()

    return np.exp(0.5 * optimize.minimize_scalar(nll, bounds=(-4, 4)).x)


@kinds
def test_calibration_scales_the_temperature_of_each_column(kind, tmp_path):
    model, logits, targets = model_of(kind, channels=NAMES)
    sigmas = model.calibrate(logits, {"assays": targets}, verbose=0)["assays"]
    for column, name in enumerate(NAMES):
        assert sigmas[name] == pytest.approx(best_sigma(kind, logits, targets, column), rel=1e-3)

    expected = at_temperatures(kind, logits, [*sigmas.values()])
    losses, shown = losses_of(kind, expected, targets)
    reported = model.evaluate(logits, {"assays": targets}, verbose=0, return_dict=True)
    assert reported["assays_loss"] == pytest.approx(losses[shown].mean(), rel=1e-5)
    root_mean_square = np.sqrt(np.mean(np.square([*sigmas.values()])))
    assert reported["assays_sigma"] == pytest.approx(root_mean_square, rel=1e-5)

    activation = special.expit if kind == "flags" else lambda f: special.softmax(f, axis=-1)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.weighting.sigmas()["assays"] == pytest.approx(sigmas, rel=1e-6)
    for each in (model, loaded, inference_model(loaded)):
        answers = each.predict(logits, verbose=0)["assays"]
        np.testing.assert_allclose(answers, expected, rtol=1e-4, atol=1e-5)
    for name, network in (("n", inference_model(model)), ("p", model.predictive_model())):
        network.save(tmp_path / f"{name}.keras")
        again = keras.models.load_model(tmp_path / f"{name}.keras")
        (values,) = again.predict(logits, verbose=0).values()
        wanted = expected if name == "n" else activation(expected)
        np.testing.assert_allclose(values, wanted, rtol=1e-4, atol=1e-5)


def test_images_with_channels_first_change_no_temperature():
    keras.config.set_image_data_format("channels_first")
    try:
        for kind in ("flags", "classes"):
            model, logits, _ = model_of(kind, per_channel=True, initial_sigma=SIGMAS)
            answers = inference_model(model).predict(logits, verbose=0)["assays"]
            expected = at_temperatures(kind, logits, SIGMAS)
            np.testing.assert_allclose(answers, expected, rtol=1e-5, atol=1e-6)
    finally:
        keras.config.set_image_data_format("channels_last")


def test_training_finds_a_temperature_for_each_column():
    model, logits, targets = model_of("flags", channels=NAMES)
    model.compile(keras.optimizers.Adam(1e-2))
    model.layers[1].trainable = False
    model.fit(0.4 * logits, {"assays": targets}, epochs=60, verbose=0)
    sigmas = np.array([*model.weighting.sigmas()["assays"].values()])
    best = [best_sigma("flags", 0.4 * logits, targets, column) for column in range(3)]
    # A temperature only falls.
    np.testing.assert_allclose(sigmas, np.minimum(best, 1), rtol=0.05)


@pytest.mark.parametrize("make", [Gaussian, Laplace])
def test_numbers_have_names_of_columns_too(make):
    rng = np.random.default_rng(0)
    targets = rng.normal(size=(50, 3)).astype("float32") * SIGMAS
    predictions = np.zeros((50, 3), "float32")
    layer = UncertaintyWeighting({"assays": make(channels=NAMES), "others": make(per_channel=True)})
    layer.build(dict.fromkeys(("assays", "others"), predictions.shape))
    arrays = dict.fromkeys(("assays", "others"), predictions)
    layer.combined_loss(arrays, dict.fromkeys(arrays, targets), training=True, report=False)
    of_columns = layer.sigmas()["others"]
    expected = np.sqrt(2 if make is Laplace else 1) * (
        np.abs(targets).mean(axis=0) if make is Laplace else np.sqrt((targets**2).mean(axis=0))
    )
    np.testing.assert_allclose(of_columns, expected, rtol=1e-5)
    assert layer.sigmas()["assays"] == dict(zip(NAMES, of_columns, strict=True))


@pytest.mark.parametrize("make", [Gaussian, Laplace, Bernoulli, Categorical])
@pytest.mark.parametrize("channels", ["abc", [], ["a", "a"], [1, 2]])
def test_names_that_are_none_are_refused(make, channels):
    with pytest.raises(ValueError, match=r"`channels` must be a list.*Received: "):
        make(channels=channels)


@pytest.mark.parametrize(
    ("likelihood", "shape", "message"),
    [
        (Gaussian(channels=NAMES), (8, 2), "name for each of 2 channels.*3 names"),
        (Categorical(channels=NAMES), (8, 2, 5), "name for each of 2 channels.*3 names"),
        (Categorical(per_channel=True), (8, 3), "before that of classes.*\\(8, 3\\)"),
        (Bernoulli(per_channel=True, initial_sigma=[1, 2]), (8, 3), "`initial_sigma` must be"),
    ],
)
def test_columns_of_another_number_are_refused(likelihood, shape, message):
    with pytest.raises(ValueError, match=rf"Task 'assays': .*{message}"):
        UncertaintyWeighting({"assays": likelihood}).build(shape)


def test_six_hundred_columns_of_which_one_has_no_label():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(32, 600)).astype("float32")
    targets = rng.integers(-1, 2, (32, 600)).astype("float32")
    targets[:, 7] = -1
    layer = UncertaintyWeighting({"assays": Bernoulli(per_channel=True, missing=-1)})
    layer.build(logits.shape)
    loss = layer.combined_loss(
        {"assays": logits}, {"assays": targets}, training=False, report=False
    )
    losses, shown = losses_of("flags", logits, targets)
    np.testing.assert_allclose(ops.convert_to_numpy(loss), losses[shown].mean(), rtol=1e-5)
