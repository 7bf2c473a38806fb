"""Trains with `BackupAndRestore`, and stores the results unless it is killed at a step.

This is a process of its own, of which nothing may survive.

    train_killed.py <backup directory> <file of the results> [<step to be killed at>]
"""

import os
import signal
import sys

import keras
import numpy as np

from keras_uncertainty_mtl import Categorical, Gaussian, Laplace, MultiTaskModel

EPOCHS, SAMPLES, BATCH = 6, 200, 32  # seven batches an epoch, the last of eight samples


class Kill(keras.callbacks.Callback):
    def __init__(self, step):
        super().__init__()
        self.step = step

    def on_train_batch_end(self, batch, logs=None):
        if int(self.model.optimizer.iterations) == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def data():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(SAMPLES, 4)).astype("float32")
    y = {
        "far": (100 * x[:, 0] + rng.normal(size=SAMPLES)).astype("float32"),
        "near": x[:, 1:3] + 0.1 * rng.normal(size=(SAMPLES, 2)).astype("float32"),
        "kind": (x[:, 3] > 0).astype("int32"),
    }
    # In the first epoch only the last batch has labels, so σ starts late.
    y["near"][: SAMPLES // BATCH * BATCH] = np.nan
    return x, y


def make_model():
    x = keras.Input((4,))
    # There is no dropout, because Keras does not save the state of random numbers.
    hidden = keras.layers.Dense(8, activation="tanh")(x)
    outputs = {
        "far": keras.layers.Dense(1)(hidden),
        "near": keras.layers.Dense(2)(hidden),
        "kind": keras.layers.Dense(2)(hidden),
    }
    near = Laplace(per_channel=True, missing=float("nan"))
    model = MultiTaskModel(x, outputs, {"far": Gaussian(), "near": near, "kind": Categorical()})
    model.compile(keras.optimizers.AdamW(0.01))
    return model


if __name__ == "__main__":
    backup, results, *steps = sys.argv[1:]
    keras.utils.set_random_seed(1)
    model = make_model()
    x, y = data()
    model.fit(
        x,
        y,
        batch_size=BATCH,
        epochs=EPOCHS,
        shuffle=False,
        verbose=0,
        callbacks=[keras.callbacks.BackupAndRestore(backup), *(Kill(int(step)) for step in steps)],
    )
    variables = {
        variable.path: variable for variable in model.variables + model.optimizer.variables
    }
    np.savez(
        results,
        **{path.replace("/", "."): keras.ops.convert_to_numpy(v) for path, v in variables.items()},
    )
