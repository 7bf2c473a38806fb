"""What every test starts from: a fixed seed, four devices on the CPU, and a way to gradients."""

import os
import re

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

# What runs on TensorFlow alone, and why. All else runs on every backend (`make test-backends`).
TENSORFLOW_ONLY = {
    "tests/test_likelihoods.py": "its graphs and tapes are TensorFlow's, see test_properties.py",
    "tests/test_observations.py": "its graphs and tapes are TensorFlow's, see test_properties.py",
    "tests/test_reductions.py": "its graphs, tapes and strategies are TensorFlow's",
    "tests/test_shapes.py": "its tensors of unknown sizes are TensorFlow's",
    "tests/test_quickstart.py": "the example is for TensorFlow",
    "tests/test_readme.py": "exports, which PyTorch cannot do",
    "tests/scenes": "the example is for TensorFlow",
    "tests/integration/test_convergence.py": "what it is fed is a tf.data",
    "test_a_batch_without_any_label_of_a_task": "takes its gradients from a TensorFlow tape",
    "test_at_its_start_a_log_variance_has_no_gradient_at_all": "takes them from a TensorFlow tape",
    "test_trains": "its epochs are for TensorFlow, where Keras's Adam steps embeddings further",
    "TestTypes": "its half precision is TensorFlow's",
    "TestExport": "loads what it exports with TensorFlow",
}

# Keras on JAX drops what a layer's call does to a metric, so there the bare layer reports one loss.
# `MultiTaskModel` reports everything everywhere.
NOT_ON_JAX = {
    **dict.fromkeys(
        [
            "test_the_bare_layer_trains_as_the_model_does",
            "test_mixed_precision",
            "test_targets_keep_their_precision_under_mixed_precision",
            "test_only_tokens_count",
            "test_an_input_that_is_its_own_target_stays",
            "test_class_ids_are_numbers_where_a_missing_one_is_nan",
        ],
        "the bare layer reports no tasks on JAX",
    ),
    "test_targets_in_fit": "Keras on JAX leaves a model without weights after an error in `fit`",
}

NOT_ON_PYTORCH = {
    "test_fifty_tasks_in_a_list": "exports, which PyTorch cannot do from dicts and lists",
    "steps_per_execution": "Keras takes no `steps_per_execution` on PyTorch",
}


def pytest_collection_modifyitems(items):
    skipped = {
        "tensorflow": {},
        "jax": TENSORFLOW_ONLY | NOT_ON_JAX,
        "torch": TENSORFLOW_ONLY | NOT_ON_PYTORCH,
    }[keras.backend.backend()]
    for item in items:
        for name, reason in skipped.items():
            if item.nodeid.startswith(name) or name in re.split(r"::|\[|-|\]", item.nodeid):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(autouse=True)
def _fixed_seed():
    keras.utils.set_random_seed(0)


@pytest.fixture(scope="session")
def value_and_gradients():
    """Differentiates a function of no arguments by Keras variables, on whichever backend runs."""

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
