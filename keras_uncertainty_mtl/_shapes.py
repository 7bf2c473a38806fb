"""Shapes and dtypes of tensors at the boundary: nothing is ever broadcast by accident."""

from typing import Any

import keras
from keras import ops

Tensor = Any
Shape = tuple[int | None, ...]


def check_tensor(tensor: Tensor, name: str) -> None:
    """Refuses a tensor that holds no real numbers, or whose number of axes is not known."""
    dtype = keras.backend.standardize_dtype(tensor.dtype)
    if not dtype.startswith(("float", "bfloat", "int", "uint", "bool")):
        raise ValueError(
            f"{name} must be real numbers or truth values. Received: dtype {dtype}. Turn "
            "strings into class ids with `keras.layers.StringLookup`."
        )
    # Only TensorFlow has ragged and sparse tensors, and those of unknown rank.
    if hasattr(tensor, "row_splits") or hasattr(tensor, "dense_shape"):
        raise ValueError(
            f"{name} must be a dense tensor. Received: a {type(tensor).__name__}. Fill it up by "
            "`tensor.to_tensor(-1.0)`, or `tf.sparse.to_dense`, and pass missing=-1 to the "
            "likelihood."
        )
    if getattr(tensor.shape, "rank", 0) is None:
        raise ValueError(
            f"{name} must have a known number of axes. Received: a tensor of unknown rank. Give it "
            "its shape where it is made, by `output_signature` or `tf.ensure_shape`."
        )


def match_shape(tensor: Tensor, expected: Shape) -> Tensor | None:
    """The tensor in the expected shape, or `None` if it does not fit.

    An axis of size 1 is added or removed at its end. `None` is a size that is not known.
    """
    shape = tuple(tensor.shape)
    if shape == expected:
        return tensor
    if len(shape) == len(expected) + 1 and shape[-1] == 1:
        tensor = ops.squeeze(tensor, axis=-1)
    elif len(shape) == len(expected) - 1 and expected[-1] == 1:
        tensor = ops.expand_dims(tensor, axis=-1)
    shape = tuple(tensor.shape)
    return tensor if len(shape) == len(expected) and all(map(same_size, shape, expected)) else None


def match_leading_axes(tensor: Tensor, expected: Shape) -> Tensor | None:
    """The tensor with axes of size 1 at its end, so that it broadcasts over the expected shape.

    A weight for each sample thus weighs all elements of the sample. `None` if it does not fit.
    """
    while len(tensor.shape) > len(expected) and tensor.shape[-1] == 1:
        tensor = ops.squeeze(tensor, axis=-1)
    while len(tensor.shape) < len(expected):
        tensor = ops.expand_dims(tensor, axis=-1)
    fits = len(tensor.shape) == len(expected) and all(
        (size == 1 and axis > 0) or same_size(size, expected[axis])
        for axis, size in enumerate(tensor.shape)
    )
    return tensor if fits else None


def same_size(size: int | None, expected: int | None) -> bool:
    """True for sizes that are equal, or one of which is not known."""
    return size is None or expected is None or size == expected
