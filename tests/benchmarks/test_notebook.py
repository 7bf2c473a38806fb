"""The notebook's loss and data are those of its author, and σ stands beside the right numbers."""

import keras
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from scipy import stats

from benchmarks import notebook
from keras_uncertainty_mtl import Gaussian

pytestmark = pytest.mark.backends("tensorflow", reason="the benchmarks run on TensorFlow")


def test_the_loss_is_twice_the_gaussian_likelihood_without_its_constant():
    network = notebook.network("relu", notebook.data()[0])
    rule = notebook.NotebookLoss(network, {task: Gaussian() for task in notebook.SIGMAS})
    errors, s = np.array([3.0, 0.5]), np.array([1.2, -0.7])
    rule.s.assign(s)
    densities = stats.norm.logpdf(errors, scale=np.exp(s / 2))
    expected = -2 * np.sum(densities) - 2 * np.log(2 * np.pi)
    assert float(rule.weigh(tf.constant(errors**2, "float32"))) == pytest.approx(expected, rel=1e-5)


def test_data_are_two_lines_with_noise_of_their_sigmas(monkeypatch):
    monkeypatch.setattr(notebook, "ROWS", 20_000)
    x, y = notebook.data()
    for task, line in {"y1": (2, 8, 10), "y2": (3, 3, 1)}.items():
        slope, offset, sigma = line
        fit = stats.linregress(x[:, 0], y[task][:, 0])
        assert [fit.slope, fit.intercept] == pytest.approx([slope, offset], abs=0.03 * sigma)
        noise = y[task] - fit.slope * x - fit.intercept
        assert noise.std() == pytest.approx(sigma, rel=0.02)


def test_no_output_starts_dead():
    x, _ = notebook.data()
    for seed in range(8):  # Of these, some start with a dead output.
        keras.utils.set_random_seed(seed)
        network = notebook.network("relu", x)
        assert all(np.any(answers) for answers in network(x).values())


@pytest.mark.parametrize("method", [notebook.PACKAGE, notebook.PLAIN])
def test_a_run_has_the_sigma_of_each_task_beside_its_error(method):
    rows = pd.DataFrame(notebook.run(("relu", method, 0, 40)))
    assert rows["task"].tolist() == ["y1", "y2"]
    # After 200 steps of 0.001 a trained weight is still near its start, σ = 1.
    if method == notebook.PLAIN:
        assert np.all(rows["sigma"].between(1.0, np.exp(0.11)))
    else:
        assert rows["sigma"].to_numpy() == pytest.approx(rows["error"].to_numpy(), rel=0.2)
    text = notebook.report(rows)
    assert f"| a ReLU, as there | {method} | y1 | 10 | {rows['sigma'][0]:.3f} ±" in text
