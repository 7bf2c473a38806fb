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

# What says nothing about a backend, or cannot run on it, by the file or the test, and why.
# All else runs on every backend (`make test-backends`).
TENSORFLOW_ONLY = {
    "tests/benchmarks": "the benchmarks are for TensorFlow",
    "tests/scenes": "the example is for TensorFlow",
    "tests/test_quickstart.py": "the example is for TensorFlow",
    "tests/test_compilation.py": "XLA by way of a tf.function",
    "tests/test_serving.py": "what is served is a SavedModel from TensorFlow",
    "tests/test_plotting.py": "draws NumPy arrays",
    "tests/test_ordering.py": "the order is that of TensorFlow's graphs",
    "tests/test_dispatch.py": "the function that is replaced is TensorFlow's",
    "tests/test_likelihoods.py": "its graphs and tapes are TensorFlow's, see test_properties.py",
    "tests/test_observations.py": "its graphs and tapes are TensorFlow's, see test_properties.py",
    "tests/test_reductions.py": "its graphs, tapes and strategies are TensorFlow's",
    "tests/test_shapes.py": "its tensors of unknown sizes are TensorFlow's",
    "tests/test_readme.py": "exports, which PyTorch cannot do",
    "tests/integration/test_convergence.py": "what it is fed is a tf.data",
    "tests/integration/test_endurance.py": "PyTorch has no graphs, JAX one for each batch size",
    "test_what_a_compiled_step_of_tensorflow_returns_is_one_tensor": "iterators are TensorFlow's",
    "test_tensorflow_sees_at_once_what_the_numbers_of_a_step_are": "its iterators are TensorFlow's",
    "test_a_train_step_of_ones_own_may_report_whatever_it_likes": "JAX's steps take a state",
    "test_tensorflow_traces_a_step_once": "JAX's steps take a state",
    "test_steps_that_report_other_numbers_each_have_their_own": "JAX's steps take a state",
    "test_tensors_of_unknown_rank": "only TensorFlow has them",
    "strings for targets": "only TensorFlow has tensors of strings",
    "test_mirrored_replicas_train_as_one_device_does": "the strategy is TensorFlow's",
    "test_workers_that_keras_cannot_train_with_are_refused": "the strategy is TensorFlow's",
    "test_so_are_parameter_servers": "the strategy is TensorFlow's",
    "test_a_worker_by_itself_is_not": "the strategy is TensorFlow's",
    "test_replicas_calibrate_as_one_device_does": "the strategy is TensorFlow's",
    "test_a_batch_without_any_label_of_a_task": "takes its gradients from a TensorFlow tape",
    "test_at_its_start_a_log_variance_has_no_gradient_at_all": "takes them from a TensorFlow tape",
    "test_trains": "its epochs are for TensorFlow, where Keras's Adam steps embeddings further",
    "TestTypes": "its half precision is TensorFlow's",
    "TestExport": "loads what it exports with TensorFlow",
}

JAX_ONLY = {
    "test_jax_computes_again_what_a_checkpoint_has_forgotten": "checkpoints are JAX's",
    "test_what_a_compiled_step_of_jax_returns_is_one_array": "what it looks at is JAX's",
    "test_jax_compiles_a_train_step_of_ones_own_as_it_is_wrapped": "its steps take a state",
    "test_what_jax_hands_from_step_to_step_is_not_searched_for_layers": "its state is JAX's",
    "tests/test_batches.py": "it is JAX that takes long over each array",
    "tests/test_distributed.py": "the example is for JAX",
    **dict.fromkeys(
        [
            "test_data_parallel_devices_of_one_process_train_as_one_device_does",
            "test_data_parallel_processes_train_as_one_device_does",
        ],
        "keras.distribution trains on JAX alone",
    ),
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
    "64 bits": "JAX keeps the lower half of such integers",
    "test_an_error_in_fit_leaves_the_weights_alone": "Keras on JAX deletes a model's weights then",
    "test_a_saved_model_of_pytorch_is_refused": "JAX exports one",
    "test_but_what_pytorch_exports_itself_is_the_network": "is for PyTorch",
}

NOT_ON_PYTORCH = {
    "test_fifty_tasks_in_a_list": "exports, which PyTorch cannot do from dicts and lists",
    "test_a_process_without_keras_and_the_package_serves_it": "exports, which PyTorch cannot do",
    "steps_per_execution": "Keras takes no `steps_per_execution` on PyTorch",
}

PYTORCH_ONLY = {
    "test_tensors_on_several_devices_are_moved_by_keras": "its tensors are PyTorch's",
    "test_what_a_step_of_pytorch_returns_leaves_its_device_at_once": "it is compiled elsewhere",
}

SKIPPED = {
    "tensorflow": JAX_ONLY
    | PYTORCH_ONLY
    | {"tests/integration/test_backends.py": "compares the others with it"},
    "jax": TENSORFLOW_ONLY | PYTORCH_ONLY | NOT_ON_JAX,
    "torch": TENSORFLOW_ONLY | JAX_ONLY | NOT_ON_PYTORCH,
}


def pytest_collection_modifyitems(items):
    for item in items:
        for name, reason in SKIPPED[keras.backend.backend()].items():
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
