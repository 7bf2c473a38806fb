"""Δm and the choice of methods, from rows by hand, and a short run of each method."""

import dataclasses

import numpy as np
import pandas as pd
import pytest

from benchmarks import comparison
from benchmarks.problems import PROBLEMS

pytestmark = pytest.mark.backends("tensorflow", reason="the benchmarks run on TensorFlow")


def rows():
    """Flights with four tasks: an error halved is +50%, an accuracy halved is -50%."""

    def of(method, seed, **tests):
        tasks = {"air_time": 10.0, "arr_delay": 20.0, "seats": 40.0, "maker": 0.8} | tests
        return [
            {
                "problem": "flights",
                "method": method,
                "seed": seed,
                "task": task,
                "validation": value,
                "test": value,
            }
            for task, value in tasks.items()
        ]

    singles = [dict(row, method=f"single {row['task']}") for seed in (0, 1) for row in of("", seed)]
    return pd.DataFrame(
        [
            *singles,
            *of("fixed weights 0", 0, air_time=5.0),
            *of("fixed weights 0", 1, air_time=5.0),
            *of("fixed weights 1", 0, maker=0.4),
            *of("fixed weights 1", 1, maker=0.4),
            *of("this package", 0, air_time=5.0, maker=0.4),
            *of("this package", 1, seats=20.0, arr_delay=25.0),
        ]
    )


def test_relative_change_to_the_network_for_a_task_alone():
    changes = comparison.relative_change(rows())["test"]
    assert changes["flights", "fixed weights 0", 0] == pytest.approx(50 / 4)
    assert changes["flights", "fixed weights 1", 1] == pytest.approx(-50 / 4)
    assert changes["flights", "this package", 0] == pytest.approx(0)
    assert changes["flights", "this package", 1] == pytest.approx((50 - 25) / 4)


def test_the_best_of_a_search_is_that_on_validation_data():
    table = rows()
    searched = table["method"].str.startswith("fixed")
    names = comparison.chosen(comparison.relative_change(table))
    assert names["flights", "best fixed weights"] == "fixed weights 0"
    table.loc[searched, "test"] = 0.1  # test metrics must not matter
    assert comparison.chosen(comparison.relative_change(table)) == names
    assert names["flights", "this package"] == "this package"


@pytest.mark.parametrize(
    ("method", "tasks"),
    [
        ("single ink", ["ink"]),
        ("this package", ["class", "image", "ink"]),
        ("dynamic weight average", ["class", "image", "ink"]),
    ],
)
def test_a_run_measures_each_of_its_tasks(monkeypatch, method, tasks):
    digits = dataclasses.replace(PROBLEMS["digits"](), epochs=2)
    monkeypatch.setitem(PROBLEMS, "digits", lambda: digits)
    measured = comparison.run(("digits", method, 0))
    assert [row["task"] for row in measured] == tasks
    for row in measured:
        (x, y), task = digits.load(0).test, row["task"]
        # The model beats a constant prediction.
        if task == "class":
            assert 0.15 < row["test"] < 1
        else:
            errors = np.abs(y[task] - y[task].mean())
            guess = np.sqrt(np.mean(errors**2)) if task == "image" else errors.mean()
            assert 0 < row["test"] < guess
        assert len(x) == 360
        assert row["validation"] == pytest.approx(row["test"], rel=0.5)
