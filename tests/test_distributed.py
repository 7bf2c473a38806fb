"""The example for several processes runs from the command line."""

import os
import re
import subprocess
import sys

import numpy as np
import pytest

from examples.serving import predictions, service

pytestmark = pytest.mark.backends("jax", reason="the example runs on JAX")


def test_two_processes_train_one_model_and_export_it(tmp_path):
    command = [sys.executable, "-m", "examples.distributed", "--processes", "2", "--epochs", "4"]
    done = subprocess.run(
        [*command, "--output", tmp_path / "saved_model"],
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE,
        check=True,
        text=True,
        timeout=600,
    )
    assert "2 devices, 2 processes" in done.stdout
    accuracy = float(re.search(r"accuracy: ([\d.]+)%", done.stdout)[1])
    assert accuracy > 80  # chance is 10%
    with service(tmp_path / "saved_model") as port:
        served = predictions(port, np.zeros((3, 8, 8, 1)).tolist())
    assert served["class"].shape == (3, 10)
    assert served["ink"].shape == (3, 1)
