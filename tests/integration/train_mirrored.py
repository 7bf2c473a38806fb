"""Trains on several replicas, and prints what came out as JSON.

A process of its own, because TensorFlow's collectives take one number of replicas a process.
"""

import contextlib
import json
import sys

import keras
import numpy as np
import tensorflow as tf

from keras_uncertainty_mtl import (
    Categorical,
    Gaussian,
    Laplace,
    MultiTaskModel,
    UncertaintyWeighting,
)

SAMPLES, BATCH = 412, 64  # The last batch of an epoch has 28 samples.


def data():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(SAMPLES, 5)).astype("float32")
    slope = rng.normal(size=5)
    y = {
        "far": (100 * x @ slope + 10 * rng.normal(size=SAMPLES)).astype("float32"),
        "near": np.stack([x @ slope, x[:, 0] + rng.normal(size=SAMPLES)], 1).astype("float32"),
        "kind": (x[:, 1] > 0).astype("int32"),
    }
    y["near"][rng.random(SAMPLES) < 0.5] = np.nan
    # One task has labels at the start of each batch only, where they all are one replica's.
    y["kind"][np.arange(SAMPLES) % BATCH > BATCH // 4] = -1
    weights = {
        "far": rng.uniform(0, 2, size=SAMPLES),
        "near": np.ones(SAMPLES),
        "kind": rng.integers(0, 3, size=SAMPLES),
    }
    return x, y, {task: weight.astype("float32") for task, weight in weights.items()}


def train(kind, strategy):
    keras.utils.set_random_seed(1)
    x, y, weights = data()
    with strategy.scope() if strategy else contextlib.nullcontext():
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
            }
        )
        if kind == "model":
            model = MultiTaskModel(inputs, outputs, weighting)
            given = (x, y, weights)
        else:
            targets = weighting.target_inputs(outputs)
            sample_weight = {task: keras.Input((), name=f"{task}_weight") for task in y}
            more = [*targets.values(), *sample_weight.values()]
            model = keras.Model(
                {"x": inputs, **{t.name: t for t in more}},
                weighting(outputs, targets, sample_weight=sample_weight),
            )
            given = (
                {
                    "x": x,
                    **{f"{task}_target": y[task] for task in y},
                    **{f"{task}_weight": weights[task] for task in y},
                },
            )
        model.compile(keras.optimizers.Adam(0.01))
    dataset = tf.data.Dataset.from_tensor_slices(given).batch(BATCH)
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    dataset = dataset.with_options(options)
    history = model.fit(dataset, epochs=8, validation_data=dataset, verbose=0).history
    return {
        "history": history,
        "evaluate": model.evaluate(dataset, verbose=0, return_dict=True),
        "sigmas": {task: np.ravel(sigma).tolist() for task, sigma in weighting.sigmas().items()},
        "weights": [np.ravel(weight).astype(float).tolist() for weight in model.get_weights()],
    }


if __name__ == "__main__":
    replicas = int(sys.argv[1])
    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0],
        [tf.config.LogicalDeviceConfiguration()] * replicas,
    )
    mirrored = tf.distribute.MirroredStrategy([f"CPU:{index}" for index in range(replicas)])
    print(
        json.dumps(
            {
                kind: {"one": train(kind, None), "several": train(kind, mirrored)}
                for kind in ("model", "layer")
            }
        )
    )
