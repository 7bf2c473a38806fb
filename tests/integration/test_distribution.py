"""Training on several replicas follows the path of training on one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest


@pytest.mark.parametrize("replicas", [2, 4])
def test_mirrored_replicas_train_as_one_device_does(replicas):
    process = subprocess.run(
        [sys.executable, Path(__file__).with_name("train_mirrored.py"), str(replicas)],
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "TF_CPP_MIN_LOG_LEVEL": "3"},
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    for kind, trained in json.loads(process.stdout.splitlines()[-1]).items():
        one, several = (
            {
                keras.tree.flatten_with_path(trained[run])[i][0]: value
                for i, value in enumerate(keras.tree.flatten(trained[run]))
            }
            for run in ("one", "several")
        )
        assert one.keys() == several.keys()
        for name, value in one.items():
            np.testing.assert_allclose(
                several[name], value, rtol=1e-5, atol=1e-6, err_msg=f"{kind} {name}"
            )
