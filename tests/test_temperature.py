"""A model answers with the logits it was trained on: those at their temperature."""

import keras
import numpy as np
import pytest
from scipy import special

from keras_uncertainty_mtl import (
    Bernoulli,
    Categorical,
    Gaussian,
    MultiTaskModel,
    UncertaintyWeighting,
    inference_model,
)

# Initialisations of a head, and the steps of Adam that they are trained for.
STARTS, STEPS = 10, 2000

SIGMAS = {"kind": 0.5, "flag": 2.0}


@pytest.fixture
def problem():
    """A network with raw logits, a model of it, and data."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(96, 4)).astype("float32")
    y = {
        "kind": rng.integers(0, 3, size=96).astype("int32"),
        "flag": (rng.random((96, 1)) < 0.5).astype("float32"),
        "size": rng.normal(size=(96, 1)).astype("float32"),
    }
    inputs = keras.Input((4,))
    outputs = {
        task: keras.layers.Dense(units)(inputs)
        for task, units in (("kind", 3), ("flag", 1), ("size", 1))
    }
    tasks = {
        "kind": Categorical(initial_sigma=SIGMAS["kind"]),
        "flag": Bernoulli(initial_sigma=SIGMAS["flag"]),
        "size": Gaussian(),
    }
    return keras.Model(inputs, outputs), MultiTaskModel(inputs, outputs, tasks), x, y


def negative_log_likelihoods(logits, y):
    """The mean negative log-likelihoods of logits, by SciPy."""
    kind = special.log_softmax(logits["kind"].astype("float64"), axis=-1)
    signs = 2 * y["flag"] - 1
    return {
        "kind": -np.mean(kind[np.arange(len(kind)), y["kind"]]),
        "flag": -np.mean(special.log_expit(signs * logits["flag"].astype("float64"))),
    }


def test_logits_are_divided_by_the_temperature_and_numbers_stay(problem):
    network, model, x, _ = problem
    raw, answers = network.predict(x, verbose=0), model.predict(x, verbose=0)
    for task, sigma in SIGMAS.items():
        np.testing.assert_allclose(answers[task], raw[task] / sigma**2, rtol=1e-5)
    np.testing.assert_array_equal(answers["size"], raw["size"])


def test_the_reported_loss_is_the_negative_log_likelihood_of_the_answers(problem):
    _, model, x, y = problem
    model.compile("adam", weighted_metrics={"kind": ["accuracy"]})
    model.fit(x, y, epochs=2, verbose=0)
    reported = model.evaluate(x, y, verbose=0, return_dict=True)
    answers = model.predict(x, verbose=0)
    for task, expected in negative_log_likelihoods(answers, y).items():
        assert reported[f"{task}_loss"] == pytest.approx(expected, rel=1e-5)
    accuracy = np.mean(answers["kind"].argmax(axis=-1) == y["kind"])
    assert reported["kind_accuracy"] == pytest.approx(accuracy, rel=1e-6)


@pytest.mark.backends("tensorflow", reason="loads a SavedModel with TensorFlow")
def test_an_exported_model_has_the_likelihood_that_training_reported(problem, tmp_path):
    import tensorflow as tf

    _, model, x, y = problem
    model.compile("adam")
    model.fit(x, y, epochs=2, verbose=0)
    reported = model.evaluate(x, y, verbose=0, return_dict=True)
    model.export(tmp_path / "model", verbose=False)
    served = tf.saved_model.load(tmp_path / "model")
    answers = {task: logits.numpy() for task, logits in served.serve(x).items()}
    for task, expected in negative_log_likelihoods(answers, y).items():
        assert reported[f"{task}_loss"] == pytest.approx(expected, rel=1e-5)


def test_the_inference_model_is_calibrated_after_calibration(problem):
    network, model, x, y = problem
    sigmas = model.calibrate(x, y, verbose=0)
    raw, answers = network.predict(x, verbose=0), inference_model(model).predict(x, verbose=0)
    probabilities = model.predictive_model().predict(x, verbose=0)
    for task, activation in (("kind", special.softmax), ("flag", special.expit)):
        logits = raw[task] / sigmas[task] ** 2
        np.testing.assert_allclose(answers[task], logits, rtol=1e-5, atol=1e-6)
        arguments = {"axis": -1} if task == "kind" else {}
        np.testing.assert_allclose(
            probabilities[f"{task}_probabilities"], activation(logits, **arguments), rtol=1e-5
        )


def test_the_loss_of_the_bare_layer_is_that_of_its_answers(problem):
    network, _, x, y = problem
    layer = UncertaintyWeighting({"kind": Categorical(initial_sigma=SIGMAS["kind"])})
    logits = network.predict(x, verbose=0)["kind"]
    answers = keras.ops.convert_to_numpy(layer({"kind": logits}, {"kind": y["kind"]})["kind"])
    np.testing.assert_allclose(answers, logits / SIGMAS["kind"] ** 2, rtol=1e-5)
    expected = negative_log_likelihoods({"kind": answers, "flag": y["flag"]}, y)["kind"]
    assert float(layer.losses[0]) == pytest.approx(expected, rel=1e-5)


def test_weights_load_into_a_model_whose_tasks_have_another_order(tmp_path):
    def model(names):
        inputs = keras.Input((2,), name="x")
        outputs = {name: keras.layers.Dense(1, name=name)(inputs) for name in ("a", "b")}
        return MultiTaskModel(inputs, outputs, {name: Gaussian() for name in names})

    saved, loaded = model(["a", "b"]), model(["b", "a"])
    saved.weighting.set_log_variances({"a": -3.0, "b": 5.0})
    saved.save_weights(tmp_path / "m.weights.h5")
    loaded.load_weights(tmp_path / "m.weights.h5")
    assert loaded.weighting.log_variances() == pytest.approx({"a": -3.0, "b": 5.0}, rel=1e-6)


@pytest.mark.backends("tensorflow", reason="takes many steps at once")
def test_a_wrong_start_ends_as_good_as_with_stock_keras():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(32 * STEPS, 1)).astype("float32")
    y = (rng.random(x.shape) < special.expit(2 * x)).astype("float32")
    names = [f"head_{index}" for index in range(STARTS)]

    def accuracies(model, **options):
        model.compile(keras.optimizers.Adam(1e-3), steps_per_execution=STEPS, **options)
        model.fit(x, dict.fromkeys(names, y), batch_size=32, verbose=0)
        answers = model.predict(x, batch_size=len(x), verbose=0)
        return np.array([np.mean((answers[name] > 0) == y) for name in names])

    def heads():
        keras.utils.set_random_seed(0)
        inputs = keras.Input((1,))
        return inputs, {name: keras.layers.Dense(1)(inputs) for name in names}

    stock = dict.fromkeys(names, keras.losses.BinaryCrossentropy(from_logits=True))
    ours = accuracies(MultiTaskModel(*heads(), dict.fromkeys(names, Bernoulli())))
    assert np.min(ours - accuracies(keras.Model(*heads()), loss=stock)) >= -0.01
