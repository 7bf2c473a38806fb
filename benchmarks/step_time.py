"""Step time and peak memory, as ratios over Keras's own losses.

    python -m benchmarks.step_time
    KERAS_BACKEND=jax python -m benchmarks.step_time --problem mlp_12

Four ways train the same network on the same batch with Adam:

- stock Keras with `loss` and `loss_weights`
- a floor: one fused loss that ignores tasks and targets
- one trained scalar a task
- this package

| problem | network | batch |
|---|---|---|
| `mlp_12`, `mlp_128` | two layers of 1,024 units, 12 or 128 heads | 256 × 1,024 |
| `convolutional` | three convolutions, three heads | 32 × 64 × 64 × 3 |
| `pixels` | one 1×1 convolution, 19 classes, `Categorical(approximate=True)` | 8 × 256 × 512 × 3 |
| `exact_pixels` | the same, `Categorical()`; Keras has a `Rescaling` | 8 × 256 × 512 × 3 |
| `columns_600` | 600 binary labels in one output, 70% of them missing | 256 × 1,024 |
| `toy_30` | one layer of 64 units, 30 heads | 32 × 32 |
| `toy_256` | the same, 256 heads: time a task over that of two heads, ours alone | 32 × 32 |

The ways take turns in one process. Peak memory is the growth of the resident set, the least of
three fresh processes (Linux only). TensorFlow runs without XLA and with it, JAX compiled, PyTorch
eager. Other backends and Keras nightlies have result files of their own. With `--problem` no file
is written.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import os
import platform
import random
import time
from collections.abc import Callable, Iterator
from datetime import date
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np
import pandas as pd
import tensorflow as tf
from keras import ops

from benchmarks.step_networks import PROBLEMS, Problem, toy
from examples.command_line import markdown
from keras_uncertainty_mtl import MultiTaskModel

BACKEND = keras.backend.backend()
XLA = {"tensorflow": (False, True), "jax": (True,), "torch": (False,)}[BACKEND]
TURN_MILLISECONDS = 100
PEAKS = 3
KERAS, FLOOR, SCALAR, OURS = WAYS = ("Keras", "floor", "scalar weights", "this package")
# The largest ratio to accept of this package, by problem and unit.
REAL = 1.00 if BACKEND == "tensorflow" else 1.05
LIMITS = {(name, "ms"): REAL for name in ("mlp_12", "mlp_128", "convolutional", "pixels")}
LIMITS |= {("exact_pixels", "ms"): 1.10, ("exact_pixels", "MB"): 1.20, ("columns_600", "ms"): 1.10}
if BACKEND == "tensorflow":
    LIMITS |= {("toy_30", "ms"): 0.80, ("toy_256", "ms a task"): 0.50}


class Floor(keras.Model):
    """One fused loss over all outputs."""

    def compute_loss(self, x: Any, y: Any, y_pred: Any, *args: Any, **kwargs: Any) -> Any:
        return ops.mean(ops.square(ops.concatenate(list(y_pred.values()), axis=-1)))


class ScalarWeights(keras.Model):
    """`Σ exp(-s)·L + ½·s`, every task's s a scalar weight."""

    def __init__(self, inputs: Any, outputs: Any, losses: dict[str, Any]) -> None:
        super().__init__(inputs, outputs)
        self.task_losses = losses
        self.log_variances = {task: self.add_weight(initializer="zeros") for task in losses}

    def compute_loss(self, x: Any, y: Any, y_pred: Any, *args: Any, **kwargs: Any) -> Any:
        return sum(
            ops.exp(-s) * self.task_losses[task](y[task], y_pred[task]) + 0.5 * s
            for task, s in self.log_variances.items()
        )


def training(way: str, problem: Problem, xla: bool) -> Callable[[int], float]:
    """Compiles a model; returns a function that trains it for some steps and times one, in ms."""
    inputs, outputs, stock_outputs, tasks, *batch = problem
    losses = problem.losses()
    options: dict[str, Any] = {}
    if way == KERAS:
        model = keras.Model(inputs, stock_outputs)
        options = {"loss": losses, "loss_weights": dict.fromkeys(tasks, 0.5)}
    elif way == FLOOR:
        model = Floor(inputs, outputs)
    elif way == SCALAR:
        model = ScalarWeights(inputs, outputs, losses)
    else:
        model = MultiTaskModel(inputs, outputs, tasks)
    model.compile("adam", jit_compile=xla, **options)
    # TensorFlow would trace the step twice if the step itself built the optimizer.
    model.optimizer.build(model.trainable_variables)
    data: Any = (tuple(batch) for _ in itertools.count())
    if BACKEND == "tensorflow":
        data = tf.data.Dataset.from_tensors(tuple(batch)).repeat()

    def milliseconds(steps: int) -> float:
        ends: dict[int, float] = {}
        clock = keras.callbacks.LambdaCallback(
            on_train_batch_end=lambda step, logs: ends.update({step: time.perf_counter()})
        )
        # Keras then calls it in another thread, as it does its own callbacks.
        clock.async_safe = True
        # The first step makes the iterator, and does not count.
        model.fit(data, steps_per_epoch=1 + steps, shuffle=False, verbose=0, callbacks=[clock])
        return 1e3 * (ends[steps] - ends[0]) / steps

    return milliseconds


def in_turn(runs: dict[str, Callable[[int], float]], rounds: int) -> dict[str, np.ndarray]:
    """Step times of every run, one a round, in random order."""
    for run in runs.values():
        run(1)
    fastest = min(run(2) for run in runs.values())
    steps = min(max(1, round(TURN_MILLISECONDS / fastest)), 50)
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name in random.sample(list(runs), len(runs)):
            times[name].append(runs[name](steps))
    return {name: np.array(values) for name, values in times.items()}


def peak_megabytes(name: str, way: str, xla: bool) -> float:
    """Growth of the resident set in the first steps of a fresh process."""

    def status(field: str) -> int:
        return int(Path("/proc/self/status").read_text().split(field)[1].split()[0])

    run = training(way, PROBLEMS[name](), xla)
    before = status("VmRSS:")
    run(2)
    return (status("VmHWM:") - before) / 1024


class Row(NamedTuple):
    """Median and quartiles of ratios, and the median of the baseline."""

    problem: str
    xla: bool
    unit: str
    way: str
    ratio: float
    lower_quartile: float
    upper_quartile: float
    baseline: float

    def cells(self) -> list[str]:
        """A line of the Markdown table."""
        ratio = f"{self.ratio:.2f} ({self.lower_quartile:.2f} – {self.upper_quartile:.2f})"
        cells = [self.problem, str(self.xla), self.way, ratio, f"{self.baseline:.3g} {self.unit}"]
        limit = LIMITS.get((self.problem, self.unit))
        if limit is None or self.way != OURS:
            return [*cells, "", ""]
        # Noise may take the upper quartile of a real network to 1.05.
        reached = self.ratio <= limit and (limit != 1.00 or self.upper_quartile <= 1.05)
        return [*cells, f"≤ {limit:.2f}", "yes" if reached else "no"]


def rows(name: str, xla: bool, rounds: int) -> Iterator[Row]:
    """All ratios of a problem."""

    def row(unit: str, way: str, values: Any, over: Any) -> Row:
        lower, median, upper = np.quantile(values / over, [0.25, 0.5, 0.75]).tolist()
        return Row(name, xla, unit, way, median, lower, upper, float(np.median(over)))

    if name == "toy_256":
        runs = {str(heads): training(OURS, toy(heads), xla) for heads in (256, 2)}
        times = in_turn(runs, rounds)
        yield row("ms a task", OURS, times["256"] / 256, times["2"] / 2)
        return
    problem = PROBLEMS[name]()
    times = in_turn({way: training(way, problem, xla) for way in WAYS}, rounds)
    for way in WAYS[1:]:
        yield row("ms", way, times[way], times[KERAS])
    if "pixels" in name:
        # Forks of a process that has imported everything start at once, and have run nothing.
        context = get_context("forkserver")
        context.set_forkserver_preload(["benchmarks.harness", "keras_uncertainty_mtl", "pandas"])
        with context.Pool(os.cpu_count(), maxtasksperchild=1) as pool:
            ways = [(name, way, xla) for way in [OURS] * PEAKS + [KERAS] * PEAKS]
            peaks = pool.starmap(peak_megabytes, ways, chunksize=1)
        yield row("MB", OURS, min(peaks[:PEAKS]), min(peaks[PEAKS:]))


def main() -> None:
    """Prints the table, and writes it if it is whole."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--problem", choices=PROBLEMS, action="append", help="only this one")
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    tf.get_logger().setLevel("ERROR")  # TensorFlow warns of many traces.

    table: list[Row] = []
    for name, xla in itertools.product(arguments.problem or PROBLEMS, XLA):
        for row in rows(name, xla, arguments.rounds):
            table.append(row)
            print(*row.cells(), sep=" | ", flush=True)
        keras.backend.clear_session()
    version = importlib.import_module(BACKEND).__version__
    header = ["problem", "XLA", "way", "ratio (quartiles)", "baseline", "to reach", "reached"]
    text = (
        f"{date.today()}: Python {platform.python_version()}, Keras {keras.__version__}, {BACKEND} "
        f"{version}; {os.cpu_count()} cores, {platform.machine()}; rounds: {arguments.rounds}.\n\n"
        + markdown(header, [row.cells() for row in table])
    )
    print(text)
    if not arguments.problem:
        name = "step_time" + ("" if BACKEND == "tensorflow" else f"_{BACKEND}")
        name += "_nightly" if "dev" in keras.__version__ else ""
        file = Path(__file__).parent / "results" / name
        file.with_suffix(".md").write_text(text, encoding="utf-8")
        pd.DataFrame(table).to_csv(file.with_suffix(".csv"), index=False)


if __name__ == "__main__":
    main()
