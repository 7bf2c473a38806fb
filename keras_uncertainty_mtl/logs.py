"""What a training step reports, as one tensor for as long as it is on its way through Keras."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

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
    # The key of a packed dict says what is in it, whichever of several graphs it comes out of.
    names_of: dict[str, list[str]] = {}

    def packed_step(data: Any) -> Logs:
        logs = step(data)
        if not _are_scalars_of_one_dtype(logs):
            return logs
        names = list(logs)
        names_of[repr(names)] = names
        return {repr(names): ops.stack(list(logs.values()))}

    function = make_function(packed_step)

    def unpacking_function(data: Any) -> Logs:
        logs = function(data)
        key = next(iter(logs), None) if isinstance(logs, dict) else None
        if key not in names_of:
            return logs
        return dict(zip(names_of[key], ops.unstack(logs[key]), strict=True))

    return unpacking_function


def _are_scalars_of_one_dtype(logs: Logs) -> bool:
    if not isinstance(logs, dict):
        return False
    values = logs.values()
    are_scalars = all(ops.is_tensor(value) and value.shape == () for value in values)
    return are_scalars and len({value.dtype for value in values}) == 1
