"""The log-variances: how they follow the tasks' losses, and how they are saved."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_uncertainty_mtl._groups import BOUND, Group
from keras_uncertainty_mtl._shapes import Tensor
from keras_uncertainty_mtl.likelihoods import Likelihood

# The running mean is over about this many batches at first, and later over this share of all
# batches, up to the last number. A longer mean makes s steadier, and slower to follow.
FEWEST, SHARE, MOST = 10.0, 0.1, 50.0

# A batch counts as at most this many times the running mean, and θ learns nothing from one beyond:
# a corrupt label switches no task off.
LARGEST_RATIO = 10.0

# Adam moves a weight by about one learning rate a step. That is slow for a logarithm, so θ counts
# this many times in s.
STEP_SCALE = 3.0

# The gradient of θ, as a share of that of s. Plain gradient descent thus moves s by a tenth of a
# learning rate times its gradient; with momentum, larger steps would follow single batches.
GRADIENT_SCALE = 0.1 / STEP_SCALE

# θ moves s by at most so much, down and up. The σ of a closed form stays within a factor of e^½ of
# it. A temperature only falls: while a network is worse than a guess, a higher one would lower the
# loss sooner than learning does, and leave no gradient to learn from.
CLOSED_FORM_RANGE = (-1.0, 1.0)
TEMPERATURE_RANGE = (-2 * BOUND, 0.0)
OTHER_RANGE = (-2 * BOUND, 2 * BOUND)


class LogVariances(keras.layers.Layer):
    """The trainable log-variances `s = log σ²` of all tasks, as one vector.

    s is the closed-form optimum of an exponentially forgotten mean of the task's loss, plus a
    trained correction θ. A likelihood that has no closed form may name another loss to follow. Else
    s is where it began plus θ, and a temperature only falls.

    A σ that is given to begin with counts as one batch of such errors. A batch without any observed
    element of a task, without any error, or with one that overflows, says nothing of its noise.
    Unless `trained`, θ is 0 where there is a closed form.
    """

    def __init__(self, groups: Sequence[Group], trained: bool, dtype: str) -> None:
        super().__init__(name="log_variances", dtype=dtype, autocast=False)
        self._groups = groups
        self._places = {task: at for group in groups for task, at in group.places().items()}
        # With no loss to follow, the running mean is that of exp(s), and never moves.
        self._power = self._each(lambda each: each.power if each.follows_losses else 1.0)
        self._offset = self._each(lambda each: each.optimum(1.0) if each.follows_losses else 0.0)
        self._follows = self._each(lambda each: each.trainable and each.follows_losses) == 1
        self._is_corrected = (
            self._each(lambda each: each.trainable and (trained or not each.has_closed_form)) == 1
        )
        lowest = self._each(lambda each: 2 * math.log(each.min_sigma or 1e-300))
        self._lowest = np.maximum(lowest, -BOUND).astype(self.variable_dtype)
        # The sum over the last batches must not overflow, from which it would not come back.
        self._largest_loss = float(np.finfo(dtype).max) / MOST

    def build(self, mean_losses_shape: Any = None) -> None:
        """Creates θ, and the sum and the count of the running mean."""
        initial = np.concatenate([group.initial_log_variances() for group in self._groups])
        # NaN stands for the optimum of the first batch.
        state = self._state_at(np.nan_to_num(initial), np.where(np.isnan(initial), 0.0, 1.0))
        lowest = self._each(lambda likelihood: _range(likelihood)[0] / STEP_SCALE)
        highest = self._each(lambda likelihood: _range(likelihood)[1] / STEP_SCALE)
        self.theta = self.add_weight(
            name="theta",
            shape=initial.shape,
            initializer="zeros",
            constraint=lambda theta: ops.clip(theta, lowest, highest),
        )
        # All replicas assign the same value, so none has to wait for another.
        self.running = keras.Variable(
            lambda shape, dtype: ops.convert_to_tensor(state[1:], dtype),
            shape=(2, *initial.shape),
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
        is_corrected = is_taught = ops.logical_and(counts > 0, self._is_corrected)
        if mean_losses is not None and training and self.trainable:
            losses = ops.stop_gradient(mean_losses)
            limits = LARGEST_RATIO * ops.divide_no_nan(sums, counts)
            is_usual = ops.logical_or(losses <= limits, np.logical_not(self._follows))
            # After one enormous gradient, Adam would leave θ where it is for thousands of steps.
            is_taught = ops.logical_and(is_corrected, is_usual)
            sums, counts = self._follow(losses, limits, sums, counts)
            self.running.assign(ops.stack([sums, counts]))
        # Before the first batch that tells, σ is 1.
        is_known = counts > 0
        means = ops.where(is_known, ops.divide_no_nan(sums, counts), ops.ones_like(sums))
        power, offset = map(ops.convert_to_tensor, (self._power, self._offset))
        optima = ops.where(is_known, ops.log(means) / power + offset, ops.zeros_like(sums))
        theta = ops.convert_to_tensor(self.theta)
        theta = ops.where(is_corrected, theta, ops.zeros_like(theta))
        steps = GRADIENT_SCALE * ops.where(is_taught, theta, ops.stop_gradient(theta))
        log_variances = ops.clip(optima + STEP_SCALE * theta, self._lowest, BOUND)
        return steps + ops.stop_gradient(log_variances - steps)

    def _follow(
        self, losses: Tensor, limits: Tensor, sums: Tensor, counts: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The sum and the count of the running mean after a batch."""
        tells = ops.logical_and(losses > 0, losses < self._largest_loss)
        tells = ops.logical_and(tells, self._follows)
        losses = ops.where(counts > 0, ops.minimum(losses, limits), losses)
        more = ops.where(counts < FEWEST, counts + 1.0, counts + SHARE)
        longer = ops.minimum(more, MOST)
        kept = ops.divide_no_nan(longer - 1.0, counts)
        return ops.where(tells, kept * sums + losses, sums), ops.where(tells, longer, counts)

    def by_task(self) -> dict[str, Any]:
        """The log-variances of each task as NumPy numbers, or a vector of one for each channel."""
        vector = ops.convert_to_numpy(self())
        return {task: vector[place] for task, place in self._places.items()}

    def assign(self, log_variances: Mapping[str, Any]) -> None:
        """Sets those of each task, as if recent batches had told them; NaN leaves one as it is."""
        vector = np.full(self.theta.shape, np.nan)
        for task, value in log_variances.items():
            if task not in self._places:
                raise ValueError(
                    f"Task '{task}': no log-variance can be set. The tasks are "
                    f"{list(self._places)}. Leave the entry out, or mend its name."
                )
            expected = vector[self._places[task]].shape
            array = np.asarray(value)
            if (
                array.dtype.kind not in "fiu"
                or array.shape != expected
                or np.any(np.abs(array) > BOUND)
            ):
                raise ValueError(
                    f"Task '{task}': its log-variance must have the shape {expected}, between "
                    f"{-BOUND} and {BOUND}, or NaN to stay as it is. Received: {value!r}. Set "
                    "log σ², with σ in the units of the task."
                )
            vector[self._places[task]] = array
        state = self._state_at(vector, np.full(vector.shape, FEWEST))
        self._set_state(np.where(np.isnan(vector), self._state(), state))

    def save_own_variables(self, store: Any) -> None:
        """Saves the state of each task under its name."""
        state = self._state()
        for task, place in self._places.items():
            store[task] = state[:, place]

    def load_own_variables(self, store: Any) -> None:
        """Loads the tasks that are there, and then refuses a store of other tasks."""
        state = self._state()
        expected = {task: state[0, place].shape for task, place in self._places.items()}
        names = store.keys()
        received = {task: tuple(store[task].shape[1:]) for task in names}
        known = [task for task in expected if expected[task] == received.get(task)]
        for task in known:
            state[:, self._places[task]] = store[task]
        self._set_state(state)
        if expected != received:
            advice = f"those of {known} are loaded" if known else "all other weights are loaded"
            raise ValueError(
                f"Expected the log-variances of the tasks {expected}, with their shapes. Received: "
                f"those of {received}. With skip_mismatch=True, {advice}."
            )

    def _state(self) -> np.ndarray:
        """θ, and the sums and counts of the running mean."""
        return np.concatenate([self.theta.numpy()[np.newaxis], self.running.numpy()])

    def _set_state(self, state: np.ndarray) -> None:
        self.theta.assign(state[0].astype(self.variable_dtype))
        self.running.assign(state[1:].astype(self.variable_dtype))

    def _state_at(self, log_variances: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """The state of these log-variances, after so many batches."""
        losses = np.exp(self._power * (log_variances - self._offset))
        losses = np.clip(losses, np.finfo(self.variable_dtype).tiny, self._largest_loss)
        return np.stack([np.zeros_like(losses), counts * losses, counts])

    def _each(self, value: Any) -> np.ndarray:
        """The value of a function of the likelihood, for each log-variance."""
        values = [np.full(group.size, value(group.likelihood)) for group in self._groups]
        return np.concatenate(values).astype(self.variable_dtype)


def _range(likelihood: Likelihood) -> tuple[float, float]:
    """By how much θ may move s, down and up."""
    if likelihood.follows_losses:
        return CLOSED_FORM_RANGE
    return TEMPERATURE_RANGE if likelihood.is_tempered else OTHER_RANGE
