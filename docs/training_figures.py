"""Figures of σ in training: beside a network's error, and around a corrupt label."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from matplotlib.figure import Figure

from docs.styles import LINES
from keras_uncertainty_mtl import Gaussian, MultiTaskModel


def following() -> Figure:
    """σ over the steps of a run beside the network's error, and a plainly trained s."""
    steps, size = 600, 64
    rng = np.random.default_rng(0)
    keras.utils.set_random_seed(0)
    x = rng.normal(size=(4096, 4)).astype("float32")
    y = 100 * np.sin(x.sum(axis=-1)) + 5 * rng.normal(size=len(x)).astype("float32")
    inputs = keras.Input((4,))
    hidden = keras.layers.Dense(64, activation="tanh")(inputs)
    head = keras.layers.Rescaling(100.0)(keras.layers.Dense(1)(hidden))
    model = MultiTaskModel(inputs, {"y": head}, {"y": Gaussian()})
    model.compile(keras.optimizers.Adam(0.01))
    sigmas, errors = [], []
    for _ in range(steps):
        batch = rng.integers(len(x), size=size)
        model.reset_metrics()
        loss = model.train_on_batch(x[batch], y[batch], return_dict=True)["y_loss"]
        errors.append(np.sqrt(loss))
        sigmas.append(model.weighting.sigmas()["y"])
    figure = Figure(figsize=(5.8, 2.8), layout="constrained")
    axes = figure.subplots()
    axes.plot(
        errors, ".", color="#909090", markersize=3, label="error of a batch (RMS)"
    )
    axes.plot(sigmas, label="σ of this package", **LINES[0])
    plain = plainly_trained(np.square(errors), 0.01)
    axes.plot(plain, label="σ of s from 0, trained by Adam", **LINES[1])
    axes.set(yscale="log", xlabel="step", ylabel="σ, in the units of the target")
    axes.legend(loc=(0.5, 0.3))
    return figure


def plainly_trained(mean_squares: Any, learning_rate: float) -> list[float]:
    """σ of a log-variance that starts at 0 and that Adam trains like any other weight."""
    s = keras.Variable(0.0)
    adam = keras.optimizers.Adam(learning_rate)
    sigmas = []
    for mean_square in mean_squares:
        adam.apply([0.5 - 0.5 * keras.ops.exp(-s) * mean_square], [s])
        sigmas.append(float(keras.ops.exp(0.5 * s)))
    return sigmas


def corrupt() -> Figure:
    """The weight of a task around a batch with a corrupt label."""
    y = np.random.default_rng(0).normal(size=(400, 32, 1)).astype("float32")
    y[100, 0] = 1e4
    inputs = keras.Input((1,))
    nothing = keras.layers.Rescaling(0.0)(inputs)
    model = MultiTaskModel(inputs, {"y": nothing}, {"y": Gaussian()})
    model.compile(keras.optimizers.Adam(0.01))
    sigmas = []
    for batch in y:
        model.train_on_batch(batch, batch)
        sigmas.append(model.weighting.sigmas()["y"])
    plain = plainly_trained(np.mean(y**2, axis=(1, 2)), 0.01)
    figure = Figure(figsize=(5.8, 2.4), layout="constrained")
    axes = figure.subplots()
    axes.plot(np.square(sigmas) ** -1, label="this package", **LINES[0])
    axes.plot(np.square(plain) ** -1, label="s trained by Adam", **LINES[1])
    axes.axvline(100, **LINES[2])
    axes.set(xlabel="batch", ylabel="weight 1 / σ²", ylim=(0, 1.6))
    axes.legend()
    return figure
