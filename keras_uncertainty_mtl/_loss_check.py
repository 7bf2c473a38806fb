"""A callback that names the tasks whose loss is no number."""

import math
import warnings
from collections.abc import Iterable
from typing import Any

import keras
from keras.callbacks import Callback, CallbackList, TerminateOnNaN
from keras.optimizers import LossScaleOptimizer

# More batches than Keras hands over at once, in any order.
MOST = 100


def with_loss_check(callbacks: Any, tasks: Iterable[str], optimizer: Any) -> Any:
    """The callbacks of `fit` or `evaluate`, and a check of the losses of tasks."""
    if isinstance(callbacks, CallbackList):
        return callbacks  # It is the one of `fit`, or of the user's own loop.
    given = [] if callbacks is None else keras.tree.flatten(callbacks)
    # A dynamic loss scale passes over batches whose loss overflows.
    goes_on = isinstance(optimizer, LossScaleOptimizer)
    stops = any(isinstance(each, TerminateOnNaN) for each in given)
    return [*given, LossCheck(tasks, only_warns=goes_on or stops)]


class LossCheck(Callback):
    """Refuses a first batch whose loss is NaN, and warns of any later one when its epoch ends.

    The loss of the first batch is from before any step, so no learning rate would mend it.

    Args:
        tasks: The names of the tasks.
        only_warns: If True, no batch is refused.
    """

    # It reads numbers that Keras has fetched for the progress bar, so no step waits for it. It may
    # then run beside others of its kind, and on JAX must not ask for the `model`.
    async_safe = True

    def __init__(self, tasks: Iterable[str], only_warns: bool = False) -> None:
        super().__init__()
        self._tasks = list(tasks)
        self._may_refuse, self._has_warned = not only_warns, False
        self._messages: dict[int, str] = {}

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Refuses the first batch. The others may come in any order."""
        if message := self._message(logs or {}):
            # With `steps_per_execution` there are steps behind the first numbers, which come later.
            if batch == 0 and self._may_refuse:
                raise ValueError(message)
            if len(self._messages) < MOST:
                self._messages[batch] = message

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Warns of the first wrong batch of the epoch. After it, weights and all losses are NaN."""
        self._may_refuse = False
        self._warn(self._messages[min(self._messages)] if self._messages else None)

    def on_test_end(self, logs: Any = None) -> None:
        """Warns of an evaluation."""
        self._warn(self._message(logs or {}))

    def _warn(self, message: str | None) -> None:
        if message and not self._has_warned:
            warnings.warn(message, stacklevel=2)
            self._has_warned = True

    def _message(self, logs: dict[str, Any]) -> str | None:
        combined = logs.get("loss")
        # A train step of the user's own may answer with anything.
        if not isinstance(combined, float) or math.isfinite(combined):
            return None
        losses = {task: logs.get(f"{task}_loss", 0.0) for task in self._tasks}
        wrong = {task: loss for task, loss in losses.items() if not 0.0 <= loss < math.inf}
        received = "others of the tasks " + ", ".join(
            f"'{each}' ({wrong[each]:g})" for each in wrong
        )
        if not wrong:
            received = "means over the epoch that are, so one batch is not, or a layer adds a loss"
        return (
            f"The loss is {combined:g}. Expected: finite losses, not below 0. Received: {received}."
            " Targets, predictions and sample weights must be finite, and targets within the range "
            "of the likelihood. If some targets are missing, a loss of your own must have a value "
            "for each. NaN also stands for a task of which no label was seen."
        )
