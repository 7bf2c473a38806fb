"""The numbers that Keras reports of a `MultiTaskModel`, to `History`, callbacks and callers."""

import keras
import numpy as np
import pytest
from keras import ops
from scipy import special

from keras_uncertainty_mtl import Categorical, Gaussian, MultiTaskModel

LOGS = {"loss", "depth_loss", "depth_sigma", "classes_loss", "classes_sigma"}


def make_model(kind=MultiTaskModel):
    inputs = keras.Input((3,))
    outputs = {"depth": keras.layers.Dense(1)(inputs), "classes": keras.layers.Dense(4)(inputs)}
    return kind(inputs, outputs, {"depth": Gaussian(), "classes": Categorical()})


def data():
    rng = np.random.default_rng(0)
    return rng.normal(size=(20, 3)).astype("float32"), {
        "depth": rng.normal(size=(20, 1)).astype("float32"),
        "classes": rng.integers(4, size=20).astype("int32"),
    }


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"run_eagerly": True},
        pytest.param(
            {"steps_per_execution": 2},
            marks=pytest.mark.backends(
                "tensorflow", "jax", reason="Keras on PyTorch takes no steps_per_execution"
            ),
        ),
    ],
    ids=["compiled", "run_eagerly", "steps_per_execution"],
)
def test_history_holds_the_means_over_all_samples(options):
    x, y = data()
    model = make_model()
    # The network stays as it is. The last of three batches has 4 samples, the others 8.
    model.compile(keras.optimizers.SGD(0.0), metrics={"classes": ["accuracy"]}, **options)
    history = model.fit(
        x, y, batch_size=8, epochs=2, validation_data=(x, y), validation_batch_size=8, verbose=0
    ).history
    assert history.keys() == {
        f"{part}{name}" for part in ("", "val_") for name in LOGS | {"classes_accuracy"}
    }

    predictions, sigmas = model.predict(x, verbose=0), model.weighting.sigmas()
    log_probabilities = special.log_softmax(predictions["classes"], axis=-1)
    right = predictions["classes"].argmax(axis=-1) == y["classes"]
    expected = {
        "depth_loss": np.mean((predictions["depth"] - y["depth"]) ** 2),
        "classes_loss": -np.mean(log_probabilities[np.arange(20), y["classes"]]),
        "classes_accuracy": np.mean(right),
        "classes_sigma": 1.0,  # only the optimizer moves a temperature
    }
    for name, value in expected.items():
        np.testing.assert_allclose(history[name], 2 * [value], rtol=1e-5, err_msg=name)
        np.testing.assert_allclose(history[f"val_{name}"], 2 * [value], rtol=1e-5, err_msg=name)
    assert history["val_depth_sigma"][-1] == pytest.approx(sigmas["depth"], rel=1e-6)
    weight = 1 / (2 * sigmas["depth"] ** 2)
    total = weight * expected["depth_loss"] + np.log(sigmas["depth"]) + expected["classes_loss"]
    assert history["val_loss"][-1] == pytest.approx(total, rel=1e-5)


def test_callbacks_see_floats_after_every_batch():
    logs_of_batches = []
    x, y = data()
    model = make_model()
    model.compile("adam")
    callback = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: logs_of_batches.append(dict(logs))
    )
    model.fit(x, y, batch_size=10, verbose=0, callbacks=[callback])
    assert len(logs_of_batches) == 2
    for logs in logs_of_batches:
        assert set(logs) == LOGS
        assert all(isinstance(value, float) for value in logs.values())


def with_logs(change, returned):
    """Changes the logs of a step, which on JAX is followed by its new state."""
    if isinstance(returned, tuple):
        return change(returned[0]), *returned[1:]
    return change(returned)


def test_a_users_train_step_reports_whatever_it_likes():
    class Model(MultiTaskModel):
        def train_step(self, *args):
            more = {"rows": ops.shape(args[-1][0])[0], "pair": ops.ones(2)}
            return with_logs(lambda logs: logs | more, super().train_step(*args))

    x, y = data()
    model = make_model(Model)
    model.compile("adam")
    history = model.fit(x, y, batch_size=20, verbose=0).history
    assert history.keys() == LOGS | {"rows", "pair"}
    assert history["rows"] == [20]
    assert np.isfinite(history["loss"][0])


def test_a_users_train_step_reports_other_numbers_of_weighted_batches():
    class Model(MultiTaskModel):
        def train_step(self, *args):
            is_weighted = keras.utils.unpack_x_y_sample_weight(args[-1])[2] is not None
            prefix = "weighted_" if is_weighted else ""
            return with_logs(
                lambda logs: {f"{prefix}{name}": value for name, value in logs.items()},
                super().train_step(*args),
            )

    x, y = data()
    model = make_model(Model)
    model.compile("adam")
    reported = [
        set(model.train_on_batch(x, y, sample_weight=weights, return_dict=True))
        for weights in (None, np.ones(20, "float32"), None)
    ]
    assert reported == [LOGS, {f"weighted_{name}" for name in LOGS}, LOGS]
