"""Test metrics of uncertainty weighting and its rivals on problems of several kinds.

    nice python -m benchmarks.comparison --workers 1

Each run trains the same network from the same start, with the same batches, and one Adam whose rate
decays along a cosine. Each run adds a row a judged task to `results/comparison.csv`, and is not run
again. With `--report` nothing is run, and the tables are made from the finished runs.
"""

from __future__ import annotations

import argparse
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd
import tensorflow as tf

from benchmarks.candidates import (
    ALTERNATIVES,
    HEADLINE,
    METHODS,
    methods_for,
    steps_per_epoch,
)
from benchmarks.harness import one_thread_pool
from benchmarks.problems import PROBLEMS, Problem, Split
from benchmarks.report import report
from examples.batches import shuffled

# Problem, method and seed.
Run = tuple[str, str, int]


def run(key: Run) -> list[dict[str, Any]]:
    """Trains once, and returns a row for every judged task."""
    name, method, seed = key
    problem = PROBLEMS[name]()
    data = problem.load(seed)
    started = time.monotonic()
    network = problem.build(data.train, seed)
    make = (methods_for(problem) | ALTERNATIVES)[method]
    model = make(problem, data, network, seed)
    tasks = list(model.output)
    steps = steps_per_epoch(problem, data)
    rate = keras.optimizers.schedules.CosineDecay(problem.learning_rate, steps * problem.epochs)
    model.compile(keras.optimizers.Adam(rate), steps_per_execution=steps)
    targets = {task: data.train.targets[task] for task in tasks}
    batches = shuffled(data.train.inputs, targets, problem.batch_size, seed)
    model.fit(batches, epochs=problem.epochs, shuffle=False, verbose=0)
    seconds = round(time.monotonic() - started, 1)
    validation, test = (judge(model, problem, part) for part in (data.validation, data.test))
    keras.backend.clear_session()
    run_on = provenance()
    return [
        {
            "problem": name,
            "method": method,
            "seed": seed,
            "task": task,
            "validation": validation[task],
            "test": test[task],
            "seconds": seconds,
            **run_on,
        }
        for task in test
    ]


def judge(model: keras.Model, problem: Problem, part: Split) -> dict[str, float]:
    """Returns the metric of every judged task of the model, over the labels that there are."""
    predictions = model.predict(part.inputs, batch_size=1000, verbose=0)
    values = {}
    for task, metric in problem.metrics().items():
        if task in predictions:
            target, prediction = part.targets[task], predictions[task]
            if target.ndim == 1:
                has_label = ~np.isnan(target)
                target, prediction = target[has_label], prediction[has_label]
            metric.update_state(target, prediction)
            values[task] = float(metric.result())
    return values


def provenance() -> dict[str, str]:
    """The commit, versions and machine of a run."""
    root = Path(__file__).parents[1]
    commit = subprocess.run(
        ["git", "log", "-1", "--format=%h"], cwd=root, capture_output=True, text=True, check=False
    )
    return {
        "commit": commit.stdout.strip() or "unknown",
        "versions": f"TensorFlow {tf.__version__}, Keras {keras.__version__}",
        "machine": f"{platform.system()} {platform.machine()}, 1 core a run",
    }


def missing_runs(arguments: argparse.Namespace, file: Path) -> list[Run]:
    """The runs that the file lacks: the headline of each problem first, and then the rest."""
    finished = set()
    if file.exists():
        finished = set(pd.read_csv(file)[["problem", "method", "seed"]].itertuples(index=False))
    parts: tuple[list[Run], list[Run]] = [], []
    rest = list(METHODS)[HEADLINE:]
    for name in arguments.problem or PROBLEMS:
        problem = PROBLEMS[name]()
        for seed in range(arguments.seeds or problem.seeds):
            for method in arguments.method or methods_for(problem):
                if (name, method, seed) not in finished:
                    parts[method in rest].append((name, method, seed))
    return parts[0] + parts[1]


def run_all(missing: list[Run], file: Path, workers: int) -> None:
    for name in {name for name, _, _ in missing}:
        PROBLEMS[name]().load(0)  # Two workers must not make the same data at once.
    started = time.monotonic()
    with one_thread_pool(workers) as pool:
        for done, rows in enumerate(pool.imap_unordered(run, missing), start=1):
            pd.DataFrame(rows).to_csv(file, mode="a", header=not file.exists(), index=False)
            left = (time.monotonic() - started) / done * (len(missing) - done)
            finished = rows[0]["problem"], rows[0]["method"], rows[0]["seed"], rows[0]["seconds"]
            print(f"{done}/{len(missing)}, {left / 60:.0f} min left: {finished}", flush=True)


def main() -> None:
    """Runs the missing runs; prints and writes the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--problem", choices=PROBLEMS, action="append", help="only these")
    parser.add_argument("--method", action="append", help="only these")
    parser.add_argument("--seeds", type=int, help="seeds a problem (its own number: 5 or 3)")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--report", action="store_true", help="run nothing")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()

    arguments.results.mkdir(parents=True, exist_ok=True)
    file = arguments.results / "comparison.csv"
    if not arguments.report:
        run_all(missing_runs(arguments, file), file, arguments.workers)
    rows = pd.read_csv(file)
    if arguments.seeds:
        rows = rows[rows["seed"] < arguments.seeds]
    tables = report(rows)
    (arguments.results / "comparison.md").write_text(tables, encoding="utf-8")
    print(tables)


if __name__ == "__main__":
    main()
