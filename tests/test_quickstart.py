"""The example trains, calibrates, draws and exports from the command line."""

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from examples import quickstart
from examples.serving import SERVING_TOLERANCE

pytestmark = pytest.mark.backends("tensorflow", reason="the example runs on TensorFlow")

ROOT = Path(__file__).parents[1]
TIME_LIMIT = 300


def picture_info(builder, shape, num_classes):
    return tfds.core.DatasetInfo(
        builder=builder,
        features=tfds.features.FeaturesDict(
            {
                "image": tfds.features.Image(shape=shape),
                "label": tfds.features.ClassLabel(num_classes=num_classes),
            }
        ),
        supervised_keys=("image", "label"),
    )


class TinyPictures(tfds.core.GeneratorBasedBuilder):
    """Sixty coloured pictures of three classes, none of the same size, all in one split."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        return picture_info(self, (None, None, 3), num_classes=3)

    def _split_generators(self, dl_manager):
        return {"everything": self._generate_examples()}

    def _generate_examples(self):
        rng = np.random.default_rng(0)
        for index in range(60):
            picture = rng.integers(0, 80, (20 + index, 90 - index, 3), dtype="uint8")
            picture[..., index % 3] += 150
            yield index, {"image": picture, "label": index % 3}


class TinyStamps(tfds.core.GeneratorBasedBuilder):
    """Eight grey pictures of one small size in each of two splits."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        return picture_info(self, (6, 10, 1), num_classes=2)

    def _split_generators(self, dl_manager):
        return {"test": self._generate_examples(50), "train": self._generate_examples(100)}

    def _generate_examples(self, grey_level):
        for index in range(8):
            stamp = np.full((6, 10, 1), grey_level + index, "uint8")
            yield index, {"image": stamp, "label": index % 2}


def run_quickstart(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", "examples.quickstart", *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", **environment},
        capture_output=True,
        text=True,
        timeout=TIME_LIMIT,
    )


def table(output):
    """The cells of the printed table: by task, and by the column's header."""
    header, *rows = re.findall(r"^(?:task|class|image|ink) .*$", output, flags=re.MULTILINE)
    cells = [re.split(r"\s{2,}", row) for row in (header, *rows)]
    return {row[0]: dict(zip(cells[0][1:], row[1:], strict=True)) for row in cells[1:]}


def calibrated(output):
    """The rows of the second table: the trained and the calibrated number of each."""
    rows = re.findall(r"^(σ of|calibration|negative|95%)(.*?)\s{2,}(\S+)\s+(\S+)$", output, re.M)
    return {start + rest: (float(one), float(other)) for start, rest, one, other in rows}


def served_difference(output):
    return float(re.search(r"neither Keras nor this package: largest difference (\S+)", output)[1])


@pytest.fixture(scope="module")
def digits_run(tmp_path_factory):
    directory = tmp_path_factory.mktemp("quickstart") / "not" / "there yet"
    run = run_quickstart("--epochs", 2, "--seed", 3, "--output-dir", directory)
    assert run.returncode == 0, run.stderr
    return run, directory


def test_the_run_prints_the_progress_bar_of_keras(digits_run):
    run, _ = digits_run
    assert "Epoch 2/2" in run.stdout
    for task in quickstart.TASKS:
        for prefix in ("", "val_"):
            assert re.search(rf" {prefix}{task}_loss: \d.* {prefix}{task}_sigma: \d", run.stdout)


def test_the_run_prints_a_table_of_three_methods(digits_run):
    run, _ = digits_run
    rows = table(run.stdout)
    assert list(rows) == ["class", "image", "ink"]
    assert [row["held-out metric"] for row in rows.values()] == [
        "accuracy (%)",
        "RMS error (grey levels)",
        "mean abs. error (grey levels)",
    ]
    numbers = {
        task: {name: float(cell) for name, cell in row.items() if name != "held-out metric"}
        for task, row in rows.items()
    }
    methods = {"uncertainty", "equal weights", "single-task"}
    for task in numbers:
        assert set(numbers[task]) == methods | {"σ", "weight"}
        assert numbers[task]["σ"] > 0
        assert numbers[task]["weight"] > 0
    for method in methods:
        # Every method beats guessing, the mean image and the mean ink.
        assert 20 < numbers["class"][method] <= 100
        assert 0 < numbers["image"][method] < 6
        assert 0 < numbers["ink"][method] < 50
    assert "Held out: 360 of 1797 images, seed 3" in run.stdout


def test_sigma_and_weight_are_those_of_the_likelihoods(digits_run):
    run, _ = digits_run
    rows = table(run.stdout)
    sigma = {task: float(row["σ"]) for task, row in rows.items()}
    weight = {task: float(row["weight"]) for task, row in rows.items()}
    assert weight["class"] == pytest.approx(1 / sigma["class"] ** 2, rel=0.02)
    assert weight["image"] == pytest.approx(1 / (2 * sigma["image"] ** 2), rel=0.02)
    assert weight["ink"] == pytest.approx(2**0.5 / sigma["ink"], rel=0.02)


def test_the_run_calibrates_with_development_images(digits_run):
    run, _ = digits_run
    assert "σ calibrated with 360 images that nothing was trained with" in run.stdout
    rows = calibrated(run.stdout)
    trained = {task: float(row["σ"]) for task, row in table(run.stdout).items()}
    for task in quickstart.TASKS:
        assert rows[f"σ of {task}"][0] == pytest.approx(trained[task], rel=1e-2)
        assert rows[f"σ of {task}"][1] != rows[f"σ of {task}"][0]
    # Guessing costs log 10.
    assert all(0 < value < np.log(10) for value in rows["negative log-likelihood of class"])
    assert all(0 < value < 50 for value in rows["calibration error of class (%)"])
    for task in ("image", "ink"):
        _, share = rows[f"95% intervals of {task} hold (%)"]
        assert 85 < share <= 100


def test_the_run_saves_pictures(digits_run):
    run, directory = digits_run
    pictures = [
        *("coverage_of_image.png", "coverage_of_ink.png", "history.png"),
        "reliability_of_class.png",
    ]
    assert sorted(file.name for file in directory.glob("*.png")) == pictures
    assert f"{', '.join(pictures)}, saved_model" in run.stdout
    for name in pictures:
        picture = tf.io.decode_png((directory / name).read_bytes())
        assert min(picture.shape[:2]) > 300
        assert len(np.unique(picture)) > 10


def test_another_process_serves_the_exported_model(digits_run):
    run, directory = digits_run
    assert served_difference(run.stdout) < SERVING_TOLERANCE
    network = tf.saved_model.load(directory / "saved_model")
    images, labels = quickstart.digits()
    outputs = network.serve(images)
    assert {task: output.shape for task, output in outputs.items()} == {
        "class": (1797, 10),
        "image": (1797, 8, 8, 1),
        "ink": (1797, 1),
    }
    assert quickstart.accuracy(labels, outputs["class"].numpy()) > 20


def test_every_method_starts_from_the_same_network_and_the_seed_chooses_it():
    train, *_ = quickstart.split(*quickstart.digits(), seed=0)

    def weights(seed):
        return keras.Model(*quickstart.build_network(train, seed)).get_weights()

    for one, same in zip(weights(0), weights(0), strict=True):
        np.testing.assert_array_equal(one, same)
    assert not np.array_equal(weights(0)[-2], weights(1)[-2])


def test_the_seed_chooses_the_held_out_images():
    images, labels = quickstart.digits()
    parts = train, development, test = quickstart.split(images, labels, seed=0)
    assert [len(part.images) for part in parts] == [1077, 360, 360]
    for index, part in ((1, development), (2, test)):
        same, other = (quickstart.split(images, labels, seed)[index] for seed in (0, 1))
        np.testing.assert_array_equal(part.images, same.images)
        assert not np.array_equal(part.images, other.images)
    # Every image is in one part.
    everything = np.concatenate([part.images for part in (train, development, test)])
    sort = [np.lexsort(pixels.reshape(len(pixels), -1).T) for pixels in (images, everything)]
    np.testing.assert_array_equal(everything[sort[1]], images[sort[0]])
    np.testing.assert_array_equal(test.targets["ink"], test.images.reshape(360, 64).sum(axis=1))


def test_coloured_pictures_of_many_sizes_train_in_one_size(tmp_path, monkeypatch):
    builder = TinyPictures(data_dir=tmp_path)
    builder.download_and_prepare()
    monkeypatch.setattr(quickstart, "prepared_builder", {"tiny_pictures": builder}.get)

    images, labels = quickstart.tensorflow_dataset("tiny_pictures")
    assert images.shape == (60, quickstart.LARGEST_SIDE, quickstart.LARGEST_SIDE, 3)
    train, development, test = quickstart.split(images, labels, seed=0)
    options = argparse.Namespace(seed=0, epochs=1, batch_size=8)
    model, history = quickstart.train_uncertainty_weighting(train, development, options)
    assert np.all(np.isfinite(list(history.history.values())))
    measured = quickstart.measure(model.predict(test.images, verbose=0), test)
    assert list(measured) == ["class", "image", "ink"]


def test_a_small_common_size_is_kept_and_the_training_split_is_read(tmp_path, monkeypatch):
    builder = TinyStamps(data_dir=tmp_path)
    builder.download_and_prepare()
    monkeypatch.setattr(quickstart, "prepared_builder", {"tiny_stamps": builder}.get)

    images, labels = quickstart.tensorflow_dataset("tiny_stamps")
    assert images.shape == (8, 6, 10, 1)
    assert images.dtype == "float32"
    assert sorted(images.max(axis=(1, 2, 3))) == list(range(100, 108))
    np.testing.assert_array_equal(images[:, 0, 0, 0] % 2, labels)


def test_a_missing_network_ends_the_run_with_a_sentence(tmp_path):
    nobody = "http://127.0.0.1:9"  # no server listens here
    run = run_quickstart(
        *("--dataset", "fashion_mnist", "--output-dir", tmp_path / "output"),
        TFDS_DATA_DIR=str(tmp_path / "datasets"),
        **dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), nobody),
        **dict.fromkeys(("no_proxy", "NO_PROXY"), ""),
    )
    assert run.returncode == 1
    assert run.stdout == ""
    sentences = [
        line for line in run.stderr.splitlines() if "absl" not in line and ".cc:" not in line
    ]
    assert len(sentences) == 1
    assert sentences[0].startswith("fashion_mnist cannot be downloaded, because no network answers")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("dataset", "sentence"),
    [("nonesuch", "knows no dataset 'nonesuch'"), ("iris", "iris is no image classification set")],
)
def test_an_unsuitable_dataset_ends_the_run(dataset, sentence):
    with pytest.raises(SystemExit, match=sentence):
        quickstart.prepared_builder(dataset)


def test_help_names_every_option(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["quickstart", "--help"])
    with pytest.raises(SystemExit, match="0"):
        quickstart.parse_arguments()
    printed = capsys.readouterr().out
    for option in ("--dataset", "--epochs", "--batch-size", "--seed", "--output-dir", "--help"):
        assert option in printed


@pytest.mark.parametrize("option", ["--epochs", "--batch-size"])
def test_numbers_must_be_positive(option, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["quickstart", option, "0"])
    with pytest.raises(SystemExit):
        quickstart.parse_arguments()
    assert f"argument {option}: 0 is not positive" in capsys.readouterr().err
