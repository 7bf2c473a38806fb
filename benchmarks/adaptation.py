"""How quickly, and how closely, σ follows the closed form: method × optimizer × scale.

    python -m benchmarks.adaptation

Three regressions of scale 10⁻³, 1 and 10³ share one small network. After every training step σ is
compared with the root mean squared error of the network as it then is, over the whole training set.
The table says after how many steps σ is within 10% of it for good, how far off it is after 200
steps, and its root mean squared relative error over the last 200 steps: the worst of all seeds,
each of which has other data, other initial weights, and the tasks in another order.
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

from benchmarks.harness import markdown, one_thread_pool
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


class FromFirstBatch(UncertaintyWeighting):
    """σ starts at its optimum on the first batch; the optimizer trains s = offset + θ."""

    step_scale = 1.0

    def build(self, predictions_shape: Any) -> None:
        super().build(predictions_shape)
        state = {"shape": (len(self.tasks),), "initializer": "zeros", "trainable": False}
        self.offset = keras.Variable(**state, name="offset")
        self.seen = keras.Variable(0.0, trainable=False, name="seen")

    def combined_loss(
        self,
        predictions: Any,
        targets: Any,
        sample_weight: Any = None,
        training: bool = False,
        report: bool = True,
    ) -> Tensor:
        losses = ops.stack(
            [
                ops.mean(likelihood.loss(targets[task], predictions[task]))
                for task, likelihood in self.tasks.items()
            ]
        )
        if training:
            self.offset.assign(self.next_offset(ops.stop_gradient(losses)))
            self.seen.assign(self.seen + 1.0)
        log_variance = self.current()
        # All tasks of this benchmark are Gaussian.
        return ops.sum(0.5 * ops.exp(-log_variance) * losses + 0.5 * log_variance)

    def current(self) -> Tensor:
        return self.offset + self.step_scale * self.log_variance

    def next_offset(self, losses: Tensor) -> Tensor:
        return ops.where(self.seen > 0, self.offset, ops.log(losses))

    def sigmas(self) -> dict[str, Any]:
        return dict(
            zip(self.tasks, np.exp(0.5 * ops.convert_to_numpy(self.current())), strict=True)
        )


class Plain(FromFirstBatch):
    """The paper's form, as it is commonly written: s is a weight that starts at 0."""

    def next_offset(self, losses: Tensor) -> Tensor:
        return ops.zeros_like(losses)


class TenTimes(FromFirstBatch):
    """s = offset + 10 θ."""

    step_scale = 10.0


class HundredTimes(FromFirstBatch):
    """s = offset + 100 θ."""

    step_scale = 100.0


class ScaledGradient(FromFirstBatch):
    """s = offset + 30 θ for what adapts its steps, and s = offset + θ for steepest descent.

    The gradient that θ gets is that of the loss divided by 30².
    """

    step_scale = 30.0

    def current(self) -> Tensor:
        value = super().current()
        differentiated = self.log_variance / self.step_scale
        return ops.stop_gradient(value - differentiated) + differentiated


class ClosedForm(FromFirstBatch):
    """The closed form of a running mean of the loss, and nothing trained.

    The mean is over about the last tenth of the steps so far, and over 100 at most.
    """

    step_scale = 0.0

    def next_offset(self, losses: Tensor) -> Tensor:
        rate = ops.maximum(10.0 / (10.0 + self.seen), 0.01)
        return ops.logaddexp(ops.log1p(-rate) + self.offset, ops.log(rate) + ops.log(losses))


class Recentred(ClosedForm):
    """s = offset + 0.3 θ, the offset the closed form of the running mean."""

    step_scale = 0.3


class RecentredOnce(ClosedForm):
    """s = offset + θ, the offset the closed form of the running mean."""

    step_scale = 1.0


# The last two are the public layer as it is.
METHODS: dict[str, Callable[..., UncertaintyWeighting]] = {
    "plain (paper), s from 0": Plain,
    "first batch": FromFirstBatch,
    "first batch, 10 θ": TenTimes,
    "first batch, 100 θ": HundredTimes,
    "first batch, 30 θ, gradient / 30²": ScaledGradient,
    "running closed form + θ": RecentredOnce,
    "running closed form + 0.3 θ": Recentred,
    "running closed form": ClosedForm,
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
    model.fit(x, y, batch_size=batch_size, epochs=epochs, verbose=0, callbacks=[recorder])
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
