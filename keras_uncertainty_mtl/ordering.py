"""What is worked out before what, where that decides how much is in memory at a time."""

from __future__ import annotations

from typing import Any

import keras

Tensor = Any


def after(tensor: Tensor, *others: Tensor) -> Tensor:
    """The tensor, which is not there before the others are.

    A graph of TensorFlow's runs whatever is ready, in any order, so that large tensors may be there
    at the same time though none needs another. What runs at once gets the tensor as it is, and a
    compiler has an order of its own.
    """
    if keras.backend.backend() != "tensorflow":
        return tensor
    import tensorflow as tf

    if tf.executing_eagerly():
        return tensor
    with tf.control_dependencies(others):
        return tf.identity(tensor)
