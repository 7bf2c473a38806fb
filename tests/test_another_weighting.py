"""A model on the outputs of another one goes on from it, with its own weighting."""

import keras
import numpy as np
import pytest
from scipy.special import softmax

from keras_uncertainty_mtl import (
    Categorical,
    Gaussian,
    Laplace,
    MultiTaskModel,
    UncertaintyWeighting,
    inference_model,
)

NAN = float("nan")


def data(samples=128):
    x = np.random.default_rng(0).normal(size=(samples, 4)).astype("float32")
    return x, {"depth": 3.0 * x[:, :1], "kind": x[:, :3].argmax(-1)}


def network():
    inputs = keras.Input((4,))
    features = keras.layers.Dense(8, activation="relu", name="features")(inputs)
    outputs = {
        "depth": keras.layers.Dense(1, name="depth")(features),
        "kind": keras.layers.Dense(3, name="kind")(features),
    }
    return inputs, outputs


@pytest.fixture
def trained():
    """A model whose temperature is not 1."""
    model = MultiTaskModel(*network(), {"depth": Gaussian(), "kind": Categorical()})
    model.compile(keras.optimizers.Adam(1e-2))
    model.fit(*data(), verbose=0)
    model.weighting.set_log_variances({"kind": -1.5})
    return model


def test_the_new_weighting_takes_the_place_of_the_old_one(trained, tmp_path):
    x, y = data()
    weighting = UncertaintyWeighting(
        {"depth": Laplace(missing=NAN), "kind": Categorical()}, loss_weights={"depth": 0.1}
    )
    model = MultiTaskModel(trained.input, trained.output, weighting)
    model.compile(keras.optimizers.Adam(1e-2))
    assert model.weighting is weighting
    before = trained.predict(x, verbose=0)
    for task, predictions in model.predict(x, verbose=0).items():
        np.testing.assert_allclose(predictions, before[task], rtol=1e-5, atol=1e-6)
    expected = np.mean(np.abs(y["depth"] - before["depth"]))
    reported = model.evaluate(x, y, verbose=0, return_dict=True)
    assert reported["depth_loss"] == pytest.approx(expected, rel=1e-5)
    y["depth"][::2] = NAN
    model.fit(x, y, verbose=0)
    sigmas = model.weighting.sigmas()
    model.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    assert type(loaded.weighting.tasks["depth"]) is Laplace
    assert loaded.weighting.loss_weights["depth"] == 0.1
    assert loaded.weighting.sigmas() == pytest.approx(sigmas, rel=1e-6)


@pytest.mark.parametrize("answers", [lambda model: model, inference_model])
def test_a_model_on_the_answers_of_another_has_predictive_distributions(trained, answers):
    x, y = data()
    earlier = answers(trained)
    model = MultiTaskModel(
        earlier.input, earlier.output, {"depth": Laplace(), "kind": Categorical()}
    )
    model.compile(keras.optimizers.Adam(1e-2))
    model.fit(x, y, verbose=0)
    logits = model.predict(x, verbose=0)["kind"]
    predicted = model.predictive_model().predict(x, verbose=0)
    np.testing.assert_allclose(predicted["kind_probabilities"], softmax(logits, -1), atol=1e-6)


def test_a_task_is_added_to_a_trained_model(trained):
    x, y = data()
    width = keras.layers.Dense(1)(trained.get_layer("features").output)
    model = MultiTaskModel(
        trained.input,
        {**trained.output, "width": width},
        {"depth": Gaussian(), "kind": Categorical(), "width": Laplace()},
    )
    model.compile(keras.optimizers.Adam(1e-2))
    y["width"] = x[:, 1:2]
    expected = np.mean(np.abs(y["width"] - model.predict(x, verbose=0)["width"]))
    reported = model.evaluate(x, y, verbose=0, return_dict=True)
    assert reported["width_loss"] == pytest.approx(expected, rel=1e-5)
    model.fit(x, y, verbose=0)


def test_a_model_goes_on_from_one_with_a_bare_layer():
    x, y = data()
    inputs, outputs = network()
    layer = UncertaintyWeighting({"depth": Gaussian(), "kind": Categorical()})
    targets = layer.target_inputs(outputs)
    bare = keras.Model([inputs, *targets.values()], layer(outputs, targets))
    model = MultiTaskModel(bare.input, bare.output, {"depth": Laplace(), "kind": Categorical()})
    model.compile("adam")
    errors = np.abs(y["depth"] - model.predict(x, verbose=0)["depth"])
    reported = model.evaluate(x, y, verbose=0, return_dict=True)
    assert reported["depth_loss"] == pytest.approx(np.mean(errors), rel=1e-5)


def test_the_same_weighting_is_not_applied_twice(trained):
    x, _ = data()
    model = MultiTaskModel(trained.input, trained.output, trained.weighting)
    expected = trained.predict(x, verbose=0)
    for task, predictions in model.predict(x, verbose=0).items():
        np.testing.assert_allclose(predictions, expected[task], rtol=1e-6)
