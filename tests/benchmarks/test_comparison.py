"""A short run measures its tasks, and is not run again."""

import argparse
import dataclasses

import keras
import numpy as np
import pandas as pd
import pytest

from benchmarks import comparison
from benchmarks.candidates import HEADLINE, METHODS, methods_for
from benchmarks.problems import PROBLEMS

pytestmark = pytest.mark.backends("tensorflow", reason="the benchmarks run on TensorFlow")


@pytest.mark.parametrize(
    ("method", "tasks"),
    [
        ("single ink", ["ink"]),
        ("this package", ["class", "image", "ink"]),
        ("FAMO", ["class", "image", "ink"]),
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


def test_every_method_starts_from_the_same_network():
    problem = PROBLEMS["tumours"]()
    data = problem.load(0)
    predictions = {}
    for name, make in methods_for(problem).items():
        model = make(problem, data, problem.build(data.train, 0), 0)
        answered = model(data.test.inputs[:4])
        for task, prediction in answered.items():
            # The package's exact form is at σ = 1, so its logits are the network's own.
            expected = predictions.setdefault(task, prediction)
            np.testing.assert_array_equal(prediction, expected, err_msg=name)
    assert list(predictions) == list(problem.tasks)


def test_a_missing_label_of_the_test_counts_in_no_metric():
    problem = PROBLEMS["weather"]()
    part = problem.load(0).test
    inputs, outputs = keras.Input((18,)), {}
    for task in problem.tasks:
        outputs[task] = keras.layers.Dense(1, kernel_initializer="zeros")(inputs)
    values = comparison.judge(keras.Model(inputs, outputs), problem, part)
    gusts = part.targets["wind_gust"]
    assert np.isnan(gusts).mean() > 0.5
    assert values["wind_gust"] == pytest.approx(np.sqrt(np.nanmean(gusts**2)), rel=1e-4)


def test_only_missing_runs_are_run_and_the_headline_comes_first(tmp_path):
    file = tmp_path / "comparison.csv"
    finished = ("digits", "STCH", 1)
    pd.DataFrame([finished], columns=["problem", "method", "seed"]).to_csv(file, index=False)
    names = ["digits", "counts"]
    options = argparse.Namespace(problem=names, method=None, seeds=2)
    runs = comparison.missing_runs(options, file)
    wanted = {
        (name, method, seed)
        for name in names
        for method in methods_for(PROBLEMS[name]())
        for seed in range(2)
    }
    assert len(runs) == len(set(runs))
    assert set(runs) == wanted - {finished}
    is_rest = [method in list(METHODS)[HEADLINE:] for _, method, _ in runs]
    assert is_rest == sorted(is_rest)
