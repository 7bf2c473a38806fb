"""What a training step reports, as one tensor for as long as it is on its way through Keras."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any, cast

import keras
import numpy as np
from keras import ops

from keras_uncertainty_mtl.direct_ops import stack

Tensor = Any
Logs = Any
Step = Callable[..., Any]


def _tensor_class() -> type:
    """What a number has to be for TensorFlow before 2.21 to take it for a tensor at once.

    Of whatever else it is asked about, a float too, `tf.is_tensor` takes ten microseconds to say
    no, and Keras asks it of every number that a step reports.
    """
    if keras.backend.backend() != "tensorflow":
        return object
    import tensorflow as tf

    # Private to TensorFlow, and there is no public way to be quick.
    return cast(type, tf.__internal__.types.Tensor)


class _Number(_tensor_class()):  # type: ignore[misc]
    """One of an array's numbers, which leave their device together when the first is read."""

    def __init__(self, read: Callable[[], np.ndarray], index: int) -> None:
        self._read = read
        self._index = index

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self._read()[self._index], dtype)

    def __float__(self) -> float:
        return float(self._read()[self._index])

    def numpy(self) -> np.ndarray:
        """As a tensor's."""
        return np.array(self)

    def item(self) -> float:
        """As a tensor's."""
        return float(self)

    def __repr__(self) -> str:
        return repr(float(self))


# Private to TensorFlow, which from 2.21 on says at once of whatever has this name that it is no
# tensor. Of what it takes for one Keras makes an array, and only then a float. It does so in a
# thread of its own, but holds the lock of Python meanwhile, and for three times as long.
_Number.__name__ = "ObjectProxy"


def as_one_tensor(step: Step, make_function: Callable[[Step], Step]) -> Step:
    """A function of a training or test step whose logs are one tensor until it returns.

    Every tensor that a compiled step returns costs Keras's loop some ten microseconds of Python,
    which for a number or two a task is as much as all the rest of the weighting. Without a compiled
    step, on PyTorch, each of them would be waited for in turn.

    Args:
        step: Function that returns a dict of scalars, its logs, or on JAX a tuple of them and its
            new state. Any other structure is left as it is.
        make_function: What makes of it the function that Keras calls.

    Returns:
        What `make_function(step)` would be, but its logs are numbers that are read when somebody
        asks for them.
    """
    # The key of a packed dict says what is in it, whichever of several graphs it comes out of.
    names_of: dict[str, list[str]] = {}

    def pack(logs: Logs) -> Logs:
        if not _are_scalars_of_one_dtype(logs):
            return logs
        names = list(logs)
        names_of[repr(names)] = names
        return {repr(names): stack(list(logs.values()))}

    def unpack(logs: Logs) -> Logs:
        key = next(iter(logs), None) if isinstance(logs, dict) else None
        if key not in names_of:
            return logs
        names = names_of[key]
        return dict(zip(names, _numbers_of(logs[key], len(names)), strict=True))

    return _with_logs(unpack, make_function(_with_logs(pack, step)))


def _numbers_of(packed: Tensor, count: int) -> list[_Number]:
    """What a vector holds, without waiting for it."""
    read = cache(partial(ops.convert_to_numpy, packed))
    return [_Number(read, index) for index in range(count)]


def _with_logs(change: Callable[[Logs], Logs], function: Step) -> Step:
    """A function that returns changed logs."""

    def changed_function(*args: Any) -> Any:
        result = function(*args)
        if isinstance(result, tuple):
            return change(result[0]), *result[1:]
        return change(result)

    return changed_function


def _are_scalars_of_one_dtype(logs: Logs) -> bool:
    if not isinstance(logs, dict):
        return False
    values = logs.values()
    are_scalars = all(ops.is_tensor(value) and value.shape == () for value in values)
    return are_scalars and len({value.dtype for value in values}) == 1
