"""The example trains, compares, calibrates, draws and exports from the command line."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from examples import quickstart
from examples.quickstart import EQUAL, SINGLE, STANDARD, UNCERTAINTY
from examples.serving import SERVING_TOLERANCE

pytestmark = pytest.mark.backends("tensorflow", reason="the example runs on TensorFlow")

ROOT = Path(__file__).parents[1]
TIME_LIMIT = 300


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    directory = tmp_path_factory.mktemp("quickstart") / "not" / "there yet"
    arguments = ["--epochs", "8", "--seeds", "3", "--output-dir", str(directory)]
    run = subprocess.run(
        [sys.executable, "-m", "examples.quickstart", *arguments],
        cwd=ROOT,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True,
        text=True,
        timeout=TIME_LIMIT,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout, directory


@pytest.fixture(scope="module")
def table(run):
    """The cells of the printed table: by task, and by the column's header."""
    lines = re.findall(r"^(?:task|price|carat|cut|Δm) .*$", run[0], flags=re.MULTILINE)
    header, *rows = (re.split(r"\s{2,}", line.strip()) for line in lines)
    return {row[0]: dict(zip(header[1:], row[1:], strict=False)) for row in rows}


def test_uncertainty_weighting_is_clearly_above_equal_weights(table):
    gains = {method: float(table["Δm"][method]) for method in (UNCERTAINTY, STANDARD, EQUAL)}
    assert gains[UNCERTAINTY] > -3  # a network for each task has 0
    assert gains[UNCERTAINTY] > gains[STANDARD]
    assert gains[UNCERTAINTY] > gains[EQUAL] + 10


def test_the_printed_mean_is_the_mean_gain_of_the_printed_metrics(table):
    for method in (UNCERTAINTY, EQUAL, STANDARD):
        price, carat, cut = (
            float(table[task][method]) / float(table[task][SINGLE])
            for task in ("price", "carat", "cut")
        )
        gain = 100 * np.mean([1 - price, 1 - carat, cut - 1])
        # Three digits are printed of each error.
        assert gain == pytest.approx(float(table["Δm"][method]), abs=0.05 * abs(gain) + 1.5)


def test_sigma_and_weight_are_those_of_the_likelihoods(table):
    sigma, weight = (
        {task: float(table[task][column]) for task in quickstart.TASKS}
        for column in ("σ", "weight")
    )
    assert weight["price"] == pytest.approx(2**0.5 / sigma["price"], rel=0.02)
    assert weight["carat"] == pytest.approx(1 / (2 * sigma["carat"] ** 2), rel=0.02)
    assert weight["cut"] == pytest.approx(1 / sigma["cut"] ** 2, rel=0.02)


def test_calibration_improves_probabilities(run, table):
    rows = re.findall(r"^(σ of|calibration|negative|95%)(.*?)\s{2,}(\S+)\s+(\S+)$", run[0], re.M)
    rows = {start + rest: (float(one), float(other)) for start, rest, one, other in rows}
    for task in quickstart.TASKS:
        trained, calibrated = rows[f"σ of {task}"]
        assert trained == pytest.approx(float(table[task]["σ"]), rel=1e-2)
        assert calibrated != trained
    for task in ("price", "carat"):
        assert 85 < rows[f"95% intervals of {task} hold (%)"][1] <= 100
    trained, calibrated = rows["negative log-likelihood of cut"]
    assert 0 < calibrated <= trained < np.log(5)  # Guessing costs log 5.


def test_the_run_ends_with_a_picture(run):
    output, directory = run
    assert f"In {directory}: demo.png, saved_model" in output
    picture = tf.io.decode_png((directory / "demo.png").read_bytes())
    assert min(picture.shape[:2]) > 300
    assert len(np.unique(picture)) > 10


def test_another_process_serves_the_exported_model(run, table):
    output, directory = run
    difference = re.search(r"neither Keras nor this package: largest difference (\S+)", output)[1]
    assert float(difference) < SERVING_TOLERANCE
    *_, test = quickstart.split(seed=3)
    network = tf.saved_model.load(directory / "saved_model")
    answers = network.serve(test.measures)
    for name, task in quickstart.TASKS.items():
        measured = task.measure(test.targets[name], answers[name].numpy())
        assert measured == pytest.approx(float(table[name][UNCERTAINTY]), rel=0.02)


def test_every_method_starts_from_the_same_network_and_the_seed_chooses_it():
    train, *_ = quickstart.split(seed=0)

    def weights(seed):
        model = quickstart.keras.Model(*quickstart.build_heads(train, seed))
        return [variable.numpy() for variable in model.trainable_variables]

    for one, same in zip(weights(0), weights(0), strict=True):
        np.testing.assert_array_equal(one, same)
    assert not np.array_equal(weights(0)[0], weights(1)[0])


def test_no_diamond_is_in_two_parts_and_the_seed_chooses_them():
    parts = quickstart.split(seed=0)
    assert [len(part.measures) for part in parts] == [1000, 1000, 4000]
    # Some diamonds of the table are twins, in price and carat too.
    rows = np.concatenate(
        [np.c_[part.measures, part.targets["price"], part.targets["carat"]] for part in parts]
    )
    assert len(np.unique(rows, axis=0)) > 0.98 * len(rows)
    for one, same, other in zip(
        parts, quickstart.split(seed=0), quickstart.split(seed=1), strict=True
    ):
        np.testing.assert_array_equal(one.measures, same.measures)
        assert not np.array_equal(one.measures, other.measures)
        assert (one.measures[:, :3] > 0).all()


def test_help_names_every_option(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["quickstart", "--help"])
    with pytest.raises(SystemExit, match="0"):
        quickstart.parse_arguments()
    printed = capsys.readouterr().out
    assert all(option in printed for option in ("--epochs", "--seeds", "--output-dir"))


def test_numbers_must_be_positive(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["quickstart", "--epochs", "0"])
    with pytest.raises(SystemExit):
        quickstart.parse_arguments()
    assert "argument --epochs: 0 is not positive" in capsys.readouterr().err
