"""Δm, ranks, searches and intervals of the comparison's tables, from rows by hand."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from benchmarks import report
from benchmarks.candidates import METHODS, SEARCHES, methods_for
from benchmarks.problems import PROBLEMS

pytestmark = pytest.mark.backends("tensorflow", reason="the benchmarks run on TensorFlow")

BASE = {"air_time": 10.0, "arr_delay": 20.0, "seats": 40.0, "maker": 0.8}
FIXED, SOFTMAX = SEARCHES


def rows(problem="flights", seeds=(0, 1), **of_methods):
    """A row for every task, seed and method: those of `BASE` but where a method's own differ."""
    kinds = {f"single {task}": {task: value} for task, value in BASE.items()}
    kinds |= {method: BASE | own for method, own in of_methods.items()}
    return pd.DataFrame(
        [
            {
                "problem": problem,
                "method": method,
                "seed": seed,
                "task": task,
                "validation": value,
                "test": value,
                "seconds": 3.0,
                "commit": "abc",
                "versions": "Keras 1",
                "machine": "one core",
            }
            for method, values in kinds.items()
            for seed in seeds
            for task, value in values.items()
        ]
    )


def changes(table):
    return report.table_of(report.with_searches(report.relative_gains(table)))


def test_an_error_halved_is_a_gain_and_an_accuracy_halved_a_loss():
    table = rows(STCH={"air_time": 5.0}, GLS={"maker": 0.4}, FAMO={"seats": 20.0, "arr_delay": 25})
    gains = changes(table).loc[("flights", 0)]
    assert gains["STCH"] == pytest.approx(50 / 4)
    assert gains["GLS"] == pytest.approx(-50 / 4)
    assert gains["FAMO"] == pytest.approx((50 - 25) / 4)


def test_a_search_is_its_best_member_on_validation_data():
    members = SEARCHES[FIXED]
    table = rows(**{member: {"air_time": 12.0 - 0.1 * i} for i, member in enumerate(members)})
    is_last = table["method"] == members[-1]
    assert changes(table)[FIXED].tolist() == pytest.approx([-9 / 4] * 2)
    table.loc[is_last, "test"] *= 2  # Test metrics choose nothing.
    assert changes(table)[FIXED].iloc[0] < -50


def test_a_search_waits_for_the_last_seed_of_its_last_member():
    members = SEARCHES[SOFTMAX]
    table = rows(**{member: {} for member in members})
    is_last = (table["method"] == members[-1]) & (table["seed"] == 1)
    assert SOFTMAX in changes(table)
    assert SOFTMAX not in changes(table[~is_last])


def test_a_method_counts_where_it_has_all_seeds():
    table = rows(STCH={}, GLS={})
    table = table[(table["method"] != "GLS") | (table["seed"] == 0)]
    found = changes(table)
    assert found["STCH"].notna().all()
    assert found["GLS"].isna().all()


def test_a_seed_counts_once_its_headline_is_finished_and_a_problem_with_three_of_them():
    headline = {method: {} for method in list(METHODS)[: report.HEADLINE]}
    table = rows(seeds=range(5), **headline, GLS={})
    for method, counts in {"single maker": False, "STCH": False, "GLS": True}.items():
        lacks = (table["method"] == method) & (table["seed"] == 2)
        assert set(report.counted(table[~lacks])["seed"]) == {0, 1, 3, 4} | (
            {2} if counts else set()
        )
        lacks = (table["method"] == method) & (table["seed"] >= 2)
        assert report.counted(table[~lacks]).empty != counts


def test_the_interval_of_equal_differences_is_that_difference():
    index = pd.MultiIndex.from_product([["a", "b"], range(3)], names=["problem", "seed"])
    assert report.paired_interval(pd.Series(2.0, index)) == (2.0, 2.0, 2.0)


def test_the_interval_of_many_seeds_is_that_of_the_normal_distribution():
    draws = np.random.default_rng(0).normal(1.0, 3.0, size=400)
    index = pd.MultiIndex.from_product([["a"], range(400)], names=["problem", "seed"])
    mean, low, high = report.paired_interval(pd.Series(draws, index))
    assert mean == pytest.approx(draws.mean())
    error = stats.sem(draws)
    assert [low, high] == pytest.approx([mean - 1.96 * error, mean + 1.96 * error], abs=0.1 * error)


def test_the_interval_spans_problems_and_not_only_seeds():
    index = pd.MultiIndex.from_product([["a", "b"], range(50)], names=["problem", "seed"])
    values = pd.Series(np.repeat([0.0, 10.0], 50), index)
    assert report.paired_interval(values) == (5.0, 0.0, 10.0)


def test_problems_count_alike_whatever_their_number_of_seeds():
    index = pd.MultiIndex.from_tuples(
        [("a", 0), ("a", 1), ("a", 2), ("b", 0)], names=["problem", "seed"]
    )
    values = pd.Series([0.0, 0.0, 0.0, 10.0], index)
    assert report.by_problem(values) == report.paired_interval(values)[0] == 5.0


def test_tables_name_what_is_finished():
    headline = {method: {} for method in list(METHODS)[: report.HEADLINE]}
    whole = headline | {"this package": {"air_time": 5.0}}
    table = pd.concat([rows(seeds=range(5), **whole), rows("noise", range(2), **whole)])
    text = report.report(table)
    assert "Seeds that count: flights 5.\n" in text
    assert "left out: digits, tumours, diamonds, noise," in text
    total = sum(len(methods_for(make())) * make().seeds for make in PROBLEMS.values())
    assert f"{7 * 11} of {total} runs are finished" in text
    assert "| this package | +12.50 | 1.0 | +12.5 ± 0.0 |" in text
    assert "| STCH | +12.50 [+12.50, +12.50] | +3.50 [+3.50, +3.50] | +0.00 |" in text
    assert "| this package | 1.0 | 5 ± 0 | 20 ± 0 | 40 ± 0 | 0.8 ± 0 |" in text
