"""Step time and peak memory, as ratios over Keras's own losses.

    python -m benchmarks.step_time
    KERAS_BACKEND=jax python -m benchmarks.step_time --problem mlp_12 --rounds 3

Four ways train the same network on the same batch with Adam: stock Keras with `loss` and
`loss_weights`; a floor, one fused loss that ignores tasks and targets; one trained scalar a task;
and this package.

| problem | network | batch |
|---|---|---|
| `mlp_12`, `mlp_128` | two layers of 1,024 units, 12 or 128 heads | 256 × 1,024 |
| `convolutional` | three convolutions, three heads | 32 × 64 × 64 × 3 |
| `pixels` | one 1×1 convolution, 19 classes, `Categorical(approximate=True)` | 8 × 256 × 512 × 3 |
| `exact_pixels` | the same, `Categorical()`; Keras has a `Rescaling` | 8 × 256 × 512 × 3 |
| `toy_30` | one layer of 64 units, 30 heads | 32 × 32 |
| `toy_256` | the same, 256 heads: time a task over that of two heads, ours alone | 32 × 32 |

The ways take turns in one process. The table has medians and quartiles of the rounds' ratios. Peak
memory is the growth of the resident set, the least of three fresh processes (Linux only). Other
backends and Keras nightlies have result files of their own; with `--problem` no file is written.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import os
import platform
import re
import time
from collections.abc import Callable, Iterator
from datetime import date
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np
import pandas as pd
import tensorflow as tf
from keras import layers, ops

from benchmarks.harness import markdown
from keras_uncertainty_mtl import Bernoulli, Categorical, Gaussian, Laplace, MultiTaskModel

Tensor = Any

BACKEND = keras.backend.backend()
XLA = {"tensorflow": (False, True), "jax": (True,), "torch": (False,)}[BACKEND]
TURN_SECONDS = 0.1
PEAKS = 3
KERAS, FLOOR, SCALAR, OURS = WAYS = ("Keras", "floor", "scalar weights", "this package")
LOSSES: dict[type, Any] = {
    Gaussian: keras.losses.MeanSquaredError(),
    Laplace: keras.losses.MeanAbsoluteError(),
    Categorical: keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    Bernoulli: keras.losses.BinaryCrossentropy(from_logits=True),
}


class Problem(NamedTuple):
    """A network, the likelihoods of its tasks, a batch, and what Keras's logits are scaled by."""

    inputs: Tensor
    outputs: dict[str, Tensor]
    tasks: dict[str, Any]
    x: np.ndarray
    y: dict[str, np.ndarray]
    scale: float = 1.0


def with_heads(inputs: Tensor, hidden: Tensor, heads: int, batch_size: int) -> Problem:
    """One dense layer a task, the likelihoods in turn, random data."""
    random = np.random.default_rng(0)
    outputs, tasks, y = {}, {}, {}
    for index, kind in zip(range(heads), itertools.cycle(LOSSES), strict=False):
        task = f"task_{index}"
        tasks[task] = kind()
        outputs[task] = layers.Dense(5 if kind is Categorical else 1)(hidden)
        y[task] = random.normal(size=(batch_size, 1)).astype("float32")
        if kind is Categorical:
            y[task] = random.integers(5, size=batch_size).astype("int32")
        elif kind is Bernoulli:
            y[task] = (y[task] > 0).astype("float32")
    x = random.normal(size=(batch_size, *inputs.shape[1:])).astype("float32")
    return Problem(inputs, outputs, tasks, x, y)


def perceptron(heads: int, features: int, hidden_units: list[int], batch_size: int) -> Problem:
    inputs = hidden = keras.Input((features,))
    for units in hidden_units:
        hidden = layers.Dense(units, activation="relu")(hidden)
    return with_heads(inputs, hidden, heads, batch_size)


def convolutional() -> Problem:
    inputs = hidden = keras.Input((64, 64, 3))
    for filters, strides in ((32, 1), (64, 2), (128, 2)):
        hidden = layers.Conv2D(filters, 3, strides, activation="relu")(hidden)
    return with_heads(inputs, layers.GlobalAveragePooling2D()(hidden), heads=3, batch_size=32)


def pixels(likelihood: Categorical, scale: float = 1.0) -> Problem:
    random = np.random.default_rng(0)
    inputs = keras.Input((256, 512, 3))
    outputs = {"classes": layers.Conv2D(19, 1)(inputs)}
    x = random.normal(size=(8, 256, 512, 3)).astype("float32")
    y = {"classes": random.integers(19, size=(8, 256, 512)).astype("int32")}
    return Problem(inputs, outputs, {"classes": likelihood}, x, y, scale)


mlp = partial(perceptron, features=1024, hidden_units=[1024, 1024], batch_size=256)
toy = partial(perceptron, features=32, hidden_units=[64], batch_size=32)
PROBLEMS: dict[str, Callable[[], Problem]] = {
    "mlp_12": partial(mlp, 12),
    "mlp_128": partial(mlp, 128),
    "convolutional": convolutional,
    "pixels": partial(pixels, Categorical(approximate=True)),
    "exact_pixels": partial(pixels, Categorical(), scale=0.5),
    "toy_30": partial(toy, 30),
    "toy_256": partial(toy, 256),
}


class Floor(keras.Model):
    """One fused loss over all outputs."""

    def compute_loss(self, x: Any, y: Any, y_pred: Any, *args: Any, **kwargs: Any) -> Tensor:
        return ops.mean(ops.square(ops.concatenate(list(y_pred.values()), axis=-1)))


class ScalarWeights(keras.Model):
    """`Σ exp(-s)·L + ½·s`, every task's s a scalar weight."""

    def __init__(self, inputs: Tensor, outputs: Any, losses: dict[str, Any]) -> None:
        super().__init__(inputs, outputs)
        self.task_losses = losses
        self.log_variances = {
            task: self.add_weight(shape=(), initializer="zeros", name=f"log_variance_{task}")
            for task in losses
        }

    def compute_loss(self, x: Any, y: Any, y_pred: Any, *args: Any, **kwargs: Any) -> Tensor:
        return sum(
            ops.exp(-s) * self.task_losses[task](y[task], y_pred[task]) + 0.5 * s
            for task, s in self.log_variances.items()
        )


def compiled(way: str, problem: Problem, xla: bool) -> keras.Model:
    """The model of one of the ways."""
    inputs, outputs, tasks, *_ = problem
    losses = {task: LOSSES[type(likelihood)] for task, likelihood in tasks.items()}
    options: dict[str, Any] = {"jit_compile": xla}
    if way == KERAS:
        if problem.scale != 1.0:
            outputs = {task: layers.Rescaling(problem.scale)(f) for task, f in outputs.items()}
        model = keras.Model(inputs, outputs)
        options |= {"loss": losses, "loss_weights": dict.fromkeys(tasks, 0.5)}
    elif way == FLOOR:
        model = Floor(inputs, outputs)
    elif way == SCALAR:
        model = ScalarWeights(inputs, outputs, losses)
    else:
        model = MultiTaskModel(inputs, outputs, tasks)
    model.compile("adam", **options)
    # TensorFlow would trace the step twice if the step itself built the optimizer.
    model.optimizer.build(model.trainable_variables)
    return model


def training(way: str, problem: Problem, xla: bool) -> Callable[[int], float]:
    """A function that trains for some steps, and returns the seconds of one."""
    model = compiled(way, problem, xla)
    batch = problem.x, problem.y
    data: Any = (batch for _ in itertools.count())
    if BACKEND == "tensorflow":
        data = tf.data.Dataset.from_tensors(batch).repeat()

    def seconds(steps: int) -> float:
        ends = {}

        def remember(step: int, logs: Any) -> None:
            ends[step] = time.perf_counter()

        clock = keras.callbacks.LambdaCallback(on_train_batch_end=remember)
        # Keras then calls it in another thread, as it does its own callbacks.
        clock.async_safe = True
        # The first step makes the iterator, and does not count.
        model.fit(data, steps_per_epoch=1 + steps, shuffle=False, verbose=0, callbacks=[clock])
        return (ends[steps] - ends[0]) / steps

    return seconds


def in_turn(runs: dict[str, Callable[[int], float]], rounds: int) -> dict[str, np.ndarray]:
    """Milliseconds of a step of every run, one a round; each round starts with the next run."""
    for run in runs.values():
        run(1)
    fastest = min(run(2) for run in runs.values())
    steps = min(max(1, round(TURN_SECONDS / fastest)), 50)
    times: dict[str, list[float]] = {name: [] for name in runs}
    order = list(runs)
    for _ in range(rounds):
        for name in order:
            times[name].append(1e3 * runs[name](steps))
        order = order[1:] + order[:1]
    return {name: np.array(values) for name, values in times.items()}


class Row(NamedTuple):
    """The median of ratios, their quartiles, and the median of the baseline."""

    problem: str
    xla: bool
    measured: str
    way: str
    ratio: float
    lower_quartile: float
    upper_quartile: float
    baseline: float

    @classmethod
    def of(cls, problem: str, xla: bool, measured: str, way: str, values: Any, over: Any) -> Row:
        median, lower, upper = np.quantile(values / over, [0.5, 0.25, 0.75]).tolist()
        return cls(problem, xla, measured, way, median, lower, upper, float(np.median(over)))


def rows(name: str, xla: bool, rounds: int) -> Iterator[Row]:
    """All ratios of a problem."""
    if name == "toy_256":
        few, many = in_turn(
            {str(n): training(OURS, toy(n), xla) for n in (2, 256)}, rounds
        ).values()
        yield Row.of(name, xla, "time a task", OURS, many / 256, few / 2)
        return
    problem = PROBLEMS[name]()
    times = in_turn({way: training(way, problem, xla) for way in WAYS}, rounds)
    for way in WAYS[1:]:
        yield Row.of(name, xla, "ms", way, times[way], times[KERAS])
    if "pixels" in name:
        peaks = {way: least_peak(name, way, xla) for way in (KERAS, OURS)}
        yield Row.of(name, xla, "MB", OURS, peaks[OURS], peaks[KERAS])


def least_peak(name: str, way: str, xla: bool) -> np.ndarray:
    """The least growth of the resident set in MB, over some fresh processes."""
    with get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        return np.array([min(pool.starmap(peak, [(name, way, xla)] * PEAKS, chunksize=1))])


def peak(name: str, way: str, xla: bool) -> float:
    """The growth of this process's resident set in MB, from before the first step to its peak."""
    run = training(way, PROBLEMS[name](), xla)
    gc.collect()
    before = resident("VmRSS")
    run(2)
    return resident("VmHWM") - before


def resident(field: str) -> float:
    """A field of Linux's statement of this process's memory, in MB."""
    status = Path("/proc/self/status").read_text()
    return int(re.findall(rf"{field}:\s+(\d+) kB", status)[0]) / 1024


def table(measured: list[Row]) -> str:
    """The rows as Markdown, with the versions and the machine."""
    lines = []
    for row in measured:
        ratio = f"{row.ratio:.2f} ({row.lower_quartile:.2f}–{row.upper_quartile:.2f})"
        xla = "with" if row.xla else "without"
        lines.append([row.problem, xla, row.measured, row.way, ratio, f"{row.baseline:.4g}"])
    header = ["problem", "XLA", "measured", "way", "ratio (quartiles)", "baseline"]
    versions = f"Keras {keras.__version__}, TensorFlow {tf.__version__}, backend {BACKEND}"
    machine = f"{os.cpu_count()} cores, {platform.machine()}, {date.today().isoformat()}"
    return f"{markdown(header, lines)}\n{versions}; {machine}\n"


def main() -> None:
    """Prints the table; a whole run also writes it, and all rows as CSV."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--problem", choices=PROBLEMS, action="append", help="only these")
    parser.add_argument("--rounds", type=int, default=11)
    arguments = parser.parse_args()

    measured: list[Row] = []
    for name, xla in itertools.product(arguments.problem or PROBLEMS, XLA):
        for row in rows(name, xla, arguments.rounds):
            measured.append(row)
            print(table([row]).splitlines()[2], flush=True)
        keras.utils.clear_session()
    text = table(measured)
    print(text)
    if arguments.problem is None:
        kinds = [BACKEND] if BACKEND != "tensorflow" else []
        kinds += ["nightly"] if "dev" in keras.__version__ else []
        path = Path(__file__).parent / "results" / "_".join(["step_time", *kinds])
        path.with_suffix(".md").write_text(text, encoding="utf-8")
        pd.DataFrame(measured).to_csv(path.with_suffix(".csv"), index=False)


if __name__ == "__main__":
    main()
