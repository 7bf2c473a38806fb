"""Accuracy and calibrated likelihood of exact classification from many wrong starts.

    python -m benchmarks.temperature

A hundred heads without a hidden layer start from a hundred initialisations. They share no weight,
so one model trains all of them. Stock Keras trains the same heads with its cross-entropy.

| problem | features | classes | batch |
|---|---|---|---|
| `one` | 1, standard normal | 2 | 32 |
| `two` | 2, standard normal | 2 | 32 |
| `digits` | 64 pixels from 0 to 255 | 10 | 32 |

A temperature found on held-out data calibrates both before their likelihoods are compared.
"""

from __future__ import annotations

import argparse
import platform
from collections.abc import Callable
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd
import tensorflow as tf
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax
from sklearn.datasets import load_digits

from examples.command_line import markdown
from keras_uncertainty_mtl import Bernoulli, Categorical, MultiTaskModel

HEADS, STEPS, BATCH = 100, 2000, 32
PARTS = (slice(0, 1000), slice(1000, 1400), slice(1400, None))
RATES: list[tuple[str, tuple[float, ...], dict[str, float]]] = [
    ("SGD", (0.01, 0.1), {}),
    ("SGD", (0.01, 0.03), {"momentum": 0.9}),
    ("Adam", (0.001, 0.01, 0.1, 0.3), {}),
    ("Adadelta", (0.001, 1.0), {}),
    *((name, (0.001, 0.1), {}) for name in ("RMSprop", "AdamW", "Adamax", "Nadam", "Adagrad")),
    *((name, (0.001, 0.1), {}) for name in ("Adafactor", "Ftrl", "Lion", "Lamb", "Muon")),
    ("ScheduleFreeAdamW", (0.001, 0.1), {}),
]
OPTIMIZERS: dict[str, Callable[[], Any]] = {
    f"{name}({', '.join(map(str, [rate, *options.values()]))})": partial(
        getattr(keras.optimizers, name), rate, **options
    )
    for name, rates, options in RATES
    for rate in rates
}


def binary(features: int) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(features)
    x = draw.normal(size=(3400, features)).astype("float32")
    logits = 2 * x.sum(axis=1) / np.sqrt(features)
    return x, (draw.uniform(size=len(x)) < 1 / (1 + np.exp(-logits))).astype("int32")


def digits() -> tuple[np.ndarray, np.ndarray]:
    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    return (x[order] * 255 / 16).astype("float32"), y[order].astype("int32")


PROBLEMS: dict[str, Callable[[], tuple[np.ndarray, np.ndarray]]] = {
    "one": partial(binary, 1),
    "two": partial(binary, 2),
    "digits": digits,
}


def trained_logits(ours: bool, x: np.ndarray, y: np.ndarray, optimizer: Any) -> np.ndarray:
    """Logits of all heads for the examples that no head is trained on: `(heads, n, classes)`."""
    classes = int(y.max()) + 1
    keras.utils.set_random_seed(0)
    inputs = keras.Input(x.shape[1:])
    names = [f"head_{index:03}" for index in range(HEADS)]
    outputs = {name: keras.layers.Dense(1 if classes == 2 else classes)(inputs) for name in names}
    if ours:
        likelihood = Bernoulli() if classes == 2 else Categorical()
        model = MultiTaskModel(inputs, outputs, dict.fromkeys(names, likelihood))
        model.compile(optimizer, steps_per_execution=STEPS)
    else:
        kind = "BinaryCrossentropy" if classes == 2 else "SparseCategoricalCrossentropy"
        loss = getattr(keras.losses, kind)(from_logits=True)
        model = keras.Model(inputs, outputs)
        losses = dict.fromkeys(names, loss)
        model.compile(optimizer, losses, steps_per_execution=STEPS)
    train = PARTS[0]
    batches = tf.data.Dataset.from_tensor_slices((x[train], y[train]))
    batches = batches.shuffle(1000, seed=0).repeat().batch(BATCH, drop_remainder=True)
    batches = batches.map(lambda x, y: (x, dict.fromkeys(names, y)))
    model.fit(batches, steps_per_epoch=STEPS, verbose=0)
    predictions = model.predict(x[PARTS[1].start :], batch_size=4000, verbose=0)
    logits = np.stack([predictions[name] for name in names]).astype("float64")
    return np.concatenate([np.zeros_like(logits), logits], axis=-1) if classes == 2 else logits


def score(logits: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Accuracy on test data, and negative log-likelihood at the temperature of the others."""
    held_out = PARTS[1].stop - PARTS[1].start
    held_out_labels, labels = y[PARTS[1]], y[PARTS[2]]

    def nll(scale: float, logits: np.ndarray, labels: np.ndarray) -> float:
        chances = log_softmax(np.exp(scale) * logits, axis=-1)
        return float(-chances[np.arange(len(labels)), labels].mean())

    logits = np.nan_to_num(logits)
    best = minimize_scalar(
        nll, bounds=(-20, 5), args=(logits[:held_out], held_out_labels), method="bounded"
    ).x
    correct = logits[held_out:].argmax(axis=-1) == labels
    return float(correct.mean()), nll(best, logits[held_out:], labels)


def run(problem: str, optimizer: str) -> dict[str, Any]:
    """Trains both, and returns a row."""
    x, y = PROBLEMS[problem]()
    results = []
    for is_ours in (True, False):
        logits = trained_logits(is_ours, x, y, OPTIMIZERS[optimizer]())
        results.append(np.array([score(each, y) for each in logits]))
        keras.backend.clear_session()
    ours, stock = results
    worst = ours - stock
    return {
        "problem": problem,
        "optimizer": optimizer,
        "accuracy, %": f"{100 * ours[:, 0].mean():.1f}",
        "stock Keras, %": f"{100 * stock[:, 0].mean():.1f}",
        "worst difference, %": f"{100 * worst[:, 0].min():+.1f}",
        "calibrated NLL": f"{ours[:, 1].mean():.3f}",
        "stock Keras": f"{stock[:, 1].mean():.3f}",
        "worst difference": f"{worst[:, 1].max():+.3f}",
    }


def main() -> None:
    """Runs the missing runs; prints and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--problem", choices=PROBLEMS, action="append", help="only these")
    parser.add_argument("--optimizer", choices=OPTIMIZERS, action="append", help="only these")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()
    tf.get_logger().setLevel("ERROR")  # TensorFlow warns of many traces.
    file = arguments.results / "temperature.csv"
    table = pd.read_csv(file, dtype=str) if file.exists() else pd.DataFrame()
    for problem in arguments.problem or PROBLEMS:
        for optimizer in arguments.optimizer or OPTIMIZERS:
            if len(table) and ((table.problem == problem) & (table.optimizer == optimizer)).any():
                continue
            row = run(problem, optimizer)
            print(*row.values(), sep=" | ", flush=True)
            table = pd.concat([table, pd.DataFrame([row])])
            table.to_csv(file, index=False)
    text = (
        f"{date.today()}: Python {platform.python_version()}, Keras {keras.__version__}, "
        f"TensorFlow {tf.__version__}; {HEADS} initialisations, {STEPS} steps.\n\n"
        + markdown(list(table), table.to_numpy())
    )
    file.with_suffix(".md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
