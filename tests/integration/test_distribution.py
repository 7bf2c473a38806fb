"""Training on several replicas follows the path of one device."""

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from scale_out import KINDS


def start(script, *arguments, **environment):
    return subprocess.Popen(
        [sys.executable, Path(__file__).with_name(script), *map(str, arguments)],
        env={
            **os.environ,
            "CUDA_VISIBLE_DEVICES": "",
            "TF_CPP_MIN_LOG_LEVEL": "3",
            **environment,
        },
        stdout=subprocess.PIPE,
        text=True,
    )


def finish(process):
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0
    return json.loads(output.splitlines()[-1])


def assert_same(one, several):
    one, several = map(dict, map(keras.tree.flatten_with_path, (one, several)))
    assert one.keys() == several.keys()
    for name, value in one.items():
        np.testing.assert_allclose(several[name], value, rtol=1e-5, atol=1e-6, err_msg=str(name))


@pytest.mark.backends("tensorflow", reason="tf.distribute needs TensorFlow")
@pytest.mark.parametrize(("replicas", "kinds"), [(2, KINDS), (4, ["model"])])
def test_mirrored_replicas_train_as_one_device_does(replicas, kinds):
    trained = finish(start("train_mirrored.py", replicas, *kinds, KERAS_BACKEND="tensorflow"))
    assert list(trained) == list(kinds)
    for runs in trained.values():
        assert_same(runs["one"], runs["several"])


@pytest.mark.backends("tensorflow", reason="tf.distribute needs TensorFlow")
def test_losses_of_the_networks_own_layers_are_those_of_one_device():
    trained = finish(start("train_penalized.py", KERAS_BACKEND="tensorflow"))
    assert list(trained) == ["stock", "model", "layer"]
    for runs in trained.values():
        for name, value in runs["one"].items():
            np.testing.assert_allclose(runs["several"][name], value, rtol=1e-6, atol=1e-6)


def free_addresses(number):
    """Free addresses of this machine."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for each in sockets:
            each.bind(("localhost", 0))
        return [f"localhost:{each.getsockname()[1]}" for each in sockets]


def refusals(strategy, cluster, workers):
    """The error of compiling on each worker of a cluster, or `None`."""
    processes = [
        start(
            "compile_on_workers.py",
            strategy,
            KERAS_BACKEND="tensorflow",
            TF_CONFIG=json.dumps({"cluster": cluster, "task": {"type": role, "index": index}}),
        )
        for role, index in workers
    ]
    return list(map(finish, processes))


@pytest.mark.backends("tensorflow", reason="tf.distribute needs TensorFlow")
def test_workers_that_keras_cannot_train_with_are_refused():
    workers = [("worker", 0), ("worker", 1)]
    for refusal in refusals("workers", {"worker": free_addresses(2)}, workers):
        assert re.search("Received: Collective.*MirroredStrategy.*DataParallel.*JAX", refusal)


@pytest.mark.backends("tensorflow", reason="tf.distribute needs TensorFlow")
def test_parameter_servers_are_refused():
    cluster = dict(
        zip(("chief", "worker", "ps"), ([each] for each in free_addresses(3)), strict=True)
    )
    (refusal,) = refusals("servers", cluster, [("chief", 0)])
    assert re.search("Received: ParameterServer.*MirroredStrategy.*DataParallel.*JAX", refusal)


@pytest.mark.backends("tensorflow", reason="tf.distribute needs TensorFlow")
def test_a_single_worker_is_accepted():
    assert refusals("workers", {"worker": free_addresses(1)}, [("worker", 0)]) == [None]


def start_on_jax(*arguments, devices=1):
    return start(
        "train_data_parallel.py",
        *arguments,
        KERAS_BACKEND="jax",
        JAX_PLATFORMS="cpu",
        JAX_CPU_COLLECTIVES_IMPLEMENTATION="gloo",
        XLA_FLAGS=f"--xla_force_host_platform_device_count={devices}",
    )


@pytest.fixture(scope="module")
def one_jax_device():
    trained = finish(start_on_jax())
    assert trained.pop("devices") == 1
    return trained


@pytest.mark.backends("jax", reason="keras.distribution trains on JAX alone")
def test_data_parallel_devices_of_one_process_train_as_one_device_does(one_jax_device):
    trained = finish(start_on_jax(devices=2))
    assert trained.pop("devices") == 2
    assert_same(one_jax_device, trained)


@pytest.mark.backends("jax", reason="keras.distribution trains on JAX alone")
def test_data_parallel_processes_train_as_one_device_does(one_jax_device):
    (address,) = free_addresses(1)
    processes = [start_on_jax(address, 2, process) for process in range(2)]
    for process in processes:
        trained = finish(process)
        assert trained.pop("devices") == 2
        assert_same(one_jax_device, trained)
