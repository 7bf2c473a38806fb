"""Trains with losses of the network's own layers, on one device and on two replicas.

It prints the loss before training, and a kernel after two steps, of each kind of model as JSON.
This is a process of its own, because TensorFlow's collectives keep one number of replicas.
"""

import contextlib
import json

import keras
import numpy as np
import tensorflow as tf

from keras_uncertainty_mtl import Categorical, Gaussian, MultiTaskModel, UncertaintyWeighting


class Penalty(keras.layers.Layer):
    def call(self, x):
        self.add_loss(3.0 * keras.ops.mean(keras.ops.square(x)))
        return x


def make_model(kind):
    keras.utils.set_random_seed(0)
    x = keras.Input((4,), name="x")
    regularizers = {"activity_regularizer": "l2", "kernel_regularizer": "l1"}
    hidden = Penalty()(keras.layers.Dense(6, activation="relu", **regularizers)(x))
    outputs = {task: keras.layers.Dense(size)(hidden) for task, size in {"a": 1, "k": 3}.items()}
    weighting = UncertaintyWeighting({"a": Gaussian(), "k": Categorical()})
    losses = None
    if kind == "stock":
        model = keras.Model(x, outputs)
        losses = {"a": "mse", "k": keras.losses.SparseCategoricalCrossentropy(from_logits=True)}
    elif kind == "model":
        model = MultiTaskModel(x, outputs, weighting)
    else:
        targets = weighting.target_inputs(outputs)
        weighted = weighting(outputs, targets)
        weighted["a"] = Penalty()(weighted["a"])  # Behind the weighting, layers may add losses too.
        model = keras.Model({"x": x, **{each.name: each for each in targets.values()}}, weighted)
    model.compile(keras.optimizers.SGD(0.01), loss=losses)
    return model


def main():
    devices = [tf.config.LogicalDeviceConfiguration()] * 2
    tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], devices)
    rng = np.random.default_rng(0)
    x = 5 * rng.normal(size=(64, 4)).astype("float32")
    y = {"a": rng.normal(size=(64, 1)).astype("float32"), "k": rng.integers(3, size=64)}
    mirrored = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    results = {}
    for kind in ("stock", "model", "layer"):
        data = (x, y)
        if kind == "layer":
            data = ({"x": x, **{f"{task}_target": target for task, target in y.items()}},)
        results[kind] = {}
        for name, strategy in {"one": None, "several": mirrored}.items():
            with strategy.scope() if strategy else contextlib.nullcontext():
                model = make_model(kind)
            loss = model.evaluate(*data, batch_size=64, verbose=0, return_dict=True)["loss"]
            model.fit(*data, batch_size=64, epochs=2, shuffle=False, verbose=0)
            kernel = model.layers[1].get_weights()[0]
            results[kind][name] = {"loss": loss, "kernel": kernel.astype(float).tolist()}
    print(json.dumps(results))


if __name__ == "__main__":
    main()
