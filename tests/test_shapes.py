"""Shapes of targets and weights match those of predictions."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_uncertainty_mtl._shapes import match_leading_axes, match_shape

pytestmark = pytest.mark.backends("tensorflow", reason="uses TensorFlow's tensors of unknown sizes")


@pytest.mark.parametrize(
    ("shape", "expected", "matched"),
    [
        ((4,), (4,), (4,)),
        ((4,), (4, 1), (4, 1)),
        ((4, 1), (4,), (4,)),
        ((4, 3), (4, 3, 1), (4, 3, 1)),
        ((4, 3, 1), (4, 3), (4, 3)),
        ((1, 1), (1,), (1,)),
        ((4, 3), (None, None), (4, 3)),
        ((4,), (None, 1), (4, 1)),
        ((4, 3), (4, 1), None),
        ((4, 1), (4, 3), None),
        ((4,), (4, 4), None),
        ((4,), (4, 1, 1), None),
        ((4, 1, 1), (4,), None),
        ((1, 4), (4,), None),
        ((1,), (4,), None),
        ((4, 3), (3, 4), None),
        ((), (4,), None),
    ],
)
def test_shapes_match_but_for_a_last_axis_of_one(shape, expected, matched):
    values = np.arange(np.prod(shape, dtype=int), dtype="float32").reshape(shape)
    result = match_shape(tf.constant(values), expected)
    assert (None if result is None else tuple(result.shape)) == matched
    if result is not None:
        np.testing.assert_array_equal(np.ravel(result), np.ravel(values))


@pytest.mark.parametrize(
    ("shape", "expected", "matched"),
    [
        ((4,), (4,), (4,)),
        ((4,), (4, 3), (4, 1)),
        ((4,), (4, 3, 2), (4, 1, 1)),
        ((4, 3), (4, 3, 2), (4, 3, 1)),
        ((4, 3, 2), (4, 3, 2), (4, 3, 2)),
        ((4, 1), (4,), (4,)),
        ((4, 1, 1), (4,), (4,)),
        ((4, 1), (4, 3), (4, 1)),
        ((4, 1, 2), (4, 3, 2), (4, 1, 2)),
        ((4,), (None, 3), (4, 1)),
        ((3,), (4, 3), None),
        ((1,), (4,), None),
        ((1, 3), (4, 3), None),
        ((4, 2), (4, 3), None),
        ((4, 3), (4,), None),
        ((4, 3, 2), (4, 3), None),
    ],
)
def test_leading_axes_match_followed_by_axes_of_one(shape, expected, matched):
    values = np.arange(np.prod(shape), dtype="float32").reshape(shape)
    result = match_leading_axes(tf.constant(values), expected)
    assert (None if result is None else tuple(result.shape)) == matched
    if result is not None:
        np.testing.assert_array_equal(np.ravel(result), np.ravel(values))


@pytest.mark.parametrize("match", [match_shape, match_leading_axes])
def test_unknown_sizes_match(match):
    assert match(keras.Input((None,)), (None, 5)).shape == (None, None)
    assert match(keras.Input((5,)), (None, None)).shape == (None, 5)
    assert match(keras.Input((5,)), (None, 6)) is None
