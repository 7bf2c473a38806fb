"""Problems have the data that they say: disjoint parts, missing labels, noise, counts, grades."""

import numpy as np
import pytest
from sklearn.linear_model import LinearRegression
from sklearn.metrics import mean_poisson_deviance

from benchmarks.problems import PROBLEMS
from keras_uncertainty_mtl import Gibbs

pytestmark = pytest.mark.backends("tensorflow", reason="the benchmarks run on TensorFlow")

NAMES = [name for name in PROBLEMS if name != "scenes"]  # Those of the streets need a data set.


@pytest.mark.parametrize("name", NAMES)
def test_a_seed_draws_its_own_parts_and_always_the_same(name):
    problem = PROBLEMS[name]()
    first, again, other = (problem.load(seed) for seed in (3, 3, 4))
    for part in ("train", "validation", "test"):
        inputs, targets = getattr(first, part)
        np.testing.assert_array_equal(inputs, getattr(again, part).inputs)
        assert np.any(inputs != getattr(other, part).inputs)
        assert np.all(np.isfinite(inputs))
        assert inputs.dtype == "float32"
        for task in problem.tasks:
            np.testing.assert_array_equal(targets[task], getattr(again, part).targets[task])
            assert len(targets[task]) == len(inputs)


@pytest.mark.parametrize("name", NAMES)
def test_no_row_is_in_two_parts(name):
    data = PROBLEMS[name]().load(0)
    rows = [
        {row.tobytes() for row in np.reshape(part.inputs, (len(part.inputs), -1))}
        for part in (data.train, data.validation, data.test)
    ]
    # Some stones and flights of a table have equal inputs.
    shared = len(rows[0] & rows[2]) + len(rows[1] & rows[2])
    assert shared < 0.03 * len(rows[2])


@pytest.mark.parametrize("name", NAMES)
def test_heads_start_in_the_units_of_their_targets(name):
    problem = PROBLEMS[name]()
    train = problem.load(0).train
    network = problem.build(train, 0)
    predictions = network(train.inputs[:200])
    assert list(predictions) == list(problem.tasks)
    for task in problem.tasks:
        if not problem.is_score(task):
            target = train.targets[task]
            off = np.abs(np.mean(predictions[task]) - np.nanmean(target)) / np.nanstd(target)
            assert off < 1.0, task


def test_labels_are_missing_in_training_alone():
    data = PROBLEMS["weather"]().load(0)
    for task, values in data.train.targets.items():
        natural = np.isnan(data.test.targets[task]).mean()
        assert natural < 0.01 or task in ("pressure", "wind_gust")
        expected = 1 - 0.7 * (1 - natural)
        assert np.isnan(values).mean() == pytest.approx(expected, abs=0.03), task


def test_the_weather_to_predict_is_not_among_the_inputs():
    train, _, test = vars(PROBLEMS["weather"]().load(0)).values()
    for task in ("temp", "dewp", "pressure"):
        known = np.isfinite(train.targets[task])
        fitted = LinearRegression().fit(train.inputs[known], train.targets[task][known])
        known = np.isfinite(test.targets[task])
        explained = fitted.score(test.inputs[known], test.targets[task][known])
        assert 0.3 < explained < 0.95, task


def test_noise_has_nothing_to_do_with_the_inputs_and_is_not_judged():
    noise, flights = PROBLEMS["noise"](), PROBLEMS["flights"]()
    assert list(noise.metrics()) == list(flights.tasks)
    train, _, test = vars(noise.load(0)).values()
    np.testing.assert_array_equal(train.inputs, flights.load(0).train.inputs)
    for task in noise.tasks.keys() - flights.tasks.keys():
        fitted = LinearRegression().fit(train.inputs, train.targets[task])
        assert abs(fitted.score(test.inputs, test.targets[task])) < 0.02, task


def test_late_and_cancelled_flights_are_some_of_all():
    targets = PROBLEMS["counts"]().load(0).train.targets
    for task, values in targets.items():
        np.testing.assert_array_equal(values, np.round(values))
        assert values.min() >= 0
        assert task == "flights" or np.all(values <= targets["flights"])
    assert np.all(targets["late"] + targets["cancelled"] <= targets["flights"])


def test_a_better_grade_includes_the_lower_ones():
    problem = PROBLEMS["grades"]()
    targets = problem.load(0).train.targets
    assert len(problem.tasks) == 14
    for task, values in targets.items():
        assert set(np.unique(values)) == {0.0, 1.0}
        name, grade = task.split("_")
        higher = targets.get(f"{name}_{int(grade) + 1}")
        assert higher is None or np.all(higher <= values)


def test_ink_is_the_sum_of_the_image():
    targets = PROBLEMS["digits"]().load(0).test.targets
    np.testing.assert_allclose(targets["ink"], targets["image"].sum(axis=(1, 2, 3)))


def test_the_metric_of_counts_is_half_of_the_deviance():
    rng = np.random.default_rng(0)
    counts, rates = rng.poisson(2, size=(50, 1)), rng.gamma(2, size=(50, 1))
    problem = PROBLEMS["counts"]()
    assert all(isinstance(likelihood, Gibbs) for likelihood in problem.tasks.values())
    metric = problem.metrics()["late"]
    metric.update_state(counts[:, 0].astype("float32"), rates.astype("float32"))
    expected = mean_poisson_deviance(counts[:, 0], rates[:, 0]) / 2
    assert float(metric.result()) == pytest.approx(expected, rel=1e-4)
