"""Training that is killed and restarted ends as if undisturbed."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from train_killed import BATCH, EPOCHS, SAMPLES


def train(*arguments):
    return subprocess.run(
        [sys.executable, Path(__file__).with_name("train_killed.py"), *map(str, arguments)],
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "TF_CPP_MIN_LOG_LEVEL": "3"},
        check=False,
    ).returncode


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    directory = tmp_path_factory.mktemp("undisturbed")
    assert train(directory / "backup", directory / "results.npz") == 0
    return dict(np.load(directory / "results.npz"))


def test_training_killed_five_times_ends_as_if_undisturbed(undisturbed, tmp_path):
    steps = EPOCHS * -(-SAMPLES // BATCH)
    kills = np.sort(np.random.default_rng(0).choice(steps - 1, size=5, replace=False)) + 1
    for step in kills:
        assert train(tmp_path / "backup", tmp_path / "results.npz", step) == -signal.SIGKILL
    assert not (tmp_path / "results.npz").exists()
    assert train(tmp_path / "backup", tmp_path / "results.npz") == 0
    resumed = dict(np.load(tmp_path / "results.npz"))
    assert resumed.keys() == undisturbed.keys()
    assert undisturbed["adam_w.iteration"] == steps
    for ending in ("theta", "running", "theta_velocity"):
        assert any(name.endswith(ending) for name in resumed)
    for name, value in undisturbed.items():
        np.testing.assert_array_equal(resumed[name], value, err_msg=name)
