"""Trains with `BackupAndRestore`, is killed at a step, and stores what came out if it is not.

A process of its own, because nothing of it may survive.

    train_killed.py <backup directory> <file of the results> [<step to be killed at>]
"""

import os
import signal
import sys

import keras
import numpy as np

from keras_uncertainty_mtl import Categorical, Gaussian, Laplace, MultiTaskModel

EPOCHS, SAMPLES, BATCH = 6, 200, 32  # Seven batches an epoch, the last of eight samples.


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
    # No label in all of the first epoch's batches but the last: σ starts late.
    y["near"][: SAMPLES // BATCH * BATCH] = np.nan
    return x, y


def make_model():
    x = keras.Input((4,))
    # No dropout: Keras does not save where a layer's random numbers are.
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
