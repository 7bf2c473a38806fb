"""A callback that names the tasks whose loss is NaN, or below 0."""

import math
import warnings
from collections.abc import Mapping
from typing import Any

import keras

from keras_uncertainty_mtl.likelihoods import Likelihood

# More batches than Keras hands over at once, in any order.
MOST = 100


def add_loss_check(arguments: dict[str, Any], tasks: Mapping[str, Likelihood], name: str) -> None:
    """Adds a check of the tasks' losses to the callbacks among the arguments of a model's `fit`."""
    callbacks = arguments.get("callbacks")
    # A list of Keras's own is the one of `fit`, which evaluates, or of the user's own loop.
    if not isinstance(callbacks, keras.callbacks.CallbackList):
        given = keras.tree.flatten(callbacks) if callbacks else []
        arguments["callbacks"] = [*given, LossCheck(tasks, name)]


class LossCheck(keras.callbacks.Callback):
    """Warns once of a training loss that is NaN, and once of another one.

    An optimizer, or another callback, may pass over such a batch, so it is not refused. A mean loss
    below 0 is, where σ needs one that is not.

    Args:
        tasks: Dict from task to likelihood.
        name: The name of the model.
    """

    # It reads numbers that Keras has fetched for the progress bar, so no step waits for it. It may
    # then run beside others of its kind, and on JAX must not ask for the `model`.
    async_safe = True

    def __init__(self, tasks: Mapping[str, Likelihood], name: str) -> None:
        super().__init__()
        self._tasks, self._name = tasks, name
        self._epoch = 0
        self._wrong: dict[int, dict[str, float]] = {}
        self._has_warned = self._has_warned_of_test = False

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Remembers the epoch."""
        self._epoch = epoch

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Warns of the first batch, and remembers others, which may come in any order."""
        wrong = self._wrong_losses(logs or {})
        if wrong is None or self._has_warned or len(self._wrong) == MOST:
            return
        self._wrong[batch] = wrong
        if any(loss < 0 for loss in wrong.values()):
            raise ValueError(self._message(self._place(batch), wrong))
        if batch == 0:
            self._warn_of_training()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Warns of the first wrong batch of the epoch. After it all losses may be NaN."""
        if self._wrong and not self._has_warned:
            self._warn_of_training()

    def on_test_end(self, logs: Any = None) -> None:
        """Warns of an evaluation, unless training has made the weights NaN before."""
        wrong = self._wrong_losses(logs or {})
        if wrong is not None and not self._wrong and not self._has_warned_of_test:
            self._has_warned_of_test = True
            warnings.warn(self._message("an evaluation", wrong), stacklevel=2)

    def _warn_of_training(self) -> None:
        self._has_warned = True
        first = min(self._wrong)
        warnings.warn(self._message(self._place(first), self._wrong[first]), stacklevel=3)

    def _place(self, batch: int) -> str:
        return f"epoch {self._epoch + 1}, from batch {batch + 1} on,"

    def _message(self, place: str, wrong: dict[str, float]) -> str:
        received = "means over the epoch that are, so one batch is not, or a layer adds a loss"
        if wrong:
            named = ", ".join(f"'{task}' ({loss:g})" for task, loss in wrong.items())
            received = f"others of the tasks {named}, or no label of one of these"
        return (
            f"Model '{self._name}': the loss of {place} is no number. Expected: finite losses, not "
            f"below 0. Received: {received}. Targets, predictions, sample weights and the model's "
            "weights must be finite, and targets within the range of the likelihood. If some "
            "targets are missing, a loss of your own must have a value for each."
        )

    def _wrong_losses(self, logs: dict[str, Any]) -> dict[str, float] | None:
        """The tasks whose losses are not as expected; `None` if the combined loss is a number."""
        combined = logs.get("loss")
        # A train step of the user's own may answer with anything.
        if not isinstance(combined, float) or math.isfinite(combined):
            return None
        losses = {task: logs.get(f"{task}_loss", 0.0) for task in self._tasks}
        return {
            task: loss
            for task, loss in losses.items()
            if not math.isfinite(loss) or (loss < 0 and self._tasks[task].has_closed_form)
        }
