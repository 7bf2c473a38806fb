"""Quickstart: uncertainty weighting beside equal weights and a network for each task.

One network reads five measures of a diamond. Three heads predict its price in dollars, its weight
in carats, and its cut in five grades. No task weight is set by hand. Development diamonds then
calibrate σ, and held-out diamonds measure every method.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np
from sklearn.metrics import log_loss

from examples.batches import shuffled
from examples.command_line import format_table, positive
from examples.serving import check_serving
from keras_uncertainty_mtl import Categorical, Gaussian, Laplace, MultiTaskModel
from keras_uncertainty_mtl.reliability import central_mass, reliability

Outputs = dict[str, Any]

MEASURES = ["x", "y", "z", "depth", "table"]  # millimetres, and percentages of the width
SIZES = {"train": 1000, "development": 1000, "test": 4000}
BATCH_SIZE = 32
LEARNING_RATE = 3e-3
SERVED = 256


class Task(NamedTuple):
    """A task's likelihood, the Keras loss of the same form, and its held-out metric."""

    likelihood: Any
    loss: Any
    metric: str
    measure: Callable[[Any, Any], float]
    digits: int
    unit: str
    is_score: bool = False


def mean_absolute_error(targets: Any, predictions: Any) -> float:
    return float(np.mean(np.abs(predictions.squeeze(-1) - targets)))


def root_mean_squared_error(targets: Any, predictions: Any) -> float:
    return float(np.sqrt(np.mean((predictions.squeeze(-1) - targets) ** 2)))


def accuracy(labels: Any, logits: Any) -> float:
    return 100 * float(np.mean(logits.argmax(axis=-1) == labels))


TASKS = {
    "price": Task(Laplace(), "mae", "mean abs. error ($)", mean_absolute_error, 0, "${}"),
    "carat": Task(Gaussian(), "mse", "RMS error (ct)", root_mean_squared_error, 3, "{} ct"),
    "cut": Task(
        Categorical(),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        "accuracy (%)",
        accuracy,
        1,
        "{}%",
        is_score=True,
    ),
}


class Diamonds(NamedTuple):
    """Measures of shape `(N, 5)` and the targets of every task."""

    measures: Any
    targets: Outputs


SINGLE, EQUAL, STANDARD = "a network each", "equal weights", "equal, standardised"
UNCERTAINTY = "uncertainty"
Results = dict[str, list[dict[str, float]]]  # by method: each seed's metrics, by task


def main() -> None:
    options = parse_arguments()
    options.output_dir.mkdir(parents=True, exist_ok=True)
    results: Results = {method: [] for method in (SINGLE, UNCERTAINTY, EQUAL, STANDARD)}
    for seed in options.seeds:
        train, development, test = split(seed)
        models = train_methods(train, seed, options.epochs)
        for method, trained in models.items():
            results[method].append(measure(trained, test))
        gains = (f"{method} {change(results, method)[-1]:+.1f}%" for method in list(results)[1:])
        print(f"seed {seed}: Δm of {', of '.join(gains)}", flush=True)

    model = models[UNCERTAINTY][0]
    seeds = " ".join(map(str, options.seeds))
    print(
        f"\n{len(train.measures)} diamonds to train, {len(test.measures)} held out, seeds {seeds}\n"
    )
    print(format_results(results, model))
    calibrate(model, development, test)
    model.export(options.output_dir / "saved_model", verbose=False)
    check_serving(model, options.output_dir / "saved_model", test.measures[:SERVED])
    draw(results).savefig(options.output_dir / "demo.png", dpi=150)
    print(f"\nIn {options.output_dir}: demo.png, saved_model")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--epochs", type=positive, default=40, help="training epochs of each network (%(default)s)")
    add(
        "--seeds",
        type=int,
        nargs="+",
        default=[0, 1, 2],
        help="each chooses the training data and the initial weights (0 1 2)",
    )
    add(
        "--output-dir",
        type=Path,
        default=Path("quickstart_output"),
        help="directory of the picture and the SavedModel (%(default)s)",
    )
    return parser.parse_args()


def split(seed: int) -> tuple[Diamonds, Diamonds, Diamonds]:
    """Training, development and held-out diamonds, drawn from the 53,917 of ggplot2.

    Twenty-three diamonds have a size of 0 mm, or one of above 20 mm, and are left out.
    """
    from plotnine.data import diamonds

    sizes = diamonds[["x", "y", "z"]]
    chosen = diamonds[(sizes > 0).all(axis=1) & (sizes < 20).all(axis=1)]
    chosen = chosen.sample(sum(SIZES.values()), random_state=seed)
    parts = np.split(np.arange(len(chosen)), np.cumsum(list(SIZES.values()))[:-1])
    train, development, test = (
        Diamonds(
            chosen[MEASURES].to_numpy("float32")[part],
            {
                "price": chosen["price"].to_numpy("float32")[part],
                "carat": chosen["carat"].to_numpy("float32")[part],
                "cut": chosen["cut"].cat.codes.to_numpy("int32")[part],
            },
        )
        for part in parts
    )
    return train, development, test


def build_heads(train: Diamonds, seed: int) -> tuple[Any, Outputs]:
    """The input and the outputs of the network. Heads answer in the units of their targets."""
    keras.utils.set_random_seed(seed)
    layers = keras.layers
    measures = keras.Input((len(MEASURES),), name="measures")
    scaled = layers.Normalization(mean=train.measures.mean(0), variance=train.measures.var(0))
    shared = layers.Dense(64, activation="relu")(scaled(measures))
    shared = layers.Dense(64, activation="relu")(shared)

    def in_units(task: str) -> Any:
        target = train.targets[task]
        scale = layers.Rescaling(float(target.std()), offset=float(target.mean()))
        return scale(layers.Dense(1)(shared))

    return measures, {
        "price": in_units("price"),
        "carat": in_units("carat"),
        "cut": layers.Dense(5)(shared),
    }


def train_methods(train: Diamonds, seed: int, epochs: int) -> dict[str, list[Any]]:
    """The trained models of every method, all with the same network, batches and budget."""
    everything = list(TASKS)
    # The weights that equal weights have after targets are scaled to a variance of 1.
    standard = {
        "price": 1 / float(train.targets["price"].std()),
        "carat": 1 / float(train.targets["carat"].var()),
        "cut": 1.0,
    }
    return {
        SINGLE: [train_stock_model([task], train, seed, epochs) for task in TASKS],
        UNCERTAINTY: [train_uncertainty_weighting(train, seed, epochs)],
        EQUAL: [train_stock_model(everything, train, seed, epochs)],
        STANDARD: [train_stock_model(everything, train, seed, epochs, standard)],
    }


def train_uncertainty_weighting(train: Diamonds, seed: int, epochs: int) -> MultiTaskModel:
    measures, outputs = build_heads(train, seed)
    model = MultiTaskModel(measures, outputs, {task: TASKS[task].likelihood for task in TASKS})
    model.compile(optimizer(epochs))
    fit(model, train, seed, epochs)
    return model


def train_stock_model(
    tasks: list[str], train: Diamonds, seed: int, epochs: int, loss_weights: Any = None
) -> keras.Model:
    measures, outputs = build_heads(train, seed)
    model = keras.Model(measures, {task: outputs[task] for task in tasks})
    losses = {task: TASKS[task].loss for task in tasks}
    model.compile(optimizer(epochs), loss=losses, loss_weights=loss_weights)
    fit(model, train, seed, epochs)
    return model


def optimizer(epochs: int) -> keras.Optimizer:
    """Adam with a learning rate that decays to 0 along a cosine, the same for every method."""
    steps = epochs * -(-SIZES["train"] // BATCH_SIZE)
    return keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(LEARNING_RATE, steps))


def fit(model: keras.Model, train: Diamonds, seed: int, epochs: int) -> None:
    targets = {task: train.targets[task] for task in model.output}
    batches = shuffled(train.measures, targets, BATCH_SIZE, seed)
    model.fit(batches, epochs=epochs, shuffle=False, verbose=0)


def measure(models: list[Any], test: Diamonds) -> dict[str, float]:
    predictions: Outputs = {}
    for model in models:
        predictions |= model.predict(test.measures, batch_size=len(test.measures), verbose=0)
    return {
        name: task.measure(test.targets[name], predictions[name]) for name, task in TASKS.items()
    }


def change(results: Results, method: str, task: str | None = None) -> Any:
    """The gain over a network for each task in percent, one a seed; `None`: the tasks' mean, Δm."""
    if task is None:
        return np.mean([change(results, method, each) for each in TASKS], axis=0)
    ours, single = (np.array([seed[task] for seed in results[key]]) for key in (method, SINGLE))
    sign = 1 if TASKS[task].is_score else -1
    return 100 * sign * (ours / single - 1)


def mean_and_spread(values: Any, digits: int, sign: str = "") -> str:
    text = f"{np.mean(values):{sign}.{digits}f}"
    return text if len(values) == 1 else f"{text} ± {np.std(values, ddof=1):.{digits}f}"


def format_results(results: Results, model: MultiTaskModel) -> str:
    sigmas, weights = model.weighting.sigmas(), model.weighting.task_weights()
    rows = [["task", "held-out metric", *results, "σ", "weight"]]
    for name, task in TASKS.items():
        cells = (
            mean_and_spread([seed[name] for seed in seeds], task.digits)
            for seeds in results.values()
        )
        rows.append([name, task.metric, *cells, f"{sigmas[name]:.4g}", f"{weights[name]:.4g}"])
    gains = (mean_and_spread(change(results, method), 1, "+") for method in list(results)[1:])
    rows.append(["Δm", "mean gain (%)", "0", *gains, "", ""])
    return format_table(rows, text_columns=2)


def calibrate(model: MultiTaskModel, development: Diamonds, test: Diamonds) -> None:
    """Calibrates every σ on the development diamonds and prints held-out reliability."""
    sigmas = {"trained": model.weighting.sigmas()}
    predicted = {"trained": model.predictive_model().predict(test.measures, verbose=0)}
    sigmas["calibrated"] = model.calibrate(development.measures, development.targets, verbose=0)
    predicted["calibrated"] = model.predictive_model().predict(test.measures, verbose=0)
    print(f"\nσ calibrated with {len(development.measures)} other diamonds\n")
    rows = [["held out", *predicted]]
    rows += [
        [f"σ of {task}", *(f"{sigma[task]:.4g}" for sigma in sigmas.values())] for task in TASKS
    ]
    for name, measured in RELIABILITY.items():
        rows.append([name, *(f"{measured(test.targets, p):.3g}" for p in predicted.values())])
    print(format_table(rows, text_columns=1))


def percent_in_intervals(*predicted: Any) -> float:
    return 100 * float(np.mean(central_mass(*predicted) <= 0.95))


RELIABILITY: dict[str, Callable[[Outputs, Outputs], float]] = {
    "95% intervals of price hold (%)": lambda targets, outputs: percent_in_intervals(
        targets["price"], outputs["price_location"], outputs["price_scale"], "laplace"
    ),
    "95% intervals of carat hold (%)": lambda targets, outputs: percent_in_intervals(
        targets["carat"], outputs["carat_mean"], outputs["carat_standard_deviation"]
    ),
    "calibration error of cut (%)": lambda targets, outputs: (
        100 * reliability(targets["cut"], outputs["cut_probabilities"]).expected_calibration_error
    ),
    "negative log-likelihood of cut": lambda targets, outputs: log_loss(
        targets["cut"], outputs["cut_probabilities"]
    ),
}


BARS = {  # by method: grey level, hatch and entry of the legend
    UNCERTAINTY: ("0.15", "", "uncertainty weighting"),
    STANDARD: ("0.65", "", "equal weights, standardised targets"),
    EQUAL: ("1", "///", "equal weights"),
}


def draw(results: Results) -> Any:
    """Bars of the gain over a network for each task, with the spread of the seeds."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.0, 4.2), layout="constrained")
    axes = figure.subplots()
    for place, (method, (grey, hatch, label)) in enumerate(BARS.items()):
        gains = [*(change(results, method, task) for task in TASKS), change(results, method)]
        spreads = [np.std(values, ddof=1) if len(values) > 1 else 0 for values in gains]
        bars = axes.barh(
            np.arange(len(gains)) + 0.28 * (place - 1),
            np.mean(gains, axis=1),
            0.26,
            xerr=spreads,
            color=grey,
            edgecolor="0",
            hatch=hatch,
            label=label,
        )
        axes.bar_label(bars, [*answers(results, method), f"{np.mean(gains[-1]):+.0f}%"], padding=4)
    rows = [
        f"{name}, {TASKS[name].metric.split(' (')[0]}\na network each: {single}"
        for name, single in zip(TASKS, answers(results, SINGLE), strict=True)
    ]
    axes.set_yticks(range(len(rows) + 1), [*rows, "mean of the tasks, Δm"])
    axes.axvline(0, color="0")
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.set_xlabel("← worse          gain over a network for each task (%)          better →")
    axes.set_title("One network for three tasks, against a network for each", loc="left")
    axes.legend(loc="upper left")
    return figure


def answers(results: Results, method: str) -> list[str]:
    """A method's mean metrics in their units."""
    means = {name: np.mean([seed[name] for seed in results[method]]) for name in TASKS}
    return [task.unit.format(f"{means[name]:.{task.digits}f}") for name, task in TASKS.items()]


if __name__ == "__main__":
    main()
