"""Coverage of conformal intervals and sets on real data, beside those of crepes.

    python -m benchmarks.coverage

A network a seed is trained on the training part of a problem. One regression has a twin with a σ
for each element. The other parts are divided in two 34 times: one half calibrates, the other one
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

from benchmarks.harness import markdown
from benchmarks.problems import PROBLEMS, Problem
from examples.batches import shuffled
from keras_uncertainty_mtl import Categorical, MultiTaskModel
from keras_uncertainty_mtl.reliability import central_mass

LEVEL, DRAWS, SEEDS = 0.95, 34, 3
# The tasks of each problem. The first one, a regression, has a twin with a σ for each element.
TASKS = {
    "digits": ("ink", "image", "class"),
    "diamonds": ("price", "carat", "cut"),
    "flights": ("arr_delay", "air_time", "maker"),
}
Arrays = dict[str, Any]


def trained(
    problem: Problem, of_problem: tuple[str, ...], seed: int
) -> tuple[MultiTaskModel, Arrays, Arrays]:
    """A trained network, its predictions for the data it has not seen, and their targets."""
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
    return model, {task: predictions[task] for task in targets}, targets


def of_predictions(model: MultiTaskModel, predictions: Arrays) -> MultiTaskModel:
    """A model whose inputs are the predictions, because a hundred draws need no network."""
    inputs = {
        task: keras.Input(values.shape[1:], name=task) for task, values in predictions.items()
    }
    outputs = {task: keras.layers.Activation("linear")(x) for task, x in inputs.items()}
    tasks = {task: model.weighting.tasks[task] for task in outputs}
    fast = MultiTaskModel(inputs, outputs, tasks)
    fast.compile(run_eagerly=True)
    return fast


def intervals_of_crepes(
    center: Any, sigma: Any, target: Any, calibrates: Any, tests: Any
) -> tuple[float, float]:
    """Coverage and mean width of crepes's intervals."""
    center, sigma, target = (
        [np.ravel(values[part]) for part in (calibrates, tests)]
        for values in (center, sigma, target)
    )
    regressor = ConformalRegressor().fit(target[0] - center[0], sigmas=sigma[0])
    ends = regressor.predict_int(center[1], sigmas=sigma[1], confidence=LEVEL)
    inside = (ends[:, 0] <= target[1]) & (target[1] <= ends[:, 1])
    return float(np.mean(inside)), float(np.mean(np.diff(ends)))


def sets_of_crepes(p: Any, label: Any, calibrates: Any, tests: Any) -> tuple[float, float]:
    """Coverage and mean size of crepes's sets from one minus the probability."""
    own = np.take_along_axis(p, label[:, None], axis=1)[:, 0]
    classifier = ConformalClassifier().fit(1 - own[calibrates])
    sets = classifier.predict_set(1 - p[tests], confidence=LEVEL, smoothing=False)
    inside = np.take_along_axis(sets, label[tests][:, None], axis=1)
    return float(np.mean(inside)), float(np.mean(sets.sum(axis=1)))


def of_sigma(answers: Arrays, task: str, target: Any) -> float:
    """Coverage of the intervals that the likelihood itself has, at its calibrated σ."""
    kind = "gaussian" if f"{task}_mean" in answers else "laplace"
    names = ("mean", "standard_deviation") if kind == "gaussian" else ("location", "scale")
    location, scale = (np.asarray(answers[f"{task}_{name}"]) for name in names)
    mass = central_mass(target.reshape(location.shape), location, scale, kind)
    return float(np.mean(mass <= LEVEL))


def one_draw(
    model: MultiTaskModel, predictions: Arrays, targets: Arrays, calibrates: Any, tests: Any
) -> dict[str, tuple[float, ...]]:
    """Coverage and size by task: this package's, crepes's, and coverage of the likelihood's σ."""
    predicted = [{t: p[part] for t, p in predictions.items()} for part in (calibrates, tests)]
    model.weighting.set_log_variances(dict.fromkeys(targets, 0.0))
    model.calibrate(
        predicted[0],
        {task: target[calibrates] for task, target in targets.items()},
        batch_size=len(calibrates),
        intervals=LEVEL,
        verbose=0,
    )
    answers = {name: np.asarray(a) for name, a in model.predictive_model()(predicted[1]).items()}
    results: dict[str, tuple[float, ...]] = {}
    for task, target in targets.items():
        if isinstance(model.weighting.tasks[task], Categorical):
            # The temperature that was trained is in the logits.
            logits = predictions[task].astype("float64")
            p = np.exp(logits - logits.max(axis=1, keepdims=True))
            p /= p.sum(axis=1, keepdims=True)
            inside = np.take_along_axis(answers[f"{task}_set"], target[tests][:, None], axis=1)
            size = np.mean(answers[f"{task}_set"].sum(axis=1))
            theirs, sigma = sets_of_crepes(p, target, calibrates, tests), np.nan
        else:
            lower, upper = answers[f"{task}_lower"], answers[f"{task}_upper"]
            shaped = target[tests].reshape(lower.shape)
            inside, size = (lower <= shaped) & (shaped <= upper), np.mean(upper - lower)
            center, noise = predictions[task], np.ones_like(predictions[task])
            if model.weighting.tasks[task].heteroscedastic:
                center, noise = center[:, :1], np.exp(0.5 * center[:, 1:])
            shape = center.shape
            theirs = intervals_of_crepes(center, noise, target.reshape(shape), calibrates, tests)
            sigma = of_sigma(answers, task, target[tests])
        results[task] = (float(np.mean(inside)), float(size), *theirs, sigma)
    return results


def run(name: str, seed: int) -> list[dict[str, Any]]:
    """Trains a network, and returns a row a task over all draws."""
    model, predictions, targets = trained(PROBLEMS[name](), TASKS[name], seed)
    fast = of_predictions(model, predictions)
    size = len(next(iter(predictions.values())))
    rng = np.random.default_rng(seed)
    draws = []
    for _ in range(DRAWS):
        order = rng.permutation(size)
        halves = order[: size // 2], order[size // 2 :]
        draws.append(one_draw(fast, predictions, targets, *halves))
    rows = []
    for task in targets:
        coverage, own_size, theirs, their_size, sigma = np.array([draw[task] for draw in draws]).T
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
    header = ["problem", "task", "coverage, %", "sd of a draw", "crepes, %", "width or set size"]
    header += ["over crepes's", "σ alone, %"]
    rows = []
    for (problem, task), group in table.groupby(["problem", "task"], sort=False):
        mean, sd = group.mean(numeric_only=True), group.std(numeric_only=True)
        sigma = mean["coverage of σ"]
        rows.append(
            [
                problem,
                task,
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
        f"deviation of {table.seed.nunique()} networks, {DRAWS} draws each.\n\n"
        + markdown(header, rows)
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
