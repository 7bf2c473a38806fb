"""JAX and PyTorch have the losses, gradients and trained weights of TensorFlow."""

import json
import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

from keras_uncertainty_mtl import Gaussian, MultiTaskModel

pytestmark = pytest.mark.backends("jax", "torch", reason="compares with TensorFlow")

BACKEND = keras.backend.backend()


def run(backend, *arguments):
    process = subprocess.run(
        [sys.executable, *map(str, arguments)],
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "KERAS_BACKEND": backend},
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    return json.loads(process.stdout.splitlines()[-1])


def test_the_backend_trains_as_tensorflow_does():
    script = Path(__file__).with_name("train_on_backend.py")
    on_tensorflow, trained = (run(backend, script) for backend in ("tensorflow", BACKEND))
    assert on_tensorflow.pop("backend") == "tensorflow"
    assert trained.pop("backend") == BACKEND
    for kind, expected in on_tensorflow.items():
        if kind == "layer" and BACKEND == "jax":
            # Keras on JAX drops a layer's metrics, so the loss stands alone.
            alone = {part: {"loss": expected[part]["loss"]} for part in ("history", "evaluate")}
            expected = {**expected, **alone}
        expected, received = map(dict, map(keras.tree.flatten_with_path, (expected, trained[kind])))
        assert received.keys() == expected.keys()
        for name, value in expected.items():
            np.testing.assert_allclose(
                received[name], value, rtol=1e-5, atol=1e-5, err_msg=f"{kind} {name}"
            )


@pytest.fixture
def model():
    x = keras.Input((4,), name="x")
    model = MultiTaskModel(x, {"depth": keras.layers.Dense(1)(x)}, {"depth": Gaussian()})
    model.compile("adam")
    model.fit(np.ones((8, 4)), {"depth": np.ones((8, 1))}, verbose=0)
    return model


def test_tensorflow_loads_and_exports_a_saved_file(model, tmp_path):
    model.save(tmp_path / "m.keras")
    program = """
import json, keras, numpy as np, sys, keras_uncertainty_mtl
model = keras.saving.load_model(sys.argv[1])
model.export(sys.argv[2], verbose=False)
x = np.arange(12.0).reshape(3, 4)
print(json.dumps([model.weighting.sigmas()["depth"].item(), model.predict(x)["depth"].tolist()]))
"""
    sigma, predictions = run(
        "tensorflow", "-c", program, tmp_path / "m.keras", tmp_path / "saved_model"
    )
    assert sigma == pytest.approx(model.weighting.sigmas()["depth"], rel=1e-6)
    expected = model.predict(np.arange(12.0).reshape(3, 4), verbose=0)["depth"]
    np.testing.assert_allclose(predictions, expected, rtol=1e-5)
    assert (tmp_path / "saved_model/saved_model.pb").exists()


@pytest.mark.backends("torch", reason="JAX exports a SavedModel")
def test_a_saved_model_of_pytorch_is_refused(model, tmp_path):
    message = r"no SavedModel from PyTorch.*KERAS_BACKEND=tensorflow.*format=\"torch\""
    for arguments in ({}, {"format": "tf_saved_model"}):
        with pytest.raises(ValueError, match=message):
            model.export(tmp_path / "saved_model", **arguments)
    assert not (tmp_path / "saved_model").exists()


@pytest.mark.backends("torch", reason="JAX exports a SavedModel")
def test_an_export_for_pytorch_holds_the_network_alone(model, tmp_path):
    import torch

    model.export(tmp_path / "m.pt2", format="torch", verbose=False)
    x = np.ones((1, 4), "float32")  # Keras exports for one sample by default.
    exported = torch.export.load(tmp_path / "m.pt2")
    np.testing.assert_allclose(
        exported.module()(torch.tensor(x))["depth"].detach(), model.predict(x, verbose=0)["depth"]
    )
    assert not any("log_variance" in name for name in exported.state_dict)
