"""What a training step reports, as one tensor for as long as it is on its way through Keras."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
from keras import ops

Logs = Any
Step = Callable[[Any], Logs]


def as_one_tensor(step: Step, make_function: Callable[[Step], Step]) -> Step:
    """A function of a training or test step whose logs are one tensor until it returns.

    Every tensor that a compiled step returns costs Keras's TensorFlow loop some ten microseconds of
    Python, which for a number or two a task is as much as all the rest of the weighting. To take
    them apart afterwards is one operation for all of them, and does not wait for their values.

    Args:
        step: Function from a batch to a dict of scalars. Any other structure is left as it is.
        make_function: What makes of it the function that Keras calls.

    Returns:
        What `make_function(step)` would be, as far as a caller can see.
    """
    names: list[str] = []

    def packed_step(data: Any) -> Any:
        logs = step(data)
        names.clear()
        if not _are_scalars_of_one_dtype(logs):
            return logs
        names.extend(logs)
        return ops.stack(list(logs.values()))

    function = make_function(packed_step)

    def unpacking_function(data: Any) -> Logs:
        logs = function(data)
        return dict(zip(names, ops.unstack(logs), strict=True)) if names else logs

    return unpacking_function


def _are_scalars_of_one_dtype(logs: Logs) -> bool:
    if not isinstance(logs, dict) or len(logs) < 2:
        return False
    values = logs.values()
    return (
        all(keras.ops.is_tensor(value) and value.shape == () for value in values)
        and len({value.dtype for value in values}) == 1
    )
