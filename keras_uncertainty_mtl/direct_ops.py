"""Operations on a few numbers, as directly as PyTorch has them.

A compiled step does not care how an operation is called. PyTorch runs a step operation by
operation, and on a vector of one number a task each takes less time than Keras takes to look at
what it is given. What is given here is numbers, and tensors that are all in one place, unless
something else is said.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

Tensor = Any

_functions: Any = ops
stop_gradient, unstack = ops.stop_gradient, ops.unstack
if keras.backend.backend() == "torch":
    import torch

    _functions = torch
    stop_gradient, unstack = torch.detach, torch.unbind

clip, exp, log, relu, sign = (
    _functions.clip,
    _functions.exp,
    _functions.log,
    _functions.relu,
    _functions.sign,
)
reduce_sum, zeros_like = _functions.sum, _functions.zeros_like


def _directly(name: str) -> Any:
    """PyTorch's function, or Keras's where tensors are not in one place, or no tensors yet."""
    # Keras would first move each to its own device, which takes far longer than what is done there.
    function = getattr(_functions, name)

    def call(*args: Any) -> Tensor:
        try:
            return function(*args)
        except (RuntimeError, TypeError):
            return getattr(ops, name)(*args)

    return call if keras.backend.backend() == "torch" else function


stack, where = _directly("stack"), _directly("where")


def divide_no_nan(numerator: Tensor, denominator: Tensor) -> Tensor:
    """The quotient; 0 where the denominator is, whatever the numerator."""
    if keras.backend.backend() != "torch":
        return ops.divide_no_nan(numerator, denominator)
    is_zero = denominator == 0
    return numerator.masked_fill(is_zero, 0.0) / denominator.masked_fill(is_zero, 1.0)


def cast(tensor: Tensor, dtype: str) -> Tensor:
    """The tensor in another dtype, by its name, or a tensor of an array."""
    if keras.backend.backend() == "torch" and ops.is_tensor(tensor):
        return tensor.to(getattr(torch, dtype))
    return ops.cast(tensor, dtype)


def constant(values: np.ndarray) -> Any:
    """An array for `ops.convert_to_tensor`, of which PyTorch need not make a tensor every time."""
    return torch.from_numpy(values) if keras.backend.backend() == "torch" else values


def full(shape: Sequence[int], value: Any, like: Tensor) -> Tensor:
    """A tensor of one value, of the dtype of another and in the same place."""
    if keras.backend.backend() == "torch":
        return like.new_full(shape, value)
    value = ops.cast(value, like.dtype)
    return ops.broadcast_to(value, shape) if shape else value
