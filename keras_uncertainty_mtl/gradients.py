"""Functions whose gradient is written by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from keras import ops

Tensor = Any


def custom_gradient(function: Callable[..., tuple[Tensor, Callable[[Tensor], Any]]]) -> Any:
    """The function with the gradient that it returns beside its value.

    Args:
        function: Function of tensors, and of nothing else that is differentiated or traced. It
            returns a tensor, and a function from the gradient of that to one of each argument,
            `None` where an argument has none.

    Returns:
        Function of the same arguments that returns the tensor.
    """

    def with_gradient(*tensors: Tensor) -> tuple[Tensor, Any]:
        value, gradient = function(*tensors)

        # Keras hands it over by name or by position, as the backend does.
        def of_upstream(*args: Tensor, upstream: Tensor = None) -> Any:
            return gradient(args[0] if upstream is None else upstream)

        return value, of_upstream

    return ops.custom_gradient(with_gradient)
