"""A callback that names the tasks whose loss is no number."""

import math
import warnings
from collections.abc import Iterable
from typing import Any

import keras

# More batches than Keras hands over at once, in any order.
MOST = 100


def add_loss_check(arguments: dict[str, Any], tasks: Iterable[str], name: str) -> None:
    """Adds a check of the tasks' losses to the callbacks among the arguments of a model's `fit`."""
    callbacks = arguments.get("callbacks")
    # A list of Keras's own is the one of `fit`, which evaluates, or of the user's own loop.
    if not isinstance(callbacks, keras.callbacks.CallbackList):
        given = keras.tree.flatten(callbacks) if callbacks else []
        arguments["callbacks"] = [*given, LossCheck(tasks, name)]


class LossCheck(keras.callbacks.Callback):
    """Warns once of a training loss that is no number, and once of another one.

    Nothing is refused: an optimizer, or another callback, may pass over such a batch.

    Args:
        tasks: The names of the tasks.
        name: The name of the model.
    """

    # It reads numbers that Keras has fetched for the progress bar, so no step waits for it. It may
    # then run beside others of its kind, and on JAX must not ask for the `model`.
    async_safe = True

    def __init__(self, tasks: Iterable[str], name: str) -> None:
        super().__init__()
        self._tasks, self._name = list(tasks), name
        self._epoch = 0
        self._wrong: dict[int, str] = {}
        self._has_warned = self._has_warned_of_test = False

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Remembers the epoch."""
        self._epoch = epoch

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Warns of the first batch, and remembers others, which may come in any order."""
        if not self._has_warned and len(self._wrong) < MOST and (losses := self._losses(logs)):
            self._wrong[batch] = losses
            if batch == 0:
                self._warn_of_training()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Warns of the first wrong batch of the epoch. After it all losses may be NaN."""
        if self._wrong and not self._has_warned:
            self._warn_of_training()

    def on_test_end(self, logs: Any = None) -> None:
        """Warns of an evaluation, unless training has made the weights NaN before."""
        if not self._wrong and not self._has_warned_of_test and (losses := self._losses(logs)):
            self._has_warned_of_test = True
            self._warn("an evaluation", losses)

    def _warn_of_training(self) -> None:
        self._has_warned = True
        first = min(self._wrong)
        self._warn(f"epoch {self._epoch + 1}, from batch {first + 1} on,", self._wrong[first])

    def _warn(self, place: str, losses: str) -> None:
        warnings.warn(
            f"Model '{self._name}': the loss of {place} is no number. Expected: finite losses, not "
            f"below 0. Received: {losses}. Targets, predictions, sample weights and the model's "
            "weights must be finite, and targets within the range of the likelihood. If some "
            "targets are missing, a loss of your own must have a value for each.",
            stacklevel=3,
        )

    def _losses(self, logs: Any) -> str:
        """The tasks whose losses are not as expected; nothing if the loss is a number."""
        combined = (logs or {}).get("loss")
        # A train step of the user's own may answer with anything.
        if not isinstance(combined, float) or math.isfinite(combined):
            return ""
        losses = {task: logs.get(f"{task}_loss", 0.0) for task in self._tasks}
        wrong = [
            f"'{task}' ({loss:g})" for task, loss in losses.items() if not 0.0 <= loss < math.inf
        ]
        if wrong:
            return f"others of the tasks {', '.join(wrong)}, or no label of one of these"
        return "means over the epoch that are, so one batch is not, or a layer adds a loss"
