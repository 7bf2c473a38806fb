"""A model, its data and its results, for comparing one device with several."""

import keras
import numpy as np

from keras_uncertainty_mtl import (
    Categorical,
    Gaussian,
    Laplace,
    MultiTaskModel,
    UncertaintyWeighting,
)

KINDS = ("model", "layer")
SAMPLES, BATCH, EPOCHS = 412, 64, 4  # the last of seven batches has 28 samples


def make_data(kind):
    """The arguments of `fit`: a tuple of `x`, `y` and sample weights, or of `x` alone."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(SAMPLES, 5)).astype("float32")
    slope = rng.normal(size=5)
    y = {
        "far": (100 * x @ slope + 10 * rng.normal(size=SAMPLES)).astype("float32"),
        "near": np.stack([x @ slope, x[:, 0] + rng.normal(size=SAMPLES)], 1).astype("float32"),
        "kind": (x[:, 1] > 0).astype("int32"),
    }
    y["near"][rng.random(SAMPLES) < 0.5] = np.nan
    # The labels of one task are at the start of each batch, so one replica has them all.
    y["kind"][np.arange(SAMPLES) % BATCH > BATCH // 4] = -1
    weights = {
        "far": rng.uniform(0, 2, size=SAMPLES).astype("float32"),
        "near": np.ones(SAMPLES, "float32"),
        "kind": rng.integers(0, 3, size=SAMPLES).astype("float32"),
    }
    if kind == "model":
        return x, y, weights
    return (
        {
            "x": x,
            **{f"{task}_target": y[task] for task in y},
            **{f"{task}_weight": weights[task] for task in y},
        },
    )


def make_model(kind):
    """A compiled `MultiTaskModel`, or a plain model that holds the layer."""
    keras.utils.set_random_seed(1)
    inputs = keras.Input((5,), name="x")
    hidden = keras.layers.Dense(8, activation="tanh", kernel_regularizer="l2")(inputs)
    outputs = {
        "far": keras.layers.Dense(1)(hidden),
        "near": keras.layers.Dense(2)(hidden),
        "kind": keras.layers.Dense(2)(hidden),
    }
    weighting = UncertaintyWeighting(
        {
            "far": Gaussian(),
            "near": Laplace(per_channel=True, missing=float("nan")),
            "kind": Categorical(missing=-1),
        },
        name="weighting",
    )
    if kind == "model":
        model = MultiTaskModel(inputs, outputs, weighting)
    else:
        targets = weighting.target_inputs(outputs)
        sample_weight = {task: keras.Input((), name=f"{task}_weight") for task in outputs}
        more = [*targets.values(), *sample_weight.values()]
        model = keras.Model(
            {"x": inputs, **{t.name: t for t in more}},
            weighting(outputs, targets, sample_weight=sample_weight),
        )
    model.compile(keras.optimizers.Adam(0.01))
    return model


def results(model, history, evaluation):
    """The results that must agree, as lists of numbers for JSON."""
    sigmas = model.get_layer("weighting").sigmas()
    return {
        "history": history.history,
        "evaluate": evaluation,
        "sigmas": {task: np.ravel(sigma).tolist() for task, sigma in sigmas.items()},
        "weights": [np.ravel(weight).astype(float).tolist() for weight in model.get_weights()],
    }
