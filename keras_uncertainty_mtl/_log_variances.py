"""The log-variances: how they follow the tasks' losses, and how they are saved."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_uncertainty_mtl._groups import BOUND, Group

Tensor = Any

# The running mean is over about this many batches at first, and later over this share of all
# batches, up to the last number. A longer mean makes s steadier, and slower to follow.
FEWEST, SHARE, MOST = 10.0, 0.1, 50.0

# A batch counts as at most this many times the running mean, so that none, a corrupt label in it
# say, can switch its task off.
LARGEST_RATIO = 10.0

# Adam and its like move a weight by about one learning rate a step, whatever its gradient. That is
# slow for a logarithm, so θ counts this many times in s.
STEP_SCALE = 3.0

# The largest correction of a closed form: σ stays within a factor of e^½ of it.
LARGEST_CORRECTION = 1.0

# The gradient of θ, as a share of that of s. Plain gradient descent thus moves s by a tenth of a
# learning rate times its gradient; with momentum, larger steps would follow single batches.
GRADIENT_SCALE = 0.1 / STEP_SCALE


class LogVariances(keras.layers.Layer):
    """The trainable log-variances `s = log σ²` of all tasks, as one vector.

    s is the closed-form optimum of an exponentially forgotten mean of the task's loss, plus a
    trained correction θ; where there is no closed form (a temperature), s is trained alone.

    A σ that is given to begin with counts as one batch of such errors. A batch without any observed
    element of a task, without any error, or with one that overflows, says nothing of its noise.

    Args:
        groups: The tasks, in the groups that are computed as one.
        trained: Whether θ is trained where there is a closed form; else it is 0 there.
        dtype: `"float32"` or `"float64"`.
    """

    def __init__(self, groups: Sequence[Group], trained: bool, dtype: str) -> None:
        super().__init__(name="log_variances", dtype=dtype, autocast=False)
        self._groups = groups
        self._closed_form = self._each(lambda likelihood: likelihood.has_closed_form)
        self._power = self._each(lambda likelihood: likelihood.power)
        self._offset = self._each(lambda likelihood: likelihood.optimum(1.0))
        self._is_trained = np.maximum(1.0 - self._closed_form, float(trained)).astype(dtype)
        # The sum over the last batches must not overflow, from which it would not come back.
        self._largest_loss = float(np.finfo(dtype).max) / MOST

    def build(self, mean_losses_shape: Any = None) -> None:
        """Creates θ, and the sum and the count of the running mean."""
        initial = np.concatenate([group.initial_log_variances() for group in self._groups])
        # A given σ counts as one batch, and NaN stands for the optimum of the first batch.
        theta, running = self._state_at(np.nan_to_num(initial), np.where(np.isnan(initial), 0, 1))
        self.theta = self.add_weight(
            name="theta",
            shape=theta.shape,
            initializer=_constant(theta),
            constraint=_Bound(np.where(self._closed_form, LARGEST_CORRECTION, BOUND) / STEP_SCALE),
        )
        # All replicas assign the same value, so none has to wait for another.
        self.running = keras.Variable(
            _constant(running),
            shape=running.shape,
            dtype=self.variable_dtype,
            trainable=False,
            autocast=False,
            aggregation="only_first_replica",
            synchronization="on_read",
            name="running",
        )

    def call(self, mean_losses: Tensor = None, training: bool = False) -> Tensor:
        """The log-variances, in training after they have followed a vector of mean losses."""
        sums, counts = ops.unstack(ops.convert_to_tensor(self.running))
        # On the batch that σ starts from there is no gradient. A rounding error of one would make
        # Adam take a full step.
        is_corrected = ops.logical_or(self._closed_form == 0, counts > 0)
        if mean_losses is not None and training and self.trainable:
            sums, counts = self._follow(ops.stop_gradient(mean_losses), sums, counts)
            self.running.assign(ops.stack([sums, counts]))
        closed_form, power, offset, is_trained = map(
            ops.convert_to_tensor,
            (self._closed_form, self._power, self._offset, self._is_trained),
        )
        # Before the first batch that tells, σ of a closed form is 1.
        is_known = counts > 0
        means = ops.where(is_known, ops.divide_no_nan(sums, counts), ops.ones_like(sums))
        optima = ops.where(is_known, ops.log(means) / power + offset, ops.zeros_like(sums))
        theta = is_trained * ops.convert_to_tensor(self.theta)
        theta = ops.where(is_corrected, theta, ops.zeros_like(theta))
        steps = GRADIENT_SCALE * theta
        steps = steps + ops.stop_gradient(STEP_SCALE * theta - steps)
        return ops.clip(closed_form * optima + steps, -BOUND, BOUND)

    def _follow(self, losses: Tensor, sums: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
        """The sum and the count of the running mean after a batch."""
        tells = ops.logical_and(losses > 0, losses < self._largest_loss)
        limits = LARGEST_RATIO * ops.divide_no_nan(sums, counts)
        losses = ops.where(counts > 0, ops.minimum(losses, limits), losses)
        more = ops.where(counts < FEWEST, counts + 1.0, counts + SHARE)
        longer = ops.minimum(more, MOST)
        kept = ops.divide_no_nan(longer - 1.0, counts)
        return ops.where(tells, kept * sums + losses, sums), ops.where(tells, longer, counts)

    def assign(self, log_variances: np.ndarray) -> None:
        """Sets the log-variances, as if recent batches had told them; NaN leaves one as it is."""
        state = self._state_at(log_variances, np.full(log_variances.shape, FEWEST))
        for variable, new in zip((self.theta, self.running), state, strict=True):
            old = ops.convert_to_numpy(variable)
            variable.assign(np.where(np.isnan(log_variances), old, new).astype(old.dtype))

    def save_own_variables(self, store: Any) -> None:
        """Saves θ and the running mean under the name of each task."""
        values = np.concatenate([self.theta.numpy()[None], self.running.numpy()])
        for task, place in self._places().items():
            store[task] = values[:, place]

    def load_own_variables(self, store: Any) -> None:
        """Loads the tasks that are there, and then refuses a store of other tasks."""
        values = np.concatenate([self.theta.numpy()[None], self.running.numpy()])
        places = self._places()
        known = [task for task in places if task in store]
        for task in known:
            values[:, places[task]] = store[task]
        self.theta.assign(values[0])
        self.running.assign(values[1:])
        if set(store.keys()) != set(places):
            raise ValueError(
                f"Expected the log-variances of the tasks {list(places)}. Received: those of "
                f"{list(store.keys())}. With skip_mismatch=True, those of {known} are loaded."
            )

    def _places(self) -> dict[str, slice]:
        return {task: place for group in self._groups for task, place in group.places()}

    def _each(self, value: Any) -> np.ndarray:
        """The value of a function of the likelihood, for each log-variance."""
        values = [np.full(group.size, value(group.likelihood)) for group in self._groups]
        return np.concatenate(values).astype(self.variable_dtype)

    def _state_at(self, log_variances: np.ndarray, counts: np.ndarray) -> tuple[Any, Any]:
        """θ, and the running mean after so many batches, that make these log-variances."""
        theta = log_variances * (1.0 - self._closed_form) / STEP_SCALE
        losses = self._loss_at(self._closed_form * log_variances)
        return theta, np.stack([counts * losses, counts])

    def _loss_at(self, log_variances: Any) -> Any:
        """The mean losses whose optimum these log-variances are."""
        losses = np.exp(self._power * (log_variances - self._offset))
        smallest = np.finfo(self.variable_dtype).tiny
        return np.clip(losses, smallest, self._largest_loss).astype(self.variable_dtype)


def _constant(values: np.ndarray) -> Any:
    """An initializer of these values."""
    return lambda shape, dtype: ops.convert_to_tensor(values, dtype)


class _Bound(keras.constraints.Constraint):
    """Keeps a weight within ±limits, from where any optimizer comes back at once."""

    def __init__(self, limits: np.ndarray) -> None:
        self.limits = limits

    def __call__(self, weight: Tensor) -> Tensor:
        limits = ops.convert_to_tensor(self.limits, weight.dtype)
        return ops.minimum(ops.maximum(weight, -limits), limits)
