"""TensorFlow, JAX and PyTorch: the same losses, gradients and trained weights."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest


def train(backend):
    process = subprocess.run(
        [sys.executable, Path(__file__).with_name("train_on_backend.py")],
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "KERAS_BACKEND": backend},
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    trained = json.loads(process.stdout.splitlines()[-1])
    assert trained.pop("backend") == backend
    return trained


@pytest.fixture(scope="module")
def on_tensorflow():
    return train("tensorflow")


@pytest.mark.parametrize(
    "backend",
    [
        pytest.param(
            backend,
            marks=pytest.mark.skipif(
                importlib.util.find_spec(backend) is None,
                reason=f"{backend} is not installed (make test-backends installs it)",
            ),
        )
        for backend in ("jax", "torch")
    ],
)
def test_trains_as_tensorflow_does(on_tensorflow, backend):
    trained = train(backend)
    for kind, expected in on_tensorflow.items():
        if kind == "layer" and backend == "jax":
            # Keras on JAX drops what a layer's call does to a metric: there is the loss alone.
            alone = {part: {"loss": expected[part]["loss"]} for part in ("history", "evaluate")}
            expected = {**expected, **alone}
        expected, received = map(dict, map(keras.tree.flatten_with_path, (expected, trained[kind])))
        assert received.keys() == expected.keys()
        for name, value in expected.items():
            np.testing.assert_allclose(
                received[name], value, rtol=1e-5, atol=1e-5, err_msg=f"{kind} {name}"
            )
