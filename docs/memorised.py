"""The picture of a task that is learnt by heart: `python -m docs.memorised` draws it (minutes).

2,000 examples have a smooth signal. A hundred of them also have a number of noise, which can only
be learnt by heart. Three networks learn the signal: alone, beside the noise, and beside it with a
floor for its σ.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd
from keras import layers
from matplotlib import rc_context
from matplotlib.figure import Figure

from docs.figures import pair_of_axes
from docs.styles import LINES, STYLE
from examples.batches import shuffled
from keras_uncertainty_mtl import Gaussian, MultiTaskModel

SEEDS, EPOCHS, BATCH = 3, 60, 32
EXAMPLES, LABELLED = 2000, 100
NOISE = {"missing": float("nan")}
WAYS: dict[str, dict[str, Any]] = {
    "alone": {"signal": Gaussian()},
    "beside noise": {"signal": Gaussian(), "noise": Gaussian(**NOISE)},
    "with min_sigma=1": {
        "signal": Gaussian(),
        "noise": Gaussian(min_sigma=1.0, **NOISE),
    },
}


def data(seed: int) -> tuple[Any, dict[str, Any]]:
    draw = np.random.default_rng(seed)
    x = draw.normal(size=(2 * EXAMPLES, 6)).astype("float32")
    signal = np.sin(2 * x[:, 0]) + x[:, 1] * x[:, 2] + 0.1 * draw.normal(size=len(x))
    noise = draw.normal(size=len(x))
    noise[LABELLED:] = np.nan
    return x, {"signal": signal[:, None], "noise": noise[:, None]}


def history(tasks: dict[str, Any], seed: int) -> dict[str, Any]:
    """Trains a network; returns the numbers of each epoch."""
    x, y = data(seed)
    train, held_out = (
        (x[part], {task: y[task][part] for task in tasks})
        for part in (slice(0, EXAMPLES), slice(EXAMPLES, None))
    )
    keras.utils.set_random_seed(seed)
    hidden = inputs = keras.Input((6,))
    for units in (128, 64):
        hidden = layers.Dense(units, activation="relu")(hidden)
    heads = {
        task: layers.Dense(1)(layers.Dense(32, activation="relu")(hidden))
        for task in tasks
    }
    model = MultiTaskModel(inputs, heads, tasks)
    steps = EPOCHS * -(-EXAMPLES // BATCH)
    model.compile(
        keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(1e-3, steps))
    )
    batches = shuffled(*train, BATCH, seed)
    fitted = model.fit(
        batches, validation_data=held_out, epochs=EPOCHS, shuffle=False, verbose=0
    )
    return fitted.history


def draw(table: pd.DataFrame) -> Figure:
    figure, left, right = pair_of_axes()
    means = table.groupby(["way", "epoch"]).mean()
    for way, line in zip(WAYS, LINES, strict=True):
        left.plot(means.loc[way, "error"], label=way, **line)
        right.plot(means.loc[way, "sigma"], **line)
    left.set(xlabel="epoch", ylabel="held-out error of the signal", ylim=(0.15, 0.5))
    right.set(xlabel="epoch", ylabel="σ of the noise", yscale="log")
    left.legend()
    return figure


def main() -> None:
    """Trains all, prints the last errors, and draws."""
    rows = []
    for seed in range(SEEDS):
        for way, tasks in WAYS.items():
            numbers = history(tasks, seed)
            errors = np.sqrt(numbers["val_signal_loss"])
            sigmas = numbers.get("noise_sigma", [np.nan] * EPOCHS)
            for epoch, (error, sigma) in enumerate(
                zip(errors, sigmas, strict=True), start=1
            ):
                rows.append(
                    {"way": way, "epoch": epoch, "error": error, "sigma": sigma}
                )
            print(seed, way, f"{errors[-1]:.3f}", flush=True)
    table = pd.DataFrame(rows)
    last = table[table.epoch == EPOCHS].groupby("way")["error"]
    print(last.agg(["mean", "std"]))
    with rc_context(STYLE):
        draw(table).savefig(
            Path(__file__).parent / "_static" / "memorised.svg", metadata={"Date": None}
        )


if __name__ == "__main__":
    main()
