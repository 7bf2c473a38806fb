"""Adaptation of σ to its closed form: method × optimizer × scale.

    python -m benchmarks.adaptation

Three regressions of scale 10⁻³, 1 and 10³ share one small network. After every training step, σ is
compared with the network's current root mean squared error over the whole training set. The table
has three numbers of σ:

- the number of steps until it stays within 10%
- its relative error after 200 steps
- its root mean squared relative error over the last 200 steps

Each number is the worst of all seeds. Each seed has other data, other initial weights, and another
order of the tasks.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd
import tensorflow as tf
from keras import ops

from benchmarks.harness import one_thread_pool
from examples.batches import shuffled
from examples.command_line import markdown
from keras_uncertainty_mtl import Gaussian, MultiTaskModel, UncertaintyWeighting

Tensor = Any

SCALES = {"0.001": 1e-3, "1": 1.0, "1000": 1e3}
TOLERANCE = 0.1
EARLY = 200
TAIL = 200
DIVERGED = 1e6
ARRIVAL, EARLY_ERROR, FINAL_ERROR = "steps to 10%", f"error at {EARLY}", "final error"
SAMPLES = 4000
FEATURES = 8

OPTIMIZERS: dict[str, Callable[[], Any]] = {
    "Adam(1e-3)": lambda: keras.optimizers.Adam(1e-3),
    "AdamW(1e-3, weight_decay=0.01)": lambda: keras.optimizers.AdamW(1e-3, weight_decay=0.01),
    "SGD(1e-2, momentum=0.9)": lambda: keras.optimizers.SGD(1e-2, momentum=0.9),
    "RMSprop(1e-3)": lambda: keras.optimizers.RMSprop(1e-3),
    "Adam(1e-1)": lambda: keras.optimizers.Adam(1e-1),
    "SGD(1e-1, momentum=0.9)": lambda: keras.optimizers.SGD(1e-1, momentum=0.9),
}


class Candidate(UncertaintyWeighting):
    """One update rule of s; all tasks of this benchmark are Gaussian.

    s = base + step_scale · θ, where θ is a weight and base the closed form of a running mean.

    Args:
        tasks: As in `UncertaintyWeighting`.
        batches: The number of batches that the running mean is over. 0: base is 0. Infinity: base
            is the closed form of the first batch for good.
        step_scale: The factor of θ. 0: s is the base alone.
    """

    def __init__(self, tasks: Any, batches: float, step_scale: float) -> None:
        super().__init__(tasks)
        self.batches = batches
        self.step_scale = step_scale

    def build(self, predictions_shape: Any) -> None:
        super().build(predictions_shape)
        self._log_variances.trainable = False
        self.theta = self.add_weight(name="theta", shape=(len(self.tasks),), initializer="zeros")
        self.running = self.add_weight(
            name="running", shape=(2, len(self.tasks)), initializer="zeros", trainable=False
        )

    def combined_loss(
        self, predictions: Any, targets: Any, *_: Any, training: bool | None = None, **__: Any
    ) -> Tensor:
        losses = ops.stack(
            [
                ops.mean(likelihood.loss(targets[task], predictions[task]))
                for task, likelihood in self.tasks.items()
            ]
        )
        if training and self.batches:
            self.running.assign(self._next(ops.stop_gradient(losses)))
        s = self._log_variances_now()
        return ops.sum(0.5 * ops.exp(-s) * losses + 0.5 * s)

    def _next(self, losses: Tensor) -> Tensor:
        """The sum and the count of the running mean after a batch."""
        sums, counts = ops.unstack(ops.convert_to_tensor(self.running))
        if np.isinf(self.batches):
            is_first = counts == 0
            return ops.where(is_first, ops.stack([losses, ops.ones_like(losses)]), self.running)
        kept = 1.0 - 1.0 / self.batches
        return ops.stack([kept * sums + losses, kept * counts + 1.0])

    def _log_variances_now(self) -> Tensor:
        sums, counts = ops.unstack(ops.convert_to_tensor(self.running))
        base = ops.where(counts > 0, ops.log(ops.divide_no_nan(sums, counts) + 1e-37), 0.0)
        theta = ops.convert_to_tensor(self.theta)
        # Gradient descent moves s by half a learning rate times its gradient at most.
        differentiated = theta * min(1.0, 0.5 / max(self.step_scale, 0.5)) * bool(self.step_scale)
        return base + differentiated + ops.stop_gradient(self.step_scale * theta - differentiated)

    def sigmas(self) -> dict[str, Any]:
        sigmas = np.exp(0.5 * ops.convert_to_numpy(self._log_variances_now()))
        return dict(zip(self.tasks, sigmas, strict=True))


METHODS: dict[str, Callable[..., UncertaintyWeighting]] = {
    "plain (paper), s from 0": functools.partial(Candidate, batches=0, step_scale=1),
    "first batch + 10 θ": functools.partial(Candidate, batches=math.inf, step_scale=10),
    **{
        f"mean of {batches} batches{name}": functools.partial(
            Candidate, batches=batches, step_scale=step_scale
        )
        for batches in (10, 20)
        for step_scale, name in ((0, ""), (1, " + θ"), (10, " + 10 θ"))
    },
    'update="closed_form"': functools.partial(UncertaintyWeighting, update="closed_form"),
    "default of this package": UncertaintyWeighting,
}


class Recorder(keras.callbacks.Callback):
    """σ and the root mean squared error over the whole training set, after each step."""

    def __init__(self, network: keras.Model, x: np.ndarray, y: dict[str, np.ndarray]) -> None:
        super().__init__()

        @tf.function  # type: ignore[untyped-decorator]
        def errors() -> Tensor:
            predictions = network(x, training=False)
            return ops.stack(
                [ops.sqrt(ops.mean(ops.square(y[task] - predictions[task]))) for task in SCALES]
            )

        self._errors = errors
        self.sigmas: list[list[float]] = []
        self.errors: list[list[float]] = []

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        sigmas = self.model.weighting.sigmas()
        self.sigmas.append([float(sigmas[task]) for task in SCALES])
        self.errors.append(self._errors().numpy().tolist())


def problem(seed: int, raw_heads: bool) -> tuple[keras.Model, np.ndarray, dict[str, np.ndarray]]:
    """A network with one head a task, and smooth functions with noise that it can learn."""
    random = np.random.default_rng(seed)
    x = random.normal(size=(SAMPLES, FEATURES)).astype("float32")
    y = {}
    tasks = list(SCALES)
    first = seed % len(tasks)
    for task in tasks[first:] + tasks[:first]:
        scale = SCALES[task]
        signal = np.sin(x @ random.normal(size=FEATURES) / 2) + x @ random.normal(size=FEATURES) / 3
        target = scale * (signal + random.normal(size=SAMPLES))
        y[task] = target[:, None].astype("float32")

    keras.utils.set_random_seed(seed)
    inputs = keras.Input((FEATURES,))
    hidden = keras.layers.Dense(32, activation="relu")(inputs)
    hidden = keras.layers.Dense(32, activation="relu")(hidden)
    outputs = {}
    for task in y:
        outputs[task] = keras.layers.Dense(1)(hidden)
        if not raw_heads:
            outputs[task] = keras.layers.Rescaling(SCALES[task])(outputs[task])
    return keras.Model(inputs, outputs), x, y


def measure(run: tuple[str, str, int, int, bool]) -> list[dict[str, Any]]:
    """Trains once, and says of each scale what the table shows of it."""
    optimizer, method, seed, steps, raw_heads = run
    network, x, y = problem(seed, raw_heads)
    model = MultiTaskModel(
        network.input, network.output, METHODS[method]({task: Gaussian() for task in y})
    )
    model.compile(OPTIMIZERS[optimizer]())
    recorder = Recorder(network, x, y)
    batch_size = 64
    epochs = math.ceil(steps / math.ceil(SAMPLES / batch_size))
    batches = shuffled(x, y, batch_size, seed)
    model.fit(batches, epochs=epochs, shuffle=False, verbose=0, callbacks=[recorder])
    with np.errstate(all="ignore"):
        off = np.abs(np.log(np.array(recorder.sigmas) / np.array(recorder.errors)))[:steps]
        off = np.where(np.isfinite(off), np.expm1(off), np.inf)
        finals = np.sqrt(np.mean(np.square(off[-TAIL:]), axis=0))
    rows = []
    for index, scale in enumerate(SCALES):
        outside = np.flatnonzero(off[:, index] >= TOLERANCE)
        arrival = outside[-1] + 2 if outside.size else 1
        rows.append(
            {
                "method": method,
                "optimizer": optimizer,
                "scale": scale,
                "seed": seed,
                ARRIVAL: arrival if arrival <= steps else np.inf,
                EARLY_ERROR: off[EARLY - 1, index],
                FINAL_ERROR: finals[index],
            }
        )
    return rows


def cells(row: dict[str, Any]) -> list[str]:
    """A row of the table as text."""
    return [
        row["method"],
        row["optimizer"],
        row["scale"],
        f"{row[ARRIVAL]:.0f}" if np.isfinite(row[ARRIVAL]) else "never",
        *(
            f"{row[error]:.1%}" if row[error] < DIVERGED else "diverged"
            for error in (EARLY_ERROR, FINAL_ERROR)
        ),
    ]


def main() -> None:
    """Prints the table, and writes it as Markdown and every run as CSV."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--method", choices=METHODS, action="append", help="only these")
    parser.add_argument("--optimizer", choices=OPTIMIZERS, action="append", help="only these")
    parser.add_argument(
        "--raw-heads", action="store_true", help="the network's outputs are not in the tasks' units"
    )
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()

    runs = itertools.product(
        arguments.optimizer or OPTIMIZERS,
        arguments.method or METHODS,
        range(arguments.seeds),
        [arguments.steps],
        [arguments.raw_heads],
    )
    rows: list[dict[str, Any]] = []
    with one_thread_pool(arguments.workers) as pool:
        for measured in pool.imap(measure, runs):
            rows += measured
            for row in measured:
                print(f"seed {row['seed']}", *cells(row), sep=" | ", flush=True)

    arguments.results.mkdir(parents=True, exist_ok=True)
    name = "adaptation_raw_heads" if arguments.raw_heads else "adaptation"
    table = pd.DataFrame(rows)
    table.to_csv(arguments.results / f"{name}.csv", index=False)
    keys = ["method", "optimizer", "scale"]
    worst = table.groupby(keys, sort=False)[[ARRIVAL, EARLY_ERROR, FINAL_ERROR]].max()
    lines = [cells(row) for row in worst.reset_index().to_dict("records")]
    text = markdown([*worst.index.names, *worst.columns], lines)
    (arguments.results / f"{name}.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
