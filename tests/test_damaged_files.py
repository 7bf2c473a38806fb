"""Damaged, newer and hostile files are refused, and none of their code runs."""

import json
import shutil
import zipfile
from pathlib import Path

import keras
import numpy as np
import pytest

from keras_uncertainty_mtl import Gibbs, MultiTaskModel


@pytest.fixture(scope="module")
def model():
    inputs = keras.Input((3,))
    outputs = {"depth": keras.layers.Dense(1)(inputs)}
    model = MultiTaskModel(inputs, outputs, {"depth": Gibbs("huber")})
    model.compile("adam")
    model.fit(np.ones((8, 3)), {"depth": np.ones((8, 1))}, verbose=0)
    return model


@pytest.fixture(scope="module")
def undamaged(model, tmp_path_factory):
    file = tmp_path_factory.mktemp("undamaged") / "m.keras"
    model.save(file)
    keras.saving.load_model(file)
    return file


@pytest.fixture
def file(undamaged, tmp_path):
    return Path(shutil.copy(undamaged, tmp_path))


def rewrite(file, change):
    """Changes the model's config, or the bytes of its weights, inside the file."""
    with zipfile.ZipFile(file) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    config = json.loads(parts["config.json"])
    change(config, parts)
    parts["config.json"] = json.dumps(config).encode()
    with zipfile.ZipFile(file, "w") as archive:
        for name, part in parts.items():
            archive.writestr(name, part)


def weighting(config):
    (layer,) = (
        layer["config"]
        for layer in config["config"]["layers"]
        if layer["class_name"] == "UncertaintyWeighting"
    )
    return layer


@pytest.mark.parametrize("kept", [0.0, 0.3, 0.9])
def test_a_truncated_file_is_refused(file, kept):
    content = file.read_bytes()
    file.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(ValueError, match=r"accessible `.keras` zip file"):
        keras.saving.load_model(file)


def test_a_weight_with_a_flipped_bit_is_refused(model, file):
    content = bytearray(file.read_bytes())
    content[content.index(model.layers[1].get_weights()[0].tobytes())] ^= 1
    file.write_bytes(content)
    with pytest.raises(zipfile.BadZipFile, match="CRC"):
        keras.saving.load_model(file)


def test_truncated_weights_are_refused(file):
    def cut(config, parts):
        parts["model.weights.h5"] = parts["model.weights.h5"][:3000]

    rewrite(file, cut)
    with pytest.raises(OSError, match="truncated"):
        keras.saving.load_model(file)


FUTURE = {
    "a field of a likelihood": (
        lambda config: weighting(config)["tasks"]["depth"]["config"].update(schedule=3),
        r"Gibbs.*unexpected keyword argument 'schedule'",
    ),
    "a field of the layer": (
        lambda config: weighting(config).update(schedule=3),
        r"UncertaintyWeighting: \{'schedule': 3\}",
    ),
    "a likelihood": (
        lambda config: weighting(config)["tasks"]["depth"].update(
            class_name="Student", registered_name="keras_uncertainty_mtl>Student"
        ),
        r"Could not locate class 'Student'",
    ),
}


@pytest.mark.parametrize(("change", "message"), FUTURE.values(), ids=FUTURE)
def test_a_file_of_a_newer_version_names_its_unknown_part(file, change, message):
    rewrite(file, lambda config, parts: change(config))
    with pytest.raises(TypeError, match=message):
        keras.saving.load_model(file)


class TestHostileFiles:
    """A hostile file would make a directory, and none does."""

    @pytest.fixture
    def made(self, tmp_path):
        path = tmp_path / "made"
        yield str(path)
        assert not path.exists()

    def test_a_lambda_layer_is_refused(self, made, tmp_path):
        inputs = keras.Input((3,))
        hostile = keras.layers.Lambda(
            lambda x: (__import__("os").makedirs(made, exist_ok=True), x)[1], output_shape=(3,)
        )
        outputs = {"depth": keras.layers.Dense(1)(hostile(inputs))}
        MultiTaskModel(inputs, outputs, {"depth": "mse"}).save(tmp_path / "m.keras")
        with pytest.raises(ValueError, match="safe_mode"):
            keras.saving.load_model(tmp_path / "m.keras")

    @pytest.mark.parametrize("place", ["loss", "likelihood"])
    def test_a_lambda_for_a_loss_is_refused(self, file, made, place):
        with pytest.warns(UserWarning, match="lambda"):
            hostile = keras.saving.serialize_keras_object(lambda y, f: __import__("os").mkdir(made))
        self.replace(file, place, hostile)
        with pytest.raises(TypeError, match=r"Python lambda.*safe_mode=False"):
            keras.saving.load_model(file)

    @pytest.mark.parametrize("place", ["loss", "likelihood"])
    def test_a_function_of_another_module_is_refused(
        self, file, made, tmp_path, monkeypatch, place
    ):
        (tmp_path / "hostile.py").write_text(f"import os\nos.mkdir({made!r})\nloss = print\n")
        monkeypatch.syspath_prepend(tmp_path)
        for module, name in (("hostile", "loss"), ("os", "system")):
            hostile = {"module": module, "class_name": "function", "config": name}
            self.replace(file, place, hostile | {"registered_name": name})
            refusal = f"Could not locate function '{name}'|Gibbs expects a Keras loss"
            with pytest.raises(TypeError, match=refusal):
                keras.saving.load_model(file)

    def replace(self, file, place, hostile):
        def change(config, parts):
            tasks = weighting(config)["tasks"]
            if place == "likelihood":
                tasks["depth"] = hostile
            else:
                tasks["depth"]["config"]["loss"] = hostile

        rewrite(file, change)
