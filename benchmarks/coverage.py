"""Coverage of conformal intervals and sets on real data, beside those of crepes.

    python -m benchmarks.coverage

A network a seed is trained on the training part of a problem. One regression has a twin with a σ
for each element. The other parts are divided in two 100 times: one half calibrates, the other one
tests. The package crepes gets the same predictions and the same halves. Every network that is done
adds a row a task to `results/coverage.csv`, and is not run again.
"""

from __future__ import annotations

import argparse
import platform
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd
from crepes import ConformalClassifier, ConformalRegressor
from scipy import special

from benchmarks.problems import PROBLEMS, Problem
from examples.batches import shuffled
from examples.command_line import markdown
from keras_uncertainty_mtl import Categorical, Laplace, Likelihood, MultiTaskModel
from keras_uncertainty_mtl.reliability import central_mass

LEVEL, DRAWS, SEEDS = 0.95, 100, 3
# The tasks of each problem. The first one, a regression, has a twin with a σ for each element.
TASKS = {
    "digits": ("ink", "image", "class"),
    "diamonds": ("price", "carat", "cut"),
    "flights": ("arr_delay", "air_time", "maker"),
}
Arrays = dict[str, Any]


def trained(
    problem: Problem, of_problem: tuple[str, ...], seed: int
) -> tuple[dict[str, Likelihood], Arrays, Arrays]:
    """Likelihoods, predictions of a trained network for data it has not seen, and their targets."""
    noisy, *_ = of_problem
    data = problem.load(seed)
    network = problem.build(data.train, seed)
    hidden = keras.layers.Dense(64, activation="relu")(keras.layers.Flatten()(network.input))
    log_variance = keras.layers.Dense(1, kernel_initializer="zeros")(hidden)
    twin = f"{noisy}_noise"
    tasks = dict(problem.tasks)
    tasks[twin] = type(tasks[noisy])(heteroscedastic=True)
    outputs = dict(network.output)
    outputs[twin] = keras.layers.Concatenate()([outputs[noisy], log_variance])
    model = MultiTaskModel(network.input, outputs, tasks)
    batches = shuffled(
        data.train.inputs,
        data.train.targets | {twin: data.train.targets[noisy]},
        problem.batch_size,
        seed,
    )
    steps = problem.epochs * len(data.train.inputs) // problem.batch_size
    model.compile(
        keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(problem.learning_rate, steps))
    )
    model.fit(batches, epochs=problem.epochs, shuffle=False, verbose=0)
    unseen = [data.validation, data.test]
    inputs = np.concatenate([part.inputs for part in unseen])
    targets = {task: np.concatenate([part.targets[task] for part in unseen]) for task in of_problem}
    targets[twin] = targets[noisy]
    predictions = model.predict(inputs, verbose=0)
    return {task: tasks[task] for task in targets}, predictions, targets


def calibrated_answers(
    likelihood: Likelihood, predictions: Any, targets: Any, calibrates: Any, tests: Any
) -> Arrays:
    """The predictive model's answers for the halves that test, in a column for each draw.

    A network of columns, each with a σ and a quantile of its own, makes all draws at once.
    """
    options = {"heteroscedastic": True} if likelihood.heteroscedastic else {}
    likelihood = type(likelihood)(per_channel=True, **options)
    inputs = keras.Input(columns(likelihood, predictions, calibrates).shape[1:])
    model = MultiTaskModel(inputs, keras.layers.Activation("linear")(inputs), {"task": likelihood})
    model.calibrate(
        columns(likelihood, predictions, calibrates),
        by_draw(targets, calibrates),
        batch_size=1000,
        intervals=LEVEL,
        verbose=0,
    )
    of_tests = columns(likelihood, predictions, tests)
    answers: Arrays = model.predictive_model().predict(of_tests, batch_size=1000, verbose=0)
    return answers


def columns(likelihood: Likelihood, predictions: Any, halves: Any) -> Any:
    """Predictions with an axis of draws, as the likelihood of columns takes them."""
    if likelihood.heteroscedastic:
        parts = [by_draw(predictions[:, part], halves) for part in (0, 1)]
        return np.concatenate(parts, axis=-1)
    if isinstance(likelihood, Categorical):
        return predictions[halves].swapaxes(0, 1)
    return by_draw(predictions, halves)


def by_draw(values: Any, halves: Any) -> Any:
    """The elements of each half, as a column."""
    return values[halves].reshape(len(halves), -1).T


def intervals_of_crepes(residuals: Any, sigmas: Any, center: Any, sigma: Any) -> Any:
    """The ends of crepes's intervals around centers, from the residuals of other elements."""
    regressor = ConformalRegressor().fit(residuals, sigmas=sigmas)
    return regressor.predict_int(center, sigmas=sigma, confidence=LEVEL)


def sets_of_crepes(probabilities: Any, labels: Any, new: Any) -> Any:
    """Crepes's sets, by one minus the probability of each class."""
    own = np.take_along_axis(probabilities, labels[:, None], axis=1)[:, 0]
    classifier = ConformalClassifier().fit(1 - own)
    return classifier.predict_set(1 - new, confidence=LEVEL, smoothing=False)


def of_sets(predictions: Any, labels: Any, calibrates: Any, tests: Any) -> Any:
    """Coverage and mean size of the sets, this package's and crepes's, in each draw."""
    answers = calibrated_answers(Categorical(), predictions, labels, calibrates, tests)
    # The temperature that was trained is in the logits.
    p = special.softmax(predictions.astype("float64"), axis=-1)
    rows = []
    for draw, (held_out, new) in enumerate(zip(calibrates, tests, strict=True)):
        theirs = sets_of_crepes(p[held_out], labels[held_out], p[new])
        row = []
        for sets in (answers["task_set"][:, draw], theirs):
            inside = np.take_along_axis(sets, labels[new][:, None], axis=1)
            row += [np.mean(inside), np.mean(np.sum(sets, axis=1))]
        rows.append([*row, np.nan])
    return np.array(rows)


def of_intervals(
    likelihood: Likelihood, predictions: Any, targets: Any, calibrates: Any, tests: Any
) -> Any:
    """Coverage and mean width, this package's and crepes's, and coverage by σ, in each draw."""
    answers = calibrated_answers(likelihood, predictions, targets, calibrates, tests)
    is_laplace = isinstance(likelihood, Laplace)
    names = ("location", "scale") if is_laplace else ("mean", "standard_deviation")
    location, scale = (answers[f"task_{name}"] for name in names)
    kind = "laplace" if is_laplace else "gaussian"
    mass = central_mass(by_draw(targets, tests), location, scale, kind)
    center, noise = predictions, np.ones_like(predictions)
    if likelihood.heteroscedastic:
        center, noise = predictions[:, 0], np.exp(0.5 * predictions[:, 1])
    center = center.reshape(targets.shape)
    rows = []
    for draw, halves in enumerate(zip(calibrates, tests, strict=True)):
        y, f, sigma = ([np.ravel(of[half]) for half in halves] for of in (targets, center, noise))
        theirs = intervals_of_crepes(y[0] - f[0], sigma[0], f[1], sigma[1])
        ours = np.stack([answers[f"task_{end}"][:, draw] for end in ("lower", "upper")], axis=1)
        row = []
        for ends in (ours, theirs):
            inside = (ends[:, 0] <= y[1]) & (y[1] <= ends[:, 1])
            row += [np.mean(inside), np.mean(np.diff(ends))]
        rows.append([*row, np.mean(mass[:, draw] <= LEVEL)])
    return np.array(rows)


def run(name: str, seed: int) -> list[dict[str, Any]]:
    """Trains a network, and returns a row a task over all draws."""
    likelihoods, predictions, targets = trained(PROBLEMS[name](), TASKS[name], seed)
    size = len(next(iter(targets.values())))
    orders = np.argsort(np.random.default_rng(seed).random((DRAWS, size)), axis=1)
    halves = orders[:, : size // 2], orders[:, size // 2 :]
    rows = []
    for task, likelihood in likelihoods.items():
        of_task = predictions[task], targets[task], *halves
        is_class = isinstance(likelihood, Categorical)
        found = of_sets(*of_task) if is_class else of_intervals(likelihood, *of_task)
        coverage, own_size, theirs, their_size, sigma = found.T
        rows.append(
            {
                "problem": name,
                "seed": seed,
                "task": task,
                "coverage": 100 * coverage.mean(),
                "sd of a draw": 100 * coverage.std(ddof=1),
                "crepes": 100 * theirs.mean(),
                "largest difference": 100 * np.abs(coverage - theirs).max(),
                "size": own_size.mean(),
                "size over crepes": own_size.mean() / their_size.mean(),
                "coverage of σ": 100 * sigma.mean(),
            }
        )
    return rows


def report(table: pd.DataFrame) -> str:
    """The table over all seeds, as Markdown."""
    header = [
        "problem",
        "task",
        "networks",
        "coverage, %",
        "sd of a draw",
        "crepes, %",
        "width or set size",
    ]
    header += ["over crepes's", "σ alone, %"]
    rows = []
    for (problem, task), group in table.groupby(["problem", "task"], sort=False):
        mean, sd = group.mean(numeric_only=True), group.std(numeric_only=True)
        sigma = mean["coverage of σ"]
        rows.append(
            [
                problem,
                task,
                str(len(group)),
                f"{mean['coverage']:.2f} ± {sd['coverage']:.2f}",
                f"{mean['sd of a draw']:.2f}",
                f"{mean['crepes']:.2f} ± {sd['crepes']:.2f}",
                f"{mean['size']:.4g}",
                f"{mean['size over crepes']:.5f}",
                "" if np.isnan(sigma) else f"{sigma:.1f} ± {sd['coverage of σ']:.1f}",
            ]
        )
    return (
        f"{date.today()}: Python {platform.python_version()}, Keras {keras.__version__}, "
        f"TensorFlow {version('tensorflow')}, crepes {version('crepes')}; mean ± standard "
        f"deviation of the networks, {DRAWS} draws each.\n\n" + markdown(header, rows)
    )


def main() -> None:
    """Runs the missing runs; prints and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--problem", choices=TASKS, action="append", help="only these")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()
    file = arguments.results / "coverage.csv"
    table = pd.read_csv(file) if file.exists() else pd.DataFrame()
    for name in arguments.problem or TASKS:
        for seed in range(SEEDS):
            if len(table) and ((table.problem == name) & (table.seed == seed)).any():
                continue
            table = pd.concat([table, pd.DataFrame(run(name, seed))])
            table.to_csv(file, index=False, float_format="%.6g")
            print(table.to_string(), flush=True)
    text = report(table)
    file.with_suffix(".md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
