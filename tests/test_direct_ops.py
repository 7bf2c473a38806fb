"""Operations called as directly as the backend lets one, against NumPy."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_uncertainty_mtl.direct_ops import (
    cast,
    clip,
    constant,
    divide_no_nan,
    exp,
    full,
    log,
    reduce_sum,
    relu,
    sign,
    stack,
    stop_gradient,
    unstack,
    where,
    zeros_like,
)

VALUES = np.array([-np.inf, -2.0, 0.0, 0.5, 3.0, np.inf, np.nan], "float32")


@pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")
@pytest.mark.parametrize(
    ("operation", "expected"),
    [
        (exp, np.exp),
        (log, np.log),
        (relu, lambda values: np.maximum(values, 0)),
        (zeros_like, np.zeros_like),
        (stop_gradient, np.copy),
        (lambda values: unstack(values)[3], lambda values: values[3]),
        (lambda values: clip(values, -1.0, 1.0), lambda values: np.clip(values, -1, 1)),
        (lambda values: where(values > 1, values, 0.25), lambda v: np.where(v > 1, v, 0.25)),
        (lambda values: where(values > 1, 0.25, values), lambda v: np.where(v > 1, 0.25, v)),
    ],
    ids=[
        "exp",
        "log",
        "relu",
        "zeros_like",
        "stop_gradient",
        "unstack",
        "clip",
        "where-else",
        "where-then",
    ],
)
def test_operations_are_those_of_numpy(operation, expected):
    result = ops.convert_to_numpy(operation(ops.convert_to_tensor(VALUES)))
    np.testing.assert_allclose(result, expected(VALUES), rtol=1e-6)
    assert result.dtype == "float32"


def test_no_gradient_goes_past_its_stop(value_and_gradients):
    variable = keras.Variable([2.0, 3.0])

    def product():
        values = ops.convert_to_tensor(variable)
        return reduce_sum(values * stop_gradient(values))

    _, (gradient,) = value_and_gradients(product, [variable])
    np.testing.assert_array_equal(gradient, [2.0, 3.0])


def test_a_sign_is_that_of_numpy():
    # Of NaN backends differ: NaN or 0.
    values = VALUES[:-1]
    result = ops.convert_to_numpy(sign(ops.convert_to_tensor(values)))
    np.testing.assert_array_equal(result, np.sign(values))


@pytest.mark.parametrize("dtype", ["float32", "float64", "int32", "bool"])
def test_arrays_and_tensors_are_cast(dtype):
    for values in (np.array([0.0, 2.75]), ops.convert_to_tensor([0.0, 2.75])):
        result = cast(values, dtype)
        assert ops.is_tensor(result)
        np.testing.assert_array_equal(
            ops.convert_to_numpy(result), np.array([0.0, 2.75], "float32").astype(dtype)
        )


@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
def test_a_tensor_of_one_value_is_like_another(shape):
    result = full(shape, 7, ops.ones((2, 2), "float16"))
    assert keras.backend.standardize_dtype(result.dtype) == "float16"
    np.testing.assert_array_equal(ops.convert_to_numpy(result), np.full(shape, 7.0))


def test_a_vector_is_clipped_between_vectors():
    lower, upper = np.array([0.0, -np.inf, 5.0]), np.array([1.0, np.inf, 5.0])
    tensors = [
        ops.convert_to_tensor(values, "float32") for values in (np.full(3, 2.0), lower, upper)
    ]
    np.testing.assert_array_equal(ops.convert_to_numpy(clip(*tensors)), [1, 2, 5])


@pytest.mark.parametrize("axis", [None, 0, (1,), (0, 2), (0, 1, 2)])
def test_sums_are_over_the_axes_that_are_named(axis):
    values = np.arange(24.0, dtype="float32").reshape(2, 3, 4)
    result = reduce_sum(ops.convert_to_tensor(values), axis=axis)
    np.testing.assert_array_equal(ops.convert_to_numpy(result), values.sum(axis=axis))


def test_what_is_divided_by_nothing_is_nothing():
    numerators = np.array([6.0, 0.0, 5.0, np.nan, np.inf], "float32")
    denominators = ops.convert_to_tensor(np.array([4.0, 0.0, 0.0, 0.0, 0.0], "float32"))
    quotients = divide_no_nan(ops.convert_to_tensor(numerators), denominators)
    np.testing.assert_array_equal(ops.convert_to_numpy(quotients), [1.5, 0, 0, 0, 0])


def test_what_is_divided_by_nothing_has_no_gradient(value_and_gradients):
    numerators = keras.Variable(np.array([6.0, 0.0, 5.0], "float32"))
    denominators = ops.convert_to_tensor(np.array([4.0, 0.0, 0.0], "float32"))
    _, (gradient,) = value_and_gradients(
        lambda: ops.sum(divide_no_nan(numerators.value, denominators)), [numerators]
    )
    np.testing.assert_array_equal(gradient, [0.25, 0, 0])


def test_a_constant_is_what_it_was_made_of():
    values = np.arange(6.0).reshape(2, 3)
    np.testing.assert_array_equal(ops.convert_to_numpy(constant(values)), values)


def test_tensors_are_stacked():
    rows = [ops.ones(2), ops.zeros(2), ops.ones(2)]
    np.testing.assert_array_equal(stack(rows), [[1, 1], [0, 0], [1, 1]])
    np.testing.assert_array_equal(stack([np.ones(2), np.zeros(2)]), [[1, 1], [0, 0]])


@pytest.mark.backends("torch", reason="its tensors are PyTorch's")
def test_tensors_on_several_devices_are_moved_by_keras(monkeypatch):
    import torch

    left = []
    monkeypatch.setattr(ops, "stack", left.append)
    here, elsewhere = torch.ones(2), torch.ones(2, device="meta")
    stack([here, here])
    assert not left
    stack([here, elsewhere])
    assert left == [[here, elsewhere]]
