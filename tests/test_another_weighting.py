"""A model on the outputs of others goes on from them, with its own weighting."""

import keras
import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax

from keras_uncertainty_mtl import (
    Bernoulli,
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


def two_on_one_input():
    """Models of the same tasks whose temperatures differ, with one input."""
    inputs, models = keras.Input((4,)), []
    for s in (-1.0, -2.0):
        outputs = {"depth": keras.layers.Dense(1)(inputs), "kind": keras.layers.Dense(3)(inputs)}
        model = MultiTaskModel(inputs, outputs, {"depth": Gaussian(), "kind": Categorical()})
        model.weighting.set_log_variances({"kind": s})
        models.append(model)
    return models


def test_a_weighting_that_is_used_again_leaves_the_temperature_of_another():
    x, _ = data()
    first, second = two_on_one_input()
    outputs = {"depth": first.output["depth"], "kind": second.output["kind"]}
    model = MultiTaskModel(first.input, outputs, first.weighting)
    expected = np.exp(1.0) * second.predict(x, verbose=0)["kind"]
    np.testing.assert_allclose(model.predict(x, verbose=0)["kind"], expected, rtol=1e-5, atol=1e-6)


def members(count=3):
    """Trained models whose temperatures differ."""
    x, y = data()
    found = []
    for index in range(count):
        keras.utils.set_random_seed(index)
        model = MultiTaskModel(*network(), {"depth": Gaussian(), "kind": Categorical()})
        model.compile(keras.optimizers.Adam(1e-2))
        model.fit(x, y, epochs=20, verbose=0)
        model.weighting.set_log_variances({"kind": -0.5 * index})
        found.append(model)
    return found


@pytest.mark.parametrize("is_nested", [True, False])
def test_an_ensemble_of_models_is_calibrated_as_it_answers(is_nested):
    x, _ = data()
    y = (x[:, :3] + np.random.default_rng(1).normal(size=(len(x), 3))).argmax(-1)
    models = members()
    inputs = keras.Input((4,)) if is_nested else models[0].input
    if is_nested:
        answers = [model(inputs)["kind"] for model in models]
    else:
        answers = [keras.Model(each.input, each.output["kind"])(inputs) for each in models[1:]]
        answers.append(models[0].output["kind"])
    mean = keras.layers.Average()(answers)
    ensemble = MultiTaskModel(inputs, {"kind": mean}, {"kind": Categorical()})
    ensemble.compile("adam")
    logits = ensemble.predict(x, verbose=0)["kind"].astype("float64")

    def loss(s):
        return -np.mean(log_softmax(np.exp(-s) * logits, -1)[np.arange(len(y)), y])

    best = minimize_scalar(loss, (-3, 3), tol=1e-10)
    sigma = ensemble.calibrate(x, {"kind": y}, intervals=0.9, verbose=0)["kind"]
    assert sigma == pytest.approx(np.exp(best.x / 2), rel=1e-3)
    reported = ensemble.evaluate(x, {"kind": y}, verbose=0, return_dict=True)
    assert reported["kind_loss"] == pytest.approx(best.fun, rel=1e-5)
    sets = ensemble.predictive_model().predict(x, verbose=0)["kind_set"]
    assert 0.9 <= np.mean(sets[np.arange(len(y)), y]) < 0.95


def test_outputs_of_two_weightings_with_a_task_of_one_name_become_one_model():
    x, _ = data()
    models = two_on_one_input()
    outputs = {name: each.output["kind"] for name, each in zip("ab", models, strict=True)}
    model = MultiTaskModel(models[0].input, outputs, {"a": Categorical(), "b": Categorical()})
    answers = model.predict(x, verbose=0)
    for name, each in zip("ab", models, strict=True):
        expected = each.predict(x, verbose=0)["kind"]
        np.testing.assert_allclose(answers[name], expected, rtol=1e-5, atol=1e-6)


def test_a_loaded_network_with_bare_operations_has_all_its_models(tmp_path):
    inputs = keras.Input((4,))
    features = 2.0 * keras.layers.Dense(8)(inputs) + 1.0
    outputs = {"depth": keras.layers.Dense(1)(features), "flags": keras.layers.Dense(2)(features)}
    tasks = {"depth": Gaussian(), "flags": Bernoulli(per_channel=True)}
    MultiTaskModel(inputs, outputs, tasks).save(tmp_path / "m.keras")
    keras.backend.clear_session()  # As in another process, where Keras counts names from 0 on.
    model = keras.saving.load_model(tmp_path / "m.keras")
    x, y = data()
    model.calibrate(x, {"depth": y["depth"], "flags": x[:, :2] > 0}, intervals=0.9, verbose=0)
    answers = model.predictive_model().predict(x, verbose=0)
    expected = model.predict(x, verbose=0)
    np.testing.assert_allclose(answers["depth_mean"], expected["depth"], rtol=1e-6)
    np.testing.assert_allclose(
        answers["flags_probabilities"], 1 / (1 + np.exp(-expected["flags"])), rtol=1e-4
    )


@pytest.mark.parametrize("structure", ["nested", "list with one that is not needed"])
def test_inputs_of_any_structure_go_through_all_models(structure):
    x, y = data()
    left, right = keras.Input((2,), name="left"), keras.Input((2,), name="right")
    if structure == "nested":
        inputs = {"parts": {"left": left, "right": [right]}}
        given = {"parts": {"left": x[:, :2], "right": [x[:, 2:]]}}
        features = keras.layers.Concatenate()([left, right])
    else:
        inputs, given, features = [left, right], [x[:, :2], x[:, 2:]], left
    model = MultiTaskModel(inputs, {"depth": keras.layers.Dense(1)(features)}, {"depth": Laplace()})
    model.compile("adam")
    targets = {"depth": y["depth"]}
    model.fit(given, targets, verbose=0)
    errors = np.abs(y["depth"] - model.predict(given, verbose=0)["depth"])
    sigma = model.calibrate(given, targets, verbose=0)["depth"]
    assert sigma == pytest.approx(np.sqrt(2) * errors.mean(), rel=1e-5)
    needed = given if structure == "nested" else given[0]
    answers = model.predictive_model().predict(needed, verbose=0)
    found = np.abs(y["depth"] - answers["depth_location"])
    np.testing.assert_allclose(found, errors, rtol=1e-5, atol=1e-6)
    again = MultiTaskModel(model.input, model.output, {"depth": Gaussian()})
    np.testing.assert_allclose(
        again.predict(needed, verbose=0)["depth"], answers["depth_location"], rtol=1e-5
    )


def test_a_weighting_that_was_built_for_other_channels_is_refused():
    x, _ = data()
    weighting = UncertaintyWeighting({"p": Gaussian(per_channel=True)})
    for channels in (2, 3):
        inputs = keras.Input((4,))
        model = MultiTaskModel(inputs, {"p": keras.layers.Dense(channels)(inputs)}, weighting)
    model.compile("adam")
    with pytest.raises(ValueError, match=r"Task 'p'.*of 2 channels.*Received: 3 channels"):
        model.fit(x, {"p": x[:, :3]}, verbose=0)


def test_saved_log_variances_of_another_shape_are_refused(tmp_path):
    def build(likelihood):
        inputs = keras.Input((4,))
        outputs = {"p": keras.layers.Dense(3)(inputs)}
        return MultiTaskModel(inputs, outputs, {"p": likelihood})

    build(Gaussian(initial_sigma=2.0)).save_weights(tmp_path / "p.weights.h5")
    model = build(Gaussian(channels=["x", "y", "z"], initial_sigma=3.0))
    with pytest.raises(
        ValueError, match=r"tasks \{'p': \(3,\)\}.*Received: those of \{'p': \(\)\}"
    ):
        model.load_weights(tmp_path / "p.weights.h5")
    with pytest.warns(UserWarning, match="could not be loaded"):
        model.load_weights(tmp_path / "p.weights.h5", skip_mismatch=True)
    assert model.weighting.sigmas()["p"] == pytest.approx({"x": 3.0, "y": 3.0, "z": 3.0})
