"""Provides every test with its backends, a fixed seed, four CPU devices, and gradients."""

import os

os.environ["CUDA_VISIBLE_DEVICES"] = ""
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import pytest

if keras.backend.backend() == "tensorflow":
    import tensorflow as tf

    # Devices can only be configured before TensorFlow initialises.
    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 4
    )


def pytest_runtest_setup(item):
    for marker in item.iter_markers("backends"):
        _skip_elsewhere(*marker.args, **marker.kwargs)


def _skip_elsewhere(*backends, reason):
    if keras.backend.backend() not in backends:
        pytest.skip(reason)


@pytest.fixture(autouse=True)
def _fixed_seed():
    keras.utils.set_random_seed(0)


@pytest.fixture(scope="session")
def compiled():
    """Compiles a function that changes Keras variables, where the backend can: on TensorFlow."""
    return tf.function if keras.backend.backend() == "tensorflow" else lambda function: function


@pytest.fixture(scope="session")
def value_and_gradients():
    """Differentiates a function of no arguments by Keras variables, on any backend."""

    def on_tensorflow(function, variables):
        values = [variable.value for variable in variables]
        with tf.GradientTape() as tape:
            tape.watch(values)
            loss = function()
        return loss, tape.gradient(loss, values, unconnected_gradients="zero")

    def on_jax(function, variables):
        import jax

        def stateless(values):
            with keras.StatelessScope(zip(variables, values, strict=True)):
                return function()

        return jax.value_and_grad(stateless)([variable.value for variable in variables])

    def on_torch(function, variables):
        import torch

        values = [variable.value for variable in variables]
        loss = function()
        return loss, torch.autograd.grad(loss, values, materialize_grads=True)

    differentiate = {"tensorflow": on_tensorflow, "jax": on_jax, "torch": on_torch}

    def run(function, variables):
        loss, gradients = differentiate[keras.backend.backend()](function, variables)
        return (
            keras.ops.convert_to_numpy(loss),
            [keras.ops.convert_to_numpy(gradient) for gradient in gradients],
        )

    return run
