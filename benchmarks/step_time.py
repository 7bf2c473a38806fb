"""What weighting costs: the time of a step, of the first step and of an export, and peak memory.

    python -m benchmarks.step_time
    python -m benchmarks.step_time --parts
    python -m benchmarks.step_time --profile
    KERAS_BACKEND=torch python -m benchmarks.step_time --profile --tasks 3

The same network, data, optimizer and number of steps are trained in up to five ways: with Keras's
own `compile(loss=…, loss_weights=…)`; as the floor, with one fused loss that knows nothing of
tasks; with a layer that has one scalar weight a task, as the paper's author's example has it; as
`MultiTaskModel`; and with the bare layer and `target_inputs`. Of 128 tasks it is Keras's losses and
`MultiTaskModel` alone. The ways take turns within one process, so that the drift of the machine
cancels; the table has the median of the ratios of `--rounds` rounds, each of several turns, and
their quartiles; what varies most has three times as many. Keras compiles a step with XLA where
there is a GPU, and where there is none only when it is told to, so steps are measured both ways, as
`jit_compile=False` and `True`. JAX always compiles; the time a task, first steps, exports, half
precision and PyTorch are measured without. Steps of small networks are measured in a process for
each of these variants. All build their models at the same time, and take times in turn.

Tasks are in turn a Gaussian, a Laplace and a Categorical one, Keras's losses being the mean
squared error, the mean absolute error and the sparse cross-entropy from logits. Peak memory is by
how much the resident set of a process that has run nothing yet grows at most, from the moment
before the first step: the least of four processes.

`--parts` tells instead what the costs are made of, by further ways. For steps: ours with σ fixed
and nothing reported; and the floor that reports as many numbers, in a stock `keras.Model` as the
bare layer is, and, with and without a report, run as a `MultiTaskModel` is. For pixels:
Keras's cross-entropy of logits times a trainable factor, which is the exact likelihood without any
report, and Keras's cross-entropy with an `ignore_class`.

`--profile` takes one step apart: each part is a function that does no more than the network, then
its loss too, then the gradients, then the whole step; and last what a step of `fit` takes. With
`KERAS_BACKEND=torch` it is one of PyTorch's, of which nothing is compiled.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import itertools
import os
import platform
import re
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import astuple, dataclass, field
from functools import partial
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar
from unittest.mock import patch

import keras
import numpy as np
import pandas as pd
import tensorflow as tf
from keras import ops

from benchmarks.harness import markdown
from keras_uncertainty_mtl import (
    Categorical,
    Gaussian,
    Laplace,
    Likelihood,
    MultiTaskModel,
    UncertaintyWeighting,
)
from keras_uncertainty_mtl.logs import as_one_tensor

Tensor = Any
Name = TypeVar("Name", bound=Hashable)

# Ways take turns several times a round, and the fastest for about as long as this, or a step: the
# shorter the turns, the more alike the machine is to all of them.
TURN_SECONDS = 0.02
TURNS_OF_A_ROUND = 3
PEAKS = 4
FEATURES = 32
BATCH_SIZE = 32
CLASSES = 5
PIXELS = (8, 256, 512)
PIXEL_CLASSES = 19
MISSING = 255

LOSSES: dict[type[Likelihood], Any] = {
    Gaussian: keras.losses.MeanSquaredError(),
    Laplace: keras.losses.MeanAbsoluteError(),
    Categorical: keras.losses.SparseCategoricalCrossentropy(from_logits=True),
}


@dataclass(frozen=True)
class Problem:
    """A network with the likelihoods of its tasks, and a batch of data."""

    network: keras.Model
    tasks: dict[str, Likelihood]
    x: np.ndarray
    y: dict[str, np.ndarray]


@dataclass(frozen=True)
class Way:
    """A compiled model, and the batch in the structure that it takes, without end."""

    model: keras.Model
    data: Any

    def seconds(self, steps: int) -> float:
        """The time of one step of `fit`, after the first of its epoch, which makes the iterator."""
        clock = _Clock()
        self.model.fit(
            self.data, steps_per_epoch=1 + steps, shuffle=False, verbose=0, callbacks=[clock]
        )
        return (clock.end - clock.start) / steps


class _Clock(keras.callbacks.Callback):
    """Remembers when the first step ends, and when the last one does."""

    # So that Keras calls it beside the next step, as it does where no callback asks for batches.
    async_safe = True

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.end = time.perf_counter()
        if batch == 0:
            self.start = self.end


@dataclass(frozen=True)
class Row:
    """A ratio: its median over the rounds with the quartiles, and what it should not exceed."""

    variant: str
    measured: str
    value: float
    low: float
    high: float
    target: float | None = None
    note: str = ""

    @classmethod
    def of(
        cls, variant: str, measured: str, ratios: Any, target: float | None = None, note: str = ""
    ) -> Row:
        low, median, high = np.quantile(ratios, [0.25, 0.5, 0.75])
        return cls(variant, measured, float(median), float(low), float(high), target, note)

    @classmethod
    def over(
        cls,
        variant: str,
        measured: str,
        seconds: Mapping[str, np.ndarray],
        name: str,
        other: str,
        target: float | None = None,
    ) -> Row:
        """The time of one way over that of another, in turn."""
        return cls.of(
            variant,
            f"{measured}: {name} / {other}",
            seconds[name] / seconds[other],
            target,
            _milliseconds(seconds, name, other),
        )

    def cells(self) -> list[str]:
        """The row as text."""
        spread = f"{self.low:.2f} – {self.high:.2f}" if self.low < self.high else ""
        target = reached = ""
        if self.target is not None:
            target = f"≤ {self.target:.2f}"
            reached = "yes" if self.value <= self.target else "no"
        return [
            self.variant,
            self.measured,
            f"{self.value:.3f}",
            spread,
            target,
            reached,
            self.note,
        ]


class Floor(keras.Model):
    """One fused loss over all outputs; the targets arrive, and are left alone."""

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> Tensor:
        outputs = [ops.cast(output, "float32") for output in keras.tree.flatten(y_pred)]
        loss = ops.mean(ops.square(ops.concatenate(outputs, axis=-1)))
        if keras.backend.backend() == "jax":
            import jax

            # What a step of JAX's has no use for does not arrive.
            zero, _ = jax.lax.optimization_barrier((ops.zeros((), loss.dtype), y))
            loss += zero
        return loss


class ReportingFloor(Floor):
    """The floor, which reports two numbers a task as any `keras.Model` would."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.numbers = Numbers(self.output)


class QuickFloor(MultiTaskModel):
    """The floor, its steps run as those of ours."""

    compute_loss = Floor.compute_loss


class QuickReportingFloor(QuickFloor):
    """The floor that reports, its steps run as those of ours."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.numbers = Numbers(self.output)


class Numbers(keras.metrics.Metric):
    """Two numbers a task that nobody works out."""

    def __init__(self, tasks: Iterable[str]) -> None:
        super().__init__(name="numbers", dtype="float32")
        self.names = [f"{task}_{name}" for task in tasks for name in ("a", "b")]
        self.values = self.add_variable((len(self.names),), initializer="zeros", name="values")

    def result(self) -> dict[str, Tensor]:
        return dict(zip(self.names, ops.unstack(ops.convert_to_tensor(self.values)), strict=True))


class Unreported(UncertaintyWeighting):
    """Ours, nothing of the tasks reported."""

    def combined_loss(self, *args: Any, **kwargs: Any) -> Tensor:
        return super().combined_loss(*args, **kwargs | {"report": False})


class ScalarWeights(keras.layers.Layer):
    """One scalar weight a task, targets as inputs, the loss by `add_loss`; it reports nothing.

    References:
        - [Kendall, Gal & Cipolla, 2018](https://arxiv.org/abs/1705.07115), and the example that
          its second author published with it
    """

    def __init__(self, tasks: Mapping[str, Likelihood], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.losses_of_tasks = {task: LOSSES[type(tasks[task])] for task in tasks}
        self.log_variances = {
            task: self.add_weight(shape=(1,), initializer="zeros", name=f"log_variance_{task}")
            for task in tasks
        }

    def call(self, predictions: dict[str, Tensor], targets: dict[str, Tensor]) -> Any:
        total = 0.0
        for task, loss in self.losses_of_tasks.items():
            log_variance = self.log_variances[task][0]
            losses = loss.call(targets[task], predictions[task])
            total += ops.mean(ops.exp(-log_variance) * losses + log_variance)
        self.add_loss(total)
        return predictions


class Temperature(keras.layers.Layer):
    """Logits times a trainable `exp(-s)`: their cross-entropy is the exact likelihood's."""

    def build(self, logits_shape: Any) -> None:
        self.log_variance = self.add_weight(shape=(), initializer="zeros", name="log_variance")

    def call(self, logits: Tensor) -> Tensor:
        return logits * ops.exp(-self.log_variance)


def keras_losses(problem: Problem, **options: Any) -> Way:
    """What people write without this package."""
    model = keras.Model(problem.network.input, problem.network.output)
    losses = {task: _keras_loss(likelihood) for task, likelihood in problem.tasks.items()}
    weights = dict.fromkeys(problem.tasks, 0.5)
    return _with_targets(problem, model, {"loss": losses, "loss_weights": weights, **options})


def keras_temperatures(problem: Problem, **options: Any) -> Way:
    """The least that the exact likelihood of classes takes, without any report of it."""
    logits = problem.network.output
    network = keras.Model(
        problem.network.input, {task: Temperature()(logits[task]) for task in problem.tasks}
    )
    return keras_losses(Problem(network, problem.tasks, problem.x, problem.y), **options)


def floor(problem: Problem, model_class: type = Floor, **options: Any) -> Way:
    """Nothing about tasks at all, or but as many numbers as they have."""
    model = model_class(problem.network.input, problem.network.output)
    return _with_targets(problem, model, options)


def quick_floor(problem: Problem, model_class: type = QuickFloor, **options: Any) -> Way:
    """The same, its steps run as those of ours."""
    weighting = UncertaintyWeighting(problem.tasks, trainable=False)
    model = model_class(problem.network.input, problem.network.output, weighting)
    return _with_targets(problem, model, options)


def scalar_layer(problem: Problem, **options: Any) -> Way:
    """A weight a task, as commonly written."""
    targets = UncertaintyWeighting(problem.tasks).target_inputs(problem.network.output)
    outputs = ScalarWeights(problem.tasks)(problem.network.output, targets)
    return _with_target_inputs(problem, targets, outputs, options)


def multi_task_model(problem: Problem, weighting: Any = None, **options: Any) -> Way:
    """Ours, with the targets as `y`."""
    model = MultiTaskModel(
        problem.network.input, problem.network.output, weighting or problem.tasks
    )
    return _with_targets(problem, model, options)


def fixed_unreported(problem: Problem, **options: Any) -> Way:
    """The likelihoods alone."""
    return multi_task_model(problem, Unreported(problem.tasks, trainable=False), **options)


def bare_layer(problem: Problem, **options: Any) -> Way:
    """Ours, with the targets as inputs."""
    weighting = UncertaintyWeighting(problem.tasks)
    targets = weighting.target_inputs(problem.network.output)
    return _with_target_inputs(
        problem, targets, weighting(problem.network.output, targets), options
    )


KERAS, FLOOR, SCALAR, OURS, LAYER = (
    "Keras",
    "floor",
    "scalar layer",
    "MultiTaskModel",
    "bare layer",
)
REPORTING, QUICK, QUICK_REPORTING, UNREPORTED = (
    "floor that reports",
    "floor, run as ours",
    "floor that reports, run as ours",
    "MultiTaskModel, σ fixed, nothing reported",
)
WAYS: dict[str, Callable[..., Way]] = {
    KERAS: keras_losses,
    FLOOR: floor,
    REPORTING: partial(floor, model_class=ReportingFloor),
    QUICK: quick_floor,
    QUICK_REPORTING: partial(quick_floor, model_class=QuickReportingFloor),
    SCALAR: scalar_layer,
    UNREPORTED: fixed_unreported,
    OURS: multi_task_model,
    LAYER: bare_layer,
}

USUAL = [KERAS, FLOOR, SCALAR, OURS, LAYER]
ENDS = [KERAS, FLOOR, OURS]
# A way of many tasks takes long to build. `--parts` has floors of as many, run as ours are.
MANY = [KERAS, OURS]
REPORTS = [KERAS, REPORTING, OURS, LAYER]
PARTS = [KERAS, QUICK, QUICK_REPORTING, SCALAR, UNREPORTED, OURS]


def small_problem(tasks: int) -> Problem:
    """One hidden layer and a head a task: nothing to hide the cost of the losses behind."""
    features = keras.Input((FEATURES,), name="features")
    hidden = keras.layers.Dense(64, activation="relu")(features)
    x = np.random.default_rng(0).normal(size=(BATCH_SIZE, FEATURES)).astype("float32")
    return _with_heads(features, hidden, x, tasks)


def convolutional_problem(tasks: int) -> Problem:
    """Three convolutions, which take ten milliseconds or more a step."""
    image = keras.Input((64, 64, 3), name="image")
    hidden = image
    for filters in (32, 64, 64):
        hidden = keras.layers.Conv2D(filters, 3, strides=2, activation="relu")(hidden)
    hidden = keras.layers.GlobalAveragePooling2D()(hidden)
    x = np.random.default_rng(0).normal(size=(BATCH_SIZE, 64, 64, 3)).astype("float32")
    return _with_heads(image, hidden, x, tasks)


def pixel_problem(likelihood: Likelihood, missing_share: float = 0.0) -> Problem:
    """A class for each pixel, told by one convolution: next to nothing but the loss."""
    random = np.random.default_rng(0)
    image = keras.Input((*PIXELS[1:], 3), name="image")
    logits = keras.layers.Conv2D(PIXEL_CLASSES, 1)(image)
    classes = random.integers(PIXEL_CLASSES, size=PIXELS).astype("int32")
    classes[random.random(PIXELS) < missing_share] = MISSING
    return Problem(
        keras.Model(image, {"classes": logits}),
        {"classes": likelihood},
        random.normal(size=(*PIXELS, 3)).astype("float32"),
        {"classes": classes},
    )


TEMPERATURE = "Keras with a temperature"
IGNORING = "Keras, 30% ignored"
PIXEL_WAYS: dict[str, tuple[Callable[..., Way], Likelihood, float]] = {
    KERAS: (keras_losses, Categorical(), 0.0),
    IGNORING: (keras_losses, Categorical(missing=MISSING), 0.3),
    TEMPERATURE: (keras_temperatures, Categorical(), 0.0),
    "approximate": (multi_task_model, Categorical(approximate=True), 0.0),
    "exact": (multi_task_model, Categorical(), 0.0),
    "approximate, 30% missing": (
        multi_task_model,
        Categorical(approximate=True, missing=MISSING),
        0.3,
    ),
    "exact, 30% missing": (multi_task_model, Categorical(missing=MISSING), 0.3),
}
# In an order in which the ways of a pair take turns soon after each other.
PIXEL_PAIRS = [
    ("approximate", KERAS, 1.0),
    ("approximate, 30% missing", "approximate", 1.05),
    ("exact", KERAS, 1.1),
    ("exact, 30% missing", "exact", 1.05),
]
PIXEL_PARTS = [(TEMPERATURE, KERAS, None), ("exact", KERAS, 1.1), (IGNORING, KERAS, None)]


def pixel_way(name: str, **options: Any) -> Way:
    """One of the ways to train the pixels' classes."""
    make_way, likelihood, missing_share = PIXEL_WAYS[name]
    return make_way(pixel_problem(likelihood, missing_share), **options)


def alternate(runs: Mapping[Name, Callable[[], float]], rounds: int) -> dict[Name, np.ndarray]:
    """The numbers of each run, one a round. Each round starts with another of the runs."""
    names = list(runs)
    numbers: dict[Name, list[float]] = {name: [] for name in names}
    for first in range(rounds):
        first %= len(names)
        for name in names[first:] + names[:first]:
            numbers[name].append(runs[name]())
    return {name: np.array(values) for name, values in numbers.items()}


def step_seconds(ways: Mapping[str, Way], rounds: int) -> dict[str, np.ndarray]:
    """The time of a step of each way, in turn; as many steps a turn for one as for another."""
    for way in ways.values():
        # Keras would do so in the first step, and TensorFlow trace it twice.
        way.model.optimizer.build(way.model.trainable_variables)
        way.seconds(2)
    with _alone():
        fastest = min(way.seconds(2) for way in ways.values())
        steps = max(1, min(round(TURN_SECONDS / fastest), 50))
        turns = {name: partial(way.seconds, steps) for name, way in ways.items()}
        return alternate(turns, TURNS_OF_A_ROUND * rounds)


def task_rows(
    variant: str, count: int, rounds: int, names: Sequence[str], **options: Any
) -> Iterator[Row]:
    """Steps of a small network with as many tasks."""
    problem = small_problem(count)
    seconds = step_seconds({name: WAYS[name](problem, **options) for name in names}, rounds)
    measured = f"step, {count} tasks"
    targets = {3: 1.0, 30: 0.65, 128: 0.5}
    for name in names[1:]:
        target = targets[count] if name == OURS else None
        yield Row.over(variant, measured, seconds, name, KERAS, target)
    if REPORTING in names:
        yield Row.over(variant, measured, seconds, REPORTING, OURS)
    if LAYER in names:
        yield Row.over(variant, measured, seconds, LAYER, OURS, 1.05)


def scaling_rows(variant: str, rounds: int, **options: Any) -> Iterator[Row]:
    """What a task costs where there are many, over what it costs where there are two."""
    counts = 2, 256
    ways = {f"{count} tasks": multi_task_model(small_problem(count), **options) for count in counts}
    seconds = step_seconds(ways, rounds)
    few, many = (values / count for values, count in zip(seconds.values(), counts, strict=True))
    yield Row.of(
        variant,
        f"time a task: {OURS}, 256 tasks / 2 tasks",
        many / few,
        1.0,
        _milliseconds(seconds, *reversed(ways)),
    )


def large_network_rows(variant: str, rounds: int, **options: Any) -> Iterator[Row]:
    """Steps of a network beside which the losses should not be noticed."""
    problem = convolutional_problem(3)
    # Convolutions vary by more than the difference that is looked for.
    seconds = step_seconds({name: WAYS[name](problem, **options) for name in ENDS}, 3 * rounds)
    for name, target in ((KERAS, None), (OURS, 1.03)):
        measured = "step, convolutional network, 3 tasks"
        yield Row.over(variant, measured, seconds, name, FLOOR, target)


def first_step_rows(variant: str, rounds: int, **options: Any) -> Iterator[Row]:
    """From a network to the end of its first step: the model, compiling and tracing."""

    problem = small_problem(30)

    def first_step(name: str) -> float:
        start = time.perf_counter()
        way = WAYS[name](problem, **options)
        way.model.fit(way.data, steps_per_epoch=1, shuffle=False, verbose=0)
        return time.perf_counter() - start

    seconds = alternate({name: partial(first_step, name) for name in (KERAS, OURS)}, rounds)
    yield Row.over(variant, "first step, 30 tasks", seconds, OURS, KERAS, 0.65)


def pixel_rows(
    variant: str, rounds: int, pairs: Sequence[tuple[str, str, float | None]], **options: Any
) -> Iterator[Row]:
    """Time and memory of a class for each of a million pixels, of one way over another."""
    names = list(dict.fromkeys(name for *pair, _ in pairs for name in pair))
    seconds = step_seconds({name: pixel_way(name, **options) for name in names}, rounds)
    arguments = [(name, options) for name in names for _ in range(PEAKS)]
    # Forks of a process that has imported all, but not yet run anything, start at once.
    context = get_context("forkserver")
    context.set_forkserver_preload([__spec__.name])
    with context.Pool(os.cpu_count(), maxtasksperchild=1) as pool:
        peaks = pool.starmap(peak_megabytes, arguments, chunksize=1)
    # Some processes have let go of a copy of the batch before, and others do so in the first step.
    least = np.min(np.reshape(peaks, (-1, PEAKS)), axis=1)
    megabytes = dict(zip(names, least, strict=True))
    for name, other, target in pairs:
        yield Row.over(variant, "pixels, step", seconds, name, other, target)
        yield Row.of(
            variant,
            f"pixels, peak memory: {name} / {other}",
            megabytes[name] / megabytes[other],
            target,
            f"{megabytes[name]:.0f} / {megabytes[other]:.0f} MB",
        )


def peak_megabytes(name: str, options: dict[str, Any]) -> float:
    """By how much a process grows at most over three steps; it has to be a fresh one."""
    way = pixel_way(name, **options)
    before = _status("VmRSS")
    way.model.fit(way.data, steps_per_epoch=3, shuffle=False, verbose=0)
    return _status("VmHWM") - before


def export_rows(variant: str, rounds: int) -> Iterator[Row]:
    """Exported models, with and without the weighting."""
    problem = small_problem(3)
    x = tf.constant(problem.x)
    turns = {}
    nodes = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, model in (
            ("network", problem.network),
            (OURS, multi_task_model(problem).model),
        ):
            model.export(f"{folder}/{name}", verbose=False)
            served = tf.saved_model.load(f"{folder}/{name}")
            nodes[name] = len(_nodes(served.signatures["serving_default"].graph))
            turns[name] = partial(_seconds, served.serve, x, 100)
            turns[name]()
        latency = alternate(turns, 3 * TURNS_OF_A_ROUND * rounds)
    yield Row.over(variant, "exported, latency", latency, OURS, "network", 1.02)
    yield Row.of(
        variant,
        f"exported, graph nodes: {OURS} / network",
        nodes[OURS] / nodes["network"],
        (nodes["network"] + 3) / nodes["network"],
        f"{nodes[OURS]} / {nodes['network']}",
    )


# What processes beside each other wait for: all to have built, and another to have measured.
_barrier: Any = None
_lock: Any = None


def _run_beside(barrier: Any, lock: Any) -> None:
    global _barrier, _lock
    _barrier, _lock = barrier, lock


def _beside(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except Exception:
        # Or the others would wait for this process.
        traceback.print_exc()
        _barrier.abort()
        raise


@contextmanager
def _alone() -> Iterator[None]:
    """Times are taken of one process, while the others neither build nor end."""
    if _barrier is None:
        yield
        return
    _barrier.wait()
    with _lock:
        yield
    _barrier.wait()


def side_by_side(calls: Sequence[tuple[str, Callable[[], Any]]]) -> list[Any]:
    """What functions return that take times equally often, each in a new process.

    They build their models at the same time, which for many tasks takes most of it, and take times
    one after the other.

    Args:
        calls: Functions without arguments, each with the backend that it needs.
    """
    context = get_context("spawn")
    shared = context.Barrier(len(calls)), context.Lock()
    with ExitStack() as pools:
        results = []
        for backend, call in calls:
            with patch.dict(os.environ, KERAS_BACKEND=backend):
                pool = pools.enter_context(context.Pool(1, _run_beside, shared))
            results.append(pool.apply_async(_beside, (call,)))
        return [result.get() for result in results]


@dataclass(frozen=True)
class Variant:
    """How the steps of small networks are run."""

    backend: str = "tensorflow"
    policy: str = "float32"
    options: Mapping[str, Any] = field(default_factory=dict)


VARIANTS = {
    "jit_compile=False": Variant(options={"jit_compile": False}),
    "jit_compile=True": Variant(options={"jit_compile": True}),
    "mixed_bfloat16": Variant(policy="mixed_bfloat16"),
    "JAX": Variant(backend="jax"),
    "PyTorch": Variant(backend="torch"),
}


def variant_rows(name: str, rounds: int, names_of: Mapping[int, Sequence[str]]) -> list[Row]:
    """The rows of so many tasks, on the backend of this process."""
    variant = VARIANTS[name]
    assert keras.backend.backend() == variant.backend
    # Of a few calls from Python the times vary most, and building a few tasks takes the least.
    of_three = rounds if variant.backend == "tensorflow" else 3 * rounds
    with _policy(variant.policy):
        rows = (
            task_rows(name, count, of_three if count == 3 else rounds, names, **variant.options)
            for count, names in names_of.items()
        )
        return list(itertools.chain.from_iterable(rows))


def small_network_rows(
    rounds: int,
    with_or_without_xla: Mapping[int, Sequence[str]],
    others: Mapping[int, Sequence[str]],
) -> list[Row]:
    """Steps of a small network with few tasks and with many, in all variants."""
    calls = []
    for name, variant in VARIANTS.items():
        if importlib.util.find_spec(variant.backend):
            names_of = with_or_without_xla if variant.options else others
            calls.append((variant.backend, partial(variant_rows, name, rounds, names_of)))
        else:
            print(f"{variant.backend} is not installed: left out", flush=True)
    return list(itertools.chain.from_iterable(side_by_side(calls)))


def all_rows(rounds: int) -> Iterator[Row]:
    """The table, row by row."""
    yield from small_network_rows(
        rounds, {3: USUAL, 30: USUAL, 128: MANY}, {3: ENDS, 30: ENDS, 128: MANY}
    )
    variant, options = "jit_compile=False", {"jit_compile": False}
    yield from scaling_rows(variant, rounds, **options)
    yield from large_network_rows(variant, rounds, **options)
    yield from first_step_rows(variant, rounds, **options)
    yield from pixel_rows(variant, rounds, PIXEL_PAIRS, **options)
    yield from export_rows(variant, rounds)
    variant, options = "jit_compile=True", {"jit_compile": True}
    yield from large_network_rows(variant, rounds, **options)
    yield from pixel_rows(variant, rounds, PIXEL_PAIRS, **options)


def part_rows(rounds: int) -> Iterator[Row]:
    """What the costs are made of, row by row."""
    yield from small_network_rows(
        rounds, {3: REPORTS, 30: REPORTS, 128: PARTS}, {3: PARTS, 30: PARTS, 128: PARTS}
    )
    for jit_compile in (False, True):
        options = {"jit_compile": jit_compile}
        yield from pixel_rows(f"jit_compile={jit_compile}", rounds, PIXEL_PARTS, **options)


def profile(tasks: int, rounds: int) -> Iterator[list[str]]:
    """For each way: what the parts of one step take, and of what graphs they are."""
    problem = small_problem(tasks)
    is_compiled = keras.backend.backend() == "tensorflow"
    for jit_compile in (True, False) if is_compiled else (False,):
        turns: dict[tuple[str, str], Callable[[], float]] = {}
        graphs = {}
        for name in (KERAS, FLOOR, OURS):
            way = WAYS[name](problem, jit_compile=jit_compile)
            way.seconds(1)
            batch = keras.tree.map_structure(ops.convert_to_tensor, next(iter(way.data)))
            for part, function in _parts(way.model).items():
                graphs[name, part] = ["", "", ""]
                if is_compiled:
                    function = tf.function(function, jit_compile=jit_compile)
                    graphs[name, part] = _graph(function, batch, jit_compile)
                turns[name, part] = partial(_seconds, function, batch, 20)
                turns[name, part]()
            graphs[name, "fit"] = ["", "", ""]
            turns[name, "fit"] = partial(way.seconds, 20)
        for (name, part), seconds in alternate(turns, TURNS_OF_A_ROUND * rounds).items():
            milliseconds = f"{1e3 * np.median(seconds):.3f}"
            yield [str(jit_compile), name, part, milliseconds, *graphs[name, part]]


def _graph(compiled: Any, batch: Any, jit_compile: bool) -> list[str]:
    """Of how many nodes and kernels a compiled function is, and which nodes are commonest."""
    kinds = Counter(_nodes(compiled.get_concrete_function(batch).graph))
    kernels = ""
    if jit_compile:
        ir = compiled.experimental_get_compiler_ir(batch)
        kernels = str(_kernels(ir(stage="optimized_hlo")))
    common = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(12))
    return [str(kinds.total()), kernels, common]


def _parts(model: keras.Model) -> dict[str, Callable[[Any], Any]]:
    """A step, cut off after each of its parts."""

    def loss(data: Any) -> Tensor:
        x, y, _ = keras.utils.unpack_x_y_sample_weight(data)
        return model.compute_loss(x, y, model(x, training=True), None, training=True)

    def gradients(data: Any) -> Any:
        if keras.backend.backend() == "torch":
            model.zero_grad()
            return loss(data).backward()
        with tf.GradientTape() as tape:
            value = loss(data)
        return tape.gradient(value, model.trainable_variables)

    return {
        "network": lambda data: model(data[0], training=True),
        "+ loss": loss,
        "+ gradients": gradients,
        "+ optimizer, metrics": _step(model),
    }


def _step(model: keras.Model) -> Callable[[Any], Any]:
    """The step that Keras compiles, the numbers of a `MultiTaskModel` as one tensor."""
    if not isinstance(model, MultiTaskModel):
        return model.train_step
    packed = []

    def keep(step: Callable[[Any], Any]) -> Callable[[Any], Any]:
        packed.append(step)
        return step

    as_one_tensor(model.train_step, keep)
    return packed[0]


def _nodes(graph: Any) -> list[str]:
    """The operations of a graph and of the functions that it calls."""
    definition = graph.as_graph_def()
    functions = [function.node_def for function in definition.library.function]
    return [node.op for nodes in [definition.node, *functions] for node in nodes]


def _kernels(hlo: str) -> int:
    """How many instructions of an XLA program compute anything."""
    entry = hlo[hlo.index("\nENTRY") :]
    entry = entry[: entry.index("\n}")]
    opcodes = re.findall(r"= .*? ([a-z][a-z-]*)\(", entry)
    free = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast"}
    return sum(opcode not in free for opcode in opcodes)


def _with_heads(inputs: Tensor, hidden: Tensor, x: np.ndarray, count: int) -> Problem:
    random = np.random.default_rng(1)
    outputs, tasks, y = {}, {}, {}
    for index in range(count):
        task = f"task_{index}"
        kind = list(LOSSES)[index % len(LOSSES)]
        tasks[task] = kind()
        if kind is Categorical:
            outputs[task] = keras.layers.Dense(CLASSES)(hidden)
            y[task] = random.integers(CLASSES, size=len(x)).astype("int32")
        else:
            outputs[task] = keras.layers.Dense(1)(hidden)
            y[task] = random.normal(size=(len(x), 1)).astype("float32")
    return Problem(keras.Model(inputs, outputs), tasks, x, y)


def _keras_loss(likelihood: Likelihood) -> Any:
    if likelihood.missing is not None:
        return keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=MISSING)
    return LOSSES[type(likelihood)]


def _with_targets(problem: Problem, model: keras.Model, options: dict[str, Any]) -> Way:
    model.compile("adam", **options)
    return Way(model, _endless((problem.x, problem.y)))


def _with_target_inputs(
    problem: Problem, targets: dict[str, Any], outputs: Any, options: dict[str, Any]
) -> Way:
    source = problem.network.input
    model = keras.Model({source.name: source, **{t.name: t for t in targets.values()}}, outputs)
    model.compile("adam", **options)
    data = {source.name: problem.x, **{targets[task].name: y for task, y in problem.y.items()}}
    return Way(model, _endless((data,)))


def _endless(batch: Any) -> Any:
    if keras.backend.backend() == "tensorflow":
        return tf.data.Dataset.from_tensors(batch).repeat()
    # Other backends would wait for TensorFlow in every step.
    return (batch for _ in itertools.count())


def _seconds(function: Callable[[Any], Any], argument: Any, calls: int) -> float:
    """The time of a call."""
    start = time.perf_counter()
    for _ in range(calls):
        function(argument)
    return (time.perf_counter() - start) / calls


def _milliseconds(seconds: Mapping[str, np.ndarray], *names: str) -> str:
    return " / ".join(f"{1e3 * np.median(seconds[name]):.3g}" for name in names) + " ms"


def _status(field: str) -> float:
    """A number of megabytes that Linux tells of this process."""
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) / 1024


@contextmanager
def _policy(name: str) -> Iterator[None]:
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def _machine() -> str:
    """What was run, and on what."""
    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    packages = ["tensorflow", "keras", "jax", "torch", "numpy"]
    versions = [f"{name} {version(name)}" for name in packages if importlib.util.find_spec(name)]
    backend = keras.backend.backend()
    environment = [] if backend == "tensorflow" else [f"KERAS_BACKEND={backend}"]
    return (
        f"`{' '.join([*environment, 'python -m benchmarks.step_time', *sys.argv[1:]])}`: "
        f"Python {platform.python_version()}, {', '.join(versions)}; "
        f"{os.cpu_count()} × {cpu[1] if cpu else platform.processor()}.\n"
    )


def main() -> None:
    """Prints a table, or the profile, and writes it as Markdown and as CSV."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument("--parts", action="store_true", help="what the costs are made of")
    instead.add_argument("--profile", action="store_true", help="one step taken apart")
    parser.add_argument("--tasks", type=int, default=30, help="of the profile")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()
    # TensorFlow warns of many functions that are made anew, as those of many models are.
    tf.get_logger().setLevel("ERROR")

    lines = []
    if arguments.profile:
        backend = keras.backend.backend().replace("tensorflow", "")
        name = "_".join(filter(None, ["step_profile", str(arguments.tasks), backend]))
        header = ["XLA", "way", "part", "ms", "graph nodes", "XLA kernels", "commonest nodes"]
        lines = list(profile(arguments.tasks, arguments.rounds))
        table = pd.DataFrame(lines, columns=header)
    else:
        name = "step_parts" if arguments.parts else "step_time"
        header = ["variant", "measured", "ratio", "quartiles", "to reach", "reached", "medians"]
        rows = []
        for row in (part_rows if arguments.parts else all_rows)(arguments.rounds):
            rows.append(row)
            lines.append(row.cells())
            print(*lines[-1], sep=" | ", flush=True)
        table = pd.DataFrame([astuple(row) for row in rows], columns=list(Row.__annotations__))

    text = f"{_machine()}\n{markdown(header, lines)}"
    arguments.results.mkdir(parents=True, exist_ok=True)
    (arguments.results / f"{name}.md").write_text(text, encoding="utf-8")
    table.to_csv(arguments.results / f"{name}.csv", index=False)
    print(text)
    # Or Python would look for garbage in all these models, for a quarter of a minute, as it ends.
    gc.freeze()


if __name__ == "__main__":
    main()
