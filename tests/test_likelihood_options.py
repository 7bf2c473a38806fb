"""Options of all likelihoods: a floor of σ, a σ that is held, and tasks without labels."""

import keras
import numpy as np
import pytest

from keras_uncertainty_mtl import (
    Bernoulli,
    Categorical,
    Gaussian,
    Gibbs,
    Laplace,
    MultiTaskModel,
    UncertaintyWeighting,
    inference_model,
)

LIKELIHOODS = [Gaussian, Laplace, lambda **options: Gibbs("huber", **options)]


def follow(likelihood, errors):
    """σ after batches of these errors."""
    layer = UncertaintyWeighting({"task": likelihood})
    for error in errors:
        zeros = np.zeros((4, 1), "float32")
        layer(zeros, zeros + np.float32(error), training=True)
    return layer.sigmas()["task"]


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_sigma_stays_above_its_floor_and_leaves_it(likelihood):
    assert follow(likelihood(min_sigma=0.5), [1e-3] * 20) == pytest.approx(0.5)
    free = follow(likelihood(), [1e-3] * 20 + [2.0] * 60)
    assert follow(likelihood(min_sigma=0.5), [1e-3] * 20 + [2.0] * 60) == pytest.approx(free)


def test_a_task_that_is_learnt_by_heart_leaves_the_others_their_share():
    layer = UncertaintyWeighting({"known": Gaussian(min_sigma=0.1), "other": Gaussian()})
    zeros = np.zeros((4, 1), "float32")
    for error in np.geomspace(1, 1e-6, 60, dtype="float32"):
        layer(
            {"known": zeros, "other": zeros},
            {"known": zeros + error, "other": zeros + 1.0},
            training=True,
        )
    # ½ · exp(-s) of the floor.
    assert layer.task_weights()["known"] == pytest.approx(0.5 / 0.1**2)
    assert layer.task_weights()["other"] == pytest.approx(0.5, rel=1e-4)


@pytest.mark.parametrize("likelihood", [Categorical, Bernoulli])
def test_a_temperature_has_a_floor_too(likelihood):
    inputs = keras.Input((2,))
    units = 2 if likelihood is Categorical else 1
    head = keras.layers.Dense(units, kernel_initializer="zeros")(inputs)
    model = MultiTaskModel(inputs, {"task": head}, {"task": likelihood(min_sigma=0.9)})
    model.compile(keras.optimizers.Adam(0.1))
    x = np.random.default_rng(0).normal(size=(64, 2)).astype("float32")
    model.fit(x, {"task": (x[:, 0] > 0).astype("int32")}, epochs=20, verbose=0)
    assert model.weighting.sigmas()["task"] == pytest.approx(0.9)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_a_sigma_that_is_not_trainable_stays_until_it_is_set(likelihood):
    held = likelihood(trainable=False, initial_sigma=3.0)
    assert follow(held, [7.0] * 5) == pytest.approx(3.0)
    layer = UncertaintyWeighting({"task": held, "other": likelihood()})
    errors = {task: np.full((4, 1), 7.0, "float32") for task in ("task", "other")}
    zeros = {task: np.zeros((4, 1), "float32") for task in errors}
    layer(zeros, errors, training=True)
    assert layer.sigmas()["task"] == pytest.approx(3.0)
    assert layer.sigmas()["other"] > 3.5
    layer.set_log_variances({"task": np.log(4.0), "other": np.nan})
    layer(zeros, errors, training=True)
    assert layer.sigmas()["task"] == pytest.approx(2.0)


def test_a_temperature_that_is_not_trainable_stays():
    inputs = keras.Input((2,))
    model = MultiTaskModel(
        inputs,
        {"task": keras.layers.Dense(2, kernel_initializer="zeros")(inputs)},
        {"task": Categorical(trainable=False, initial_sigma=1.5)},
    )
    model.compile(keras.optimizers.Adam(0.1))
    x = np.random.default_rng(0).normal(size=(64, 2)).astype("float32")
    model.fit(x, {"task": (x[:, 0] > 0).astype("int32")}, epochs=5, verbose=0)
    assert model.weighting.sigmas()["task"] == pytest.approx(1.5)


class TestTasksWithoutLabels:
    X = np.random.default_rng(0).normal(size=(64, 3)).astype("float32")
    Y = 2 * X[:, :1]

    def outputs(self):
        inputs = keras.Input((3,))
        value = keras.layers.Dense(1, kernel_initializer="ones", name="value")(inputs)
        # The residual of value = 2 · x, and a penalty of the value.
        residual = keras.layers.Subtract()([value, keras.layers.Rescaling(2.0)(inputs[:, :1])])
        return inputs, {"data": value, "physics": residual, "penalty": keras.ops.square(value)}

    def tasks(self):
        return {"data": Gaussian(), "physics": Gaussian(target=0.0), "penalty": Gibbs()}

    def expected(self):
        value = self.X.sum(axis=1, keepdims=True)
        return {
            "data": np.sqrt(np.mean(np.square(value - self.Y))),
            "physics": np.sqrt(np.mean(np.square(value - self.Y))),
            "penalty": np.sqrt(2 * np.mean(np.square(value))),
        }

    @pytest.mark.parametrize("y", [{"data": Y}, Y, [Y]], ids=["dict", "array", "list"])
    def test_a_model_takes_the_targets_of_the_others(self, y, tmp_path):
        model = MultiTaskModel(*self.outputs(), self.tasks())
        model.compile(keras.optimizers.SGD(0.0), metrics={"physics": ["mse"], "data": ["mse"]})
        history = model.fit(self.X, y, batch_size=64, verbose=0).history
        assert model.weighting.sigmas() == pytest.approx(self.expected(), rel=1e-5)
        assert history["physics_mse"][0] == pytest.approx(history["data_mse"][0], rel=1e-5)
        assert model.calibrate(self.X, y, verbose=0) == pytest.approx(self.expected(), rel=1e-5)
        model.save(tmp_path / "model.keras")
        loaded = keras.saving.load_model(tmp_path / "model.keras")
        before, after = (m.evaluate(self.X, y, verbose=0) for m in (model, loaded))
        assert after == pytest.approx(before, rel=1e-5)

    def test_so_does_the_layer(self):
        inputs, outputs = self.outputs()
        weighting = UncertaintyWeighting(self.tasks())
        targets = weighting.target_inputs(outputs)
        assert list(targets) == ["data"]
        model = keras.Model([inputs, targets["data"]], weighting(outputs, targets))
        model.compile(keras.optimizers.SGD(0.0))
        model.fit([self.X, self.Y], batch_size=64, verbose=0)
        assert weighting.sigmas() == pytest.approx(self.expected(), rel=1e-5)
        assert len(inference_model(model).inputs) == 1

    def test_no_task_needs_labels(self):
        inputs, outputs = self.outputs()
        del outputs["data"]
        model = MultiTaskModel(
            inputs, outputs, {"physics": Gaussian(target=0.0), "penalty": Gibbs()}
        )
        model.compile(keras.optimizers.SGD(0.0))
        model.fit(self.X, batch_size=64, verbose=0)
        expected = {task: self.expected()[task] for task in ("physics", "penalty")}
        assert model.weighting.sigmas() == pytest.approx(expected, rel=1e-5)


OUT_OF_RANGE = [{"min_sigma": 0.0}, {"min_sigma": [1.0, 2.0]}, {"target": "0"}]


@pytest.mark.parametrize("options", OUT_OF_RANGE)
def test_an_option_out_of_range_is_refused(options):
    (name,) = options
    with pytest.raises(ValueError, match=rf"`{name}` must be .*Received: {name}="):
        Gaussian(**options)
