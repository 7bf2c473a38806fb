"""What every test starts from: a fixed seed, and four devices on the CPU."""

import os

os.environ["CUDA_VISIBLE_DEVICES"] = ""
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import pytest

if keras.backend.backend() == "tensorflow":
    import tensorflow as tf

    # Devices can only be configured before TensorFlow initialises, that is before any test runs.
    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 4
    )


@pytest.fixture(autouse=True)
def _fixed_seed():
    keras.utils.set_random_seed(0)
