"""Test metrics of uncertainty weighting and its alternatives on real problems.

    python -m benchmarks.comparison

Δm is the mean relative improvement of the tasks' metrics over single-task networks. A random
search finds fixed weights, and a grid finds UW-SO's temperature. Validation data choose among
them by Δm; all tables are of test data.

Every finished run adds a row a task to `results/comparison.csv`, and is not run again. With
`--report` nothing is run, and the tables are made from the finished runs.
"""

from __future__ import annotations

import argparse
import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd

from benchmarks import methods
from benchmarks.harness import markdown, one_thread_pool
from benchmarks.problems import PROBLEMS, Data, Problem, Split
from examples.batches import shuffled
from keras_uncertainty_mtl import Categorical, Likelihood, MultiTaskModel, UncertaintyWeighting

Weighting = Callable[[Problem, Data, int], UncertaintyWeighting]
# Problem, method and seed.
Run = tuple[str, str, int]

SINGLE = "single "
FIXED = "fixed weights "
SOFTMAX = "UW-SO, temperature "
FIXED_WEIGHTINGS = 16
# Largest distance of a random weight from that of standardised targets, in powers of ten.
DECADES = 1.25
TEMPERATURES = (1, 10, 100)
DEFAULT = "this package"


def single(task: str, problem: Problem, data: Data, seed: int) -> UncertaintyWeighting:
    return methods.FixedWeights({task: problem.tasks[task]})


def equal_weights(problem: Problem, data: Data, seed: int) -> UncertaintyWeighting:
    return methods.FixedWeights(problem.tasks)


def fixed_weights(index: int, problem: Problem, data: Data, seed: int) -> UncertaintyWeighting:
    """Index 0 stands for standardised targets; any other index is one draw for all seeds."""
    weights = methods.units(problem.tasks, data.train.targets)
    if index:
        draws = np.random.default_rng(index).uniform(-DECADES, DECADES, len(weights))
        weights = {
            task: weight * 10.0**draw
            for (task, weight), draw in zip(weights.items(), draws, strict=True)
        }
    return methods.FixedWeights(problem.tasks, loss_weights=weights)


def softmax_uncertainty(
    temperature: float, problem: Problem, data: Data, seed: int
) -> UncertaintyWeighting:
    return methods.SoftmaxUncertainty(problem.tasks, temperature)


def dynamic_weight_average(problem: Problem, data: Data, seed: int) -> UncertaintyWeighting:
    return methods.DynamicWeightAverage(problem.tasks, steps_per_epoch(problem, data))


def random_weights(problem: Problem, data: Data, seed: int) -> UncertaintyWeighting:
    return methods.RandomWeights(problem.tasks, seed)


def default(problem: Problem, data: Data, seed: int) -> UncertaintyWeighting:
    return UncertaintyWeighting(problem.tasks)


def closed_form(problem: Problem, data: Data, seed: int) -> UncertaintyWeighting:
    return UncertaintyWeighting(problem.tasks, update="closed_form")


def approximate(problem: Problem, data: Data, seed: int) -> UncertaintyWeighting:
    def approximated(likelihood: Likelihood) -> Likelihood:
        if not isinstance(likelihood, Categorical):
            return likelihood
        return Categorical.from_config({**likelihood.get_config(), "approximate": True})

    return UncertaintyWeighting(
        {task: approximated(likelihood) for task, likelihood in problem.tasks.items()}
    )


def rule(rule: type[methods.Rule], problem: Problem, data: Data, seed: int) -> UncertaintyWeighting:
    return rule(problem.tasks)


METHODS: dict[str, Weighting] = {
    DEFAULT: default,
    "…approximate=True": approximate,
    '…update="closed_form"': closed_form,
    "equal weights": equal_weights,
    "plain Eq. 10": functools.partial(rule, methods.PlainUncertainty),
    "positive regulariser": functools.partial(rule, methods.PositiveRegulariser),
    "UW-O": functools.partial(rule, methods.AnalyticalUncertainty),
    **{f"{SOFTMAX}{t}": functools.partial(softmax_uncertainty, t) for t in TEMPERATURES},
    "dynamic weight average": dynamic_weight_average,
    "random weights": random_weights,
    **{f"{FIXED}{i}": functools.partial(fixed_weights, i) for i in range(FIXED_WEIGHTINGS)},
}


def methods_for(problem: Problem) -> dict[str, Weighting]:
    """Returns all methods, with a single-task network for every task."""
    return {f"{SINGLE}{task}": functools.partial(single, task) for task in problem.tasks} | METHODS


def run(key: Run) -> list[dict[str, Any]]:
    """Trains once, and returns a row for every task."""
    name, method, seed = key
    started = time.monotonic()
    problem = PROBLEMS[name]()
    data = problem.load(seed)
    network = problem.build(data.train, seed)
    weighting = methods_for(problem)[method](problem, data, seed)
    outputs = {task: network.output[task] for task in weighting.tasks}
    model = MultiTaskModel(network.input, outputs, weighting)
    steps = steps_per_epoch(problem, data)
    rate = keras.optimizers.schedules.CosineDecay(problem.learning_rate, steps * problem.epochs)
    model.compile(keras.optimizers.Adam(rate), steps_per_execution=steps)
    targets = {task: data.train.targets[task] for task in outputs}
    batches = shuffled(data.train.inputs, targets, problem.batch_size, seed)
    model.fit(batches, epochs=problem.epochs, shuffle=False, verbose=0)
    validation, test = (judge(model, problem, part) for part in (data.validation, data.test))
    seconds = round(time.monotonic() - started, 1)
    keras.backend.clear_session()
    return [
        {
            "problem": name,
            "method": method,
            "seed": seed,
            "task": task,
            "validation": validation[task],
            "test": test[task],
            "seconds": seconds,
        }
        for task in outputs
    ]


def steps_per_epoch(problem: Problem, data: Data) -> int:
    return -(-len(data.train.inputs) // problem.batch_size)


def judge(model: keras.Model, problem: Problem, part: Split) -> dict[str, float]:
    """Returns the metric of every task of the model."""
    predictions = model.predict(part.inputs, batch_size=200, verbose=0)
    values = {}
    for task, metric in problem.metrics().items():
        if task in predictions:
            metric.update_state(part.targets[task], predictions[task])
            values[task] = float(metric.result())
    return values


def relative_change(rows: pd.DataFrame) -> pd.DataFrame:
    """Returns Δm in percent, by problem, method and seed."""
    rows = rows.copy()
    is_single = rows["method"].str.startswith(SINGLE)
    keys = ["problem", "seed", "task"]
    single = rows[is_single].set_index(keys)[["validation", "test"]].add_suffix("_single")
    rows = rows[~is_single].join(single, on=keys)
    sign = np.array(
        [
            1 if PROBLEMS[problem]().is_score(task) else -1
            for problem, task in zip(rows["problem"], rows["task"], strict=True)
        ]
    )
    for part in ("validation", "test"):
        rows[part] = 100 * sign * (rows[part] / rows[f"{part}_single"] - 1)
    return rows.groupby(["problem", "method", "seed"])[["validation", "test"]].mean()


def chosen(changes: pd.DataFrame) -> dict[tuple[str, str], str]:
    """Returns the methods to show, a search only once: `{(problem, shown name): method}`."""
    means = changes["validation"].groupby(["problem", "method"]).mean()
    best: dict[tuple[str, str], str] = {}
    for problem, method in means.sort_values(ascending=False).index:
        for prefix, shown in {FIXED: "best fixed weights", SOFTMAX: "UW-SO"}.items():
            if method.startswith(prefix):
                best.setdefault((problem, shown), method)
                break
        else:
            best[problem, method] = method
    return best


def report(results: Path) -> str:
    """Returns Markdown tables: Δm of every method, then the metrics of every problem."""
    rows = pd.read_csv(results / "comparison.csv")
    changes = relative_change(rows)
    names = chosen(changes)
    shown = [
        "best fixed weights",
        "UW-SO",
        *(method for method in METHODS if not method.startswith((FIXED, SOFTMAX))),
    ]
    problems = [problem for problem in PROBLEMS if problem in set(rows["problem"])]

    summary = []
    for method in shown:
        tests = [
            changes.loc[(problem, names[problem, method]), "test"]
            for problem in problems
            if (problem, method) in names
        ]
        if len(tests) == len(problems):
            cells = [f"{test.mean():+.1f} ± {test.std():.1f}" for test in tests]
            mean = float(np.mean([test.mean() for test in tests]))
            summary.append((mean, [method, *cells, f"{mean:+.1f}"]))
    summary.sort(key=lambda row: -row[0])
    tables = [
        markdown(["Δm, %", *problems, "mean"], [cells for _, cells in summary]),
    ]

    for problem in problems:
        tasks = list(PROBLEMS[problem]().tasks)
        of_problem = rows[rows["problem"] == problem]
        single = of_problem[of_problem["method"].str.startswith(SINGLE)]
        lines = [["a network a task", *metrics(single, tasks)]]
        for _, (method, *_) in summary:
            of_method = of_problem[of_problem["method"] == names[problem, method]]
            lines.append([method, *metrics(of_method, tasks)])
        tables.append(f"### {problem}\n\n" + markdown(["", *tasks], lines))
    return "\n".join(tables)


def metrics(rows: pd.DataFrame, tasks: list[str]) -> list[str]:
    values = rows.groupby("task")["test"]
    return [f"{values.mean()[task]:.4g} ± {values.std()[task]:.2g}" for task in tasks]


def main() -> None:
    """Runs the missing runs; prints and writes the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--problem", choices=PROBLEMS, action="append", help="only these")
    parser.add_argument("--method", action="append", help="only these")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--report", action="store_true", help="run nothing")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()

    arguments.results.mkdir(parents=True, exist_ok=True)
    file = arguments.results / "comparison.csv"
    if not arguments.report:
        finished = set()
        if file.exists():
            finished = set(pd.read_csv(file)[["problem", "method", "seed"]].itertuples(index=False))
        missing = [
            key
            for seed in range(arguments.seeds)
            for name in arguments.problem or PROBLEMS
            for method in arguments.method or methods_for(PROBLEMS[name]())
            if (key := (name, method, seed)) not in finished
        ]
        for name in {name for name, _, _ in missing}:
            PROBLEMS[name]().load(0)  # Two workers must not make the same data at once.
        run_all(missing, file, arguments.workers)
    tables = report(arguments.results)
    (arguments.results / "comparison.md").write_text(tables, encoding="utf-8")
    print(tables)


def run_all(missing: list[Run], file: Path, workers: int) -> None:
    started = time.monotonic()
    with one_thread_pool(workers) as pool:
        for done, rows in enumerate(pool.imap_unordered(run, missing), start=1):
            pd.DataFrame(rows).to_csv(file, mode="a", header=not file.exists(), index=False)
            left = (time.monotonic() - started) / done * (len(missing) - done)
            finished = rows[0]["problem"], rows[0]["method"], rows[0]["seed"]
            print(f"{done}/{len(missing)}, {left / 60:.0f} min left: {finished}", flush=True)


if __name__ == "__main__":
    main()
