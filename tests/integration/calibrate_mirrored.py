"""Calibrates on one device and on two replicas, and prints a line of all numbers for each.

This is a process of its own, because TensorFlow's collectives keep one number of replicas.
"""

import contextlib

import keras
import numpy as np
import tensorflow as tf

from keras_uncertainty_mtl import Categorical, Gaussian, Laplace, MultiTaskModel


def main():
    devices = [tf.config.LogicalDeviceConfiguration()] * 2
    tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], devices)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 3)).astype("float32")
    y = {
        "far": 100 * x[:, 0],
        "near": 2 * x[:, :2],
        "kind": np.argmax(x + rng.normal(size=x.shape), 1),
    }
    y["near"][rng.random(200) < 0.5] = np.nan
    for strategy in (None, tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])):
        with strategy.scope() if strategy else contextlib.nullcontext():
            inputs = keras.Input((3,))
            sizes = {"far": 1, "near": 2, "kind": 3}
            outputs = {
                task: keras.layers.Dense(size, kernel_initializer=keras.initializers.Identity())(
                    inputs
                )
                for task, size in sizes.items()
            }
            near = Laplace(per_channel=True, missing=float("nan"))
            tasks = {"far": Gaussian(), "near": near, "kind": Categorical()}
            model = MultiTaskModel(inputs, outputs, tasks)
            model.compile(keras.optimizers.SGD(0.0))
        # The last batch has 8 samples, and training goes on.
        ones = np.ones(200)
        weights = {"far": 1.0 + 8.0 * (np.arange(200) == 37), "near": ones, "kind": ones}
        model.calibrate(x, y, sample_weight=weights, batch_size=32, intervals=0.9, verbose=0)
        answers = model.predictive_model().predict(x, verbose=0)
        regions = [answers["far_upper"], answers["near_lower"], answers["kind_set"]]
        model.calibrate(x, y, batch_size=32, verbose=0)
        model.fit(x, y, batch_size=32, shuffle=False, verbose=0)
        numbers = [*model.weighting.sigmas().values(), *regions]
        print(*np.concatenate([np.ravel(each) for each in numbers]).astype(float))


if __name__ == "__main__":
    main()
