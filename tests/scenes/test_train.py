import re
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from examples.scenes import data, train
from examples.scenes.pictures import plot_scenes
from examples.serving import SERVING_TOLERANCE

pytestmark = pytest.mark.backends("tensorflow", reason="the example runs on TensorFlow")


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["train", *map(str, arguments)])
    train.main()


def table(output):
    """Metric, σ and weight of each task in the printed table."""
    rows = re.findall(r"^(classes|instances|inverse depth) .*\)((?: +[\d.e+-]+){3})$", output, re.M)
    return {task: [float(number) for number in numbers.split()] for task, numbers in rows}


@pytest.fixture(scope="module")
def trained(data_dir, tmp_path_factory):
    directory = tmp_path_factory.mktemp("scenes") / "not" / "there yet"
    with pytest.MonkeyPatch.context() as patch, pytest.MonkeyPatch.context() as output:
        lines = []
        output.setattr("builtins.print", lambda *values, **_: lines.append(" ".join(values)))
        run(
            patch,
            *("--dataset", "streets/few", "--data-dir", data_dir, "--output-dir", directory),
            *("--epochs", 3, "--batch-size", 8, "--seed", 5),
        )
    return "\n".join(lines), directory


def test_the_printed_table_has_the_held_out_metrics(trained):
    output, _ = trained
    assert "Held out: 4 of 44 images, seed 5" in output
    rows = table(output)
    assert list(rows) == ["classes", "instances", "inverse depth"]
    metrics = [row[0] for row in rows.values()]
    assert 0 < metrics[0] < 100
    assert 0 < metrics[1] < 32
    assert 0 < metrics[2] < 10


def test_printed_weights_follow_from_sigma(trained):
    rows = table(trained[0])
    for task in ("instances", "inverse depth"):
        _, sigma, weight = rows[task]
        assert weight == pytest.approx(2**0.5 / sigma, rel=0.01)
    _, sigma, weight = rows["classes"]
    assert weight == pytest.approx(1 / sigma**2, rel=0.01)


def test_the_headline_of_the_comparison_is_printed_with_its_picture(trained):
    output, _ = trained
    committed = Path(train.__file__).parent / "results"
    rows = [line.strip("| \n").split(" | ") for line in (committed / "headline.md").open()]
    for cells in rows[2 : rows.index([""])]:
        assert re.search(r" +".join(map(re.escape, cells)), output), cells
    assert Path(re.search(r"Its picture: (.*)", output)[1]).exists()


@pytest.mark.parametrize("name", ["scenes.png", "weighting.png"])
def test_pictures_are_saved(trained, name):
    picture = tf.io.decode_png((trained[1] / name).read_bytes())
    assert min(picture.shape[:2]) > 300
    assert len(np.unique(picture)) > 10


def test_another_process_serves_the_saved_model(trained, data_dir):
    output, directory = trained
    difference = re.search(r"neither Keras nor this package: largest difference (\S+)", output)[1]
    assert float(difference) < SERVING_TOLERANCE
    network = tf.saved_model.load(directory / "saved_model")
    scenes = data.load("streets/few", ["test"], data_dir)
    [images] = scenes.examples[0].map(lambda scene: scene["image"]).batch(4)
    outputs = network.serve(tf.cast(images, tf.float32))
    assert {task: tuple(output.shape) for task, output in outputs.items()} == {
        "classes": (4, 32, 64, 9),
        "instances": (4, 32, 64, 2),
        "inverse_depth": (4, 32, 64, 1),
    }


def test_missing_archives_end_the_run_and_are_named(monkeypatch, tmp_path):
    with pytest.raises(SystemExit, match=r"leftImg8bit_trainvaltest\.zip"):
        run(monkeypatch, "--dataset", "cityscapes", "--data-dir", tmp_path / "data")


def test_an_unknown_data_set_ends_the_run_and_is_named(monkeypatch, tmp_path):
    with pytest.raises(SystemExit, match="'roads'"):
        run(monkeypatch, "--dataset", "roads", "--data-dir", tmp_path)


def features(size=(2, 8, 16)):
    classes = np.ones(size, np.uint8)
    instances = np.zeros(size, np.int32)
    instances[:, 2:6, 2:6] = 8001
    instances[:, 2:6, 9:13] = 8002
    return {
        "image": np.zeros((*size, 3), np.uint8),
        "classes": classes,
        "instances": instances,
        "inverse_depth": np.linspace(0, 1, classes.size).reshape(size),
    }


def drawn(figure, row, title):
    columns = [axes.get_title() for axes in figure.axes]
    [image] = figure.axes[row * 7 + columns.index(title)].get_images()
    return image


def test_pixels_without_truth_are_blank():
    truth = features()
    truth["classes"][0, :3] = 255
    truth["inverse_depth"][0, :, :5] = np.nan
    figure = plot_scenes(truth, features(), ["road", "car"])
    for title, missing in [
        ("classes: true", truth["classes"][0] == 255),
        ("instances: true", truth["instances"][0] == 0),
        ("inverse depth: true", np.isnan(truth["inverse_depth"][0])),
    ]:
        image = drawn(figure, 0, title)
        np.testing.assert_array_equal(np.ma.getmaskarray(image.get_array()), missing)
        assert not image.to_rgba(image.get_array())[missing].any()
    assert not np.ma.getmaskarray(drawn(figure, 0, "classes: predicted").get_array()).any()


def test_a_predicted_instance_has_the_colour_of_its_true_instance():
    truth, predicted = features(), features()
    # In reverse order, shifted by a pixel, and with one false positive.
    predicted["instances"] = np.roll(
        np.select([truth["instances"] == 8001, truth["instances"] == 8002], [8007, 8003]), 1, axis=2
    )
    predicted["instances"][1, 7, :3] = 8009
    figure = plot_scenes(truth, predicted, ["road", "car"])
    found, true = (
        drawn(figure, 1, f"instances: {source}").get_array() for source in ("predicted", "true")
    )
    assert found[3, 4] == true[3, 4] != found[3, 11]
    assert found[3, 11] == true[3, 11]
    assert found[7, 1] not in (true[3, 4], true[3, 11])
