"""The layer that owns the log-variances and adds the combined loss."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from numbers import Real
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from keras_uncertainty_mtl import likelihoods
from keras_uncertainty_mtl.direct_ops import (
    cast,
    clip,
    constant,
    divide_no_nan,
    exp,
    log,
    reduce_sum,
    relu,
    sign,
    stack,
    stop_gradient,
    unstack,
    where,
    zeros_like,
)
from keras_uncertainty_mtl.gradients import custom_gradient
from keras_uncertainty_mtl.likelihoods import Likelihood, closed_form_optimum
from keras_uncertainty_mtl.observations import Observations, stack_key, stackable_kind
from keras_uncertainty_mtl.ordering import after
from keras_uncertainty_mtl.reductions import global_mean, num_replicas, sum_over_replicas
from keras_uncertainty_mtl.shapes import Shape
from keras_uncertainty_mtl.statistics import TaskStatistics
from keras_uncertainty_mtl.structures import by_task, naming_task

Tensor = Any

# Adam and its like move a weight by about one learning rate a step, whatever its gradient, which is
# far too slow for a logarithm. The trainable weight therefore counts this many times in it.
STEP_SCALE = 10.0

# What gradient descent, whose steps are as large as its gradients, moves a log-variance by, for one
# that is trained as any weight is. With momentum, more would have it follow single batches.
DESCENT_SCALE = 0.5

# What a batch counts for in the running mean of a closed form: as one of about the last 20.
RUNNING_RATE = 0.05

# How far from the closed form an optimizer may have a log-variance: 5% of σ. Where the errors are
# steady, the running mean of batches of 64 is within half of that.
BAND = 0.1

# Of |log σ²|. Single precision holds exp(±60) with room for errors far from what σ stands for.
BOUND = 60.0


class _Constants(NamedTuple):
    """What each log-variance is multiplied with, and the like; a vector of each.

    A mean loss `L` counts as `loss_weight · (factor · exp(exponent · s) · L + half · s)`, with
    `factor = 1`, `exponent = half = 0` where σ does more than multiply it, and `L` is the mean
    negative log-likelihood already. A closed form, which `power` and `offset` tell, is followed
    where `0 < L < limit`, and no further from it than `band` a log-variance may be. One that has
    none has a limit of 0 and an infinite band.
    """

    loss_weight: Any
    factor: Any
    exponent: Any
    half: Any
    power: Any
    offset: Any
    limit: Any
    band: Any

    def closed_form(self, mean_loss: Tensor) -> Tensor:
        """The optimum of each log-variance."""
        return log(mean_loss) / self.power + self.offset


@keras.saving.register_keras_serializable(package="keras_uncertainty_mtl")
class UncertaintyWeighting(keras.layers.Layer):
    """Weighs the losses of several tasks by the uncertainty that each turns out to have.

    With `s = log σ²`, a task's trainable log-variance, and `L` its mean raw loss, the layer adds

    ```
    Σ over tasks: loss_weight · (scale · exp(-power · s) · L + ½ · s)
    ```

    through `add_loss`, `scale` and `power` given by the task's likelihood (½ and 1 for `Gaussian`).
    The exact classification likelihoods put `exp(-s)` inside of their softmax instead. The sum is a
    negative log-likelihood, so it becomes negative when the noise is small; that is right.

    The mean is over observed elements, `Σ w·L / Σ w` with sample weights: an element whose target
    is missing, which a Keras mask leaves out, or whose weight is zero contributes nothing. A batch
    without any observed element of a task, or without any error at all, says nothing of its noise.

    No log-variance leaves ±60, so that σ stays between 1e-13 and 1e13 in the units of its task,
    however small or large the errors are; it comes back from there as soon as they let it. A NaN or
    infinity that reaches a loss makes the combined loss NaN.

    Training and evaluation report `{task}_loss`, the raw loss, and `{task}_sigma`.

    Args:
        tasks: Dict from each task's name to its likelihood, or to a Keras loss, its name or config.
        loss_weights: Dict from task to a number that multiplies its loss, for tasks that matter
            more than their noise says. `None`, or a task left out: 1.
        update: How log-variances follow the errors. `"closed_form"`: as the optimum
            `log(2 · scale · power · L̄) / power`, with `L̄` a running mean over about the last 20
            batches, which nothing has to train. `"trained"`: by the optimizer of the model, as
            weights, but never further than 5% of σ from that optimum, the lag of `L̄` behind errors
            that fall taken out (Brown's double exponential smoothing). Where there is no closed
            form, as for the exact classification likelihoods, they are trained alone.
        **kwargs: Arguments of `keras.layers.Layer`.

    Call arguments:
        predictions: Dict of tensors keyed by task, or a sequence of them in task order.
        targets: Structure of the tasks' targets. Without, no loss is added.
        sample_weight: Structure of weights for each sample or each element, or one tensor for all
            tasks. Optional.
        training: Whether log-variances may start from this batch.

    Returns:
        The predictions, unchanged.

    Raises:
        ValueError: If a task's name, likelihood, prediction, target or weight is not as expected.

    Example:

    ```python
    weighting = UncertaintyWeighting({"depth": Laplace(), "classes": Categorical()})
    predictions = {"depth": depth, "classes": logits}
    targets = weighting.target_inputs(predictions)
    model = keras.Model(
        {"image": image, **{t.name: t for t in targets.values()}}, weighting(predictions, targets)
    )
    model.compile("adam")
    model.fit({"image": x, "depth_target": y1, "classes_target": y2})
    ```

    References:
        - [Kendall, Gal & Cipolla, 2018](https://arxiv.org/abs/1705.07115)
        - Brown, *Smoothing, Forecasting and Prediction of Discrete Time Series*, 1963
    """

    def __init__(
        self,
        tasks: Mapping[str, Any],
        loss_weights: Mapping[str, float] | None = None,
        update: str = "trained",
        **kwargs: Any,
    ) -> None:
        # Without autocast, targets and predictions arrive as they are: losses need their precision.
        super().__init__(autocast=False, **kwargs)
        self.supports_masking = True
        self.tasks = _validate_tasks(tasks)
        self.loss_weights = _validate_loss_weights(loss_weights, list(self.tasks))
        if update not in ("trained", "closed_form"):
            raise ValueError(
                f'`update` must be "trained" or "closed_form". Received: update={update!r}'
            )
        self.update = update

    def build(self, predictions_shape: Any) -> None:
        """Creates the log-variances: one for each task, or for each channel where a task has so."""
        if _is_shape(predictions_shape):
            predictions_shape = [predictions_shape]
        shapes = by_task(list(self.tasks), predictions_shape, "predictions")
        initial: list[float | None] = []
        self._entries: dict[str, slice] = {}
        for task, likelihood in self.tasks.items():
            with naming_task(task):
                entries = _initial_log_variances(likelihood, shapes[task])
            self._entries[task] = slice(len(initial), len(initial) + len(entries))
            initial += entries

        self.log_variance = self.add_weight(
            name="log_variance",
            shape=(len(initial),),
            initializer="zeros",
            dtype=self._loss_dtype,
            autocast=False,
        )
        self._task_of_entry = self._each_entry(range(len(self.tasks))).astype("int32")
        self._loss_weight = self._each_entry(self.loss_weights.values())
        self._scale = self._each_entry(likelihood.scale for likelihood in self.tasks.values())
        self._power = self._each_entry(likelihood.power for likelihood in self.tasks.values())
        multiplies = self._each_entry(likelihood.weights_loss for likelihood in self.tasks.values())
        self._sums_elements = not multiplies.all()
        has_closed_form = self._each_entry(
            likelihood.has_closed_form for likelihood in self.tasks.values()
        ).astype(bool)
        self._any_closed_form = bool(has_closed_form.any())
        scale = np.where(has_closed_form, self._scale, 0.5)
        power = np.where(has_closed_form, self._power, 1.0)
        constants = _Constants(
            loss_weight=self._loss_weight,
            factor=np.where(multiplies, self._scale, 1.0),
            exponent=np.where(multiplies, -self._power, 0.0),
            half=np.where(multiplies, 0.5, 0.0),
            power=power,
            offset=closed_form_optimum(1.0, scale, power),
            limit=np.where(has_closed_form, math.inf, 0.0),
            band=np.where(has_closed_form, BAND, math.inf),
        )
        self._constants = constant(np.stack(constants).astype(self._loss_dtype))
        starts = np.array([start or 0.0 for start in initial])
        # The first batch is all that is known, or is weighed by the σ that is given.
        rates = np.array([1.0 if start is None else 0.0 for start in initial])
        # What the weight adds to, a running mean of the losses, one of its closed form, and what
        # the next batch counts for in these: one variable, as each costs every step some
        # microseconds.
        self.state = _replica_local_variable(
            "state", self._state_at(starts, rates), self._loss_dtype
        )
        self._heteroscedastic = any(
            likelihood.heteroscedastic for likelihood in self.tasks.values()
        )
        kinds = [stackable_kind(likelihood) for likelihood in self.tasks.values()]
        # A kind of which there is but one need not be looked at in every step.
        self._stackable_kinds = {
            task: kind if kinds.count(kind) > 1 else None
            for task, kind in zip(self.tasks, kinds, strict=True)
        }
        self._statistics = TaskStatistics(list(self.tasks))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the layer; without targets it hands tensors on, and that is all."""
        # Keras would look at each of them several times, in every step of PyTorch, which compiles
        # none.
        hands_on = self.built and len(args) == 1 and kwargs.keys() <= {"training"}
        is_plain = type(self).call is UncertaintyWeighting.call and not self.activity_regularizer
        if hands_on and is_plain and _are_tensors(args[0]):
            return args[0]
        return super().__call__(*args, **kwargs)

    def call(
        self,
        predictions: Any,
        targets: Any = None,
        sample_weight: Any = None,
        training: bool = False,
    ) -> Any:
        """Adds the combined loss, if there are targets, and returns the predictions."""
        if targets is not None:
            # JAX drops what a layer's call does to a metric, so it would report zeros.
            report = keras.backend.backend() != "jax"
            loss = self.combined_loss(predictions, targets, sample_weight, training, report)
            if num_replicas() > 1:
                # Keras keeps what `add_loss` adds in one list for all replicas, and these have just
                # waited for each other, so that it may hold another one's loss.
                self._clear_losses()
            self.add_loss(loss)
        return predictions

    def compute_output_spec(
        self,
        predictions: Any,
        targets: Any = None,
        sample_weight: Any = None,
        training: bool = False,
    ) -> Any:
        """The predictions' own shapes and dtypes, once the targets are seen to fit them."""
        if targets is not None:
            named_predictions, named_targets, _ = self._named(predictions, targets, sample_weight)
            for task, likelihood in self.tasks.items():
                with naming_task(task):
                    likelihood.align(named_targets[task], named_predictions[task])
        return keras.tree.map_structure(
            lambda tensor: keras.KerasTensor(tensor.shape, tensor.dtype), predictions
        )

    def combined_loss(
        self,
        predictions: Any,
        targets: Any,
        sample_weight: Any = None,
        training: bool = False,
        report: bool = True,
    ) -> Tensor:
        """The combined negative log-likelihood of a batch.

        A model that returns its loss, rather than adding it, calls this instead of the layer.

        Args:
            predictions: As in the call of the layer.
            targets: As in the call of the layer.
            sample_weight: As in the call of the layer.
            training: Whether log-variances may start from this batch.
            report: Whether the batch counts in what Keras reports of the tasks.

        Returns:
            Scalar tensor, NaN if any of the tasks' losses is not finite.
        """
        batches = self._stacked_observations(predictions, targets, sample_weight)
        loss_sums, weight_sums = zip(
            *(batch.loss_sums() for batch in batches.values()), strict=True
        )
        order = self._order_of(batches)
        sums, totals = _in_order(order, loss_sums), _in_order(order, weight_sums)
        losses, weights = self._sum_by_task(sums), self._sum_by_task(totals)

        totals = sum_over_replicas(totals)
        if self._heteroscedastic:
            sums = _in_order(order, [batch.scaled_loss_sum() for batch in batches.values()])
        means = global_mean(sums, totals)
        constants = self._each_constant()
        log_variance = self._follow(means, constants, training)
        if report:
            self._statistics.update_state(losses, weights, self._task_sigmas(log_variance))

        if self._sums_elements:
            # Not both likelihoods of all elements at a time, the one at s of 0 and the one at s.
            log_variance = after(log_variance, *loss_sums)
            sums = _in_order(
                order,
                [
                    loss_sum
                    if batch.likelihood.weights_loss
                    else batch.negative_log_likelihood_sum(self._of_tasks(log_variance, tasks))
                    for (tasks, batch), loss_sum in zip(batches.items(), loss_sums, strict=True)
                ],
            )
            means = global_mean(sums, totals)
        factors = constants.factor * exp(constants.exponent * log_variance)
        negative_log_likelihoods = factors * means + constants.half * log_variance
        shares = constants.loss_weight * self._shares(totals)
        loss = reduce_sum(shares * negative_log_likelihoods)

        # An infinite loss is as wrong as NaN, and has gradients as wrong.
        return loss + where(abs(loss) < math.inf, zeros_like(loss), math.nan)

    def observations(
        self, predictions: Any, targets: Any, sample_weight: Any = None
    ) -> dict[str, Observations]:
        """What a batch holds of each task.

        Args:
            predictions: As in the call of the layer.
            targets: As in the call of the layer.
            sample_weight: As in the call of the layer.

        Returns:
            Dict from task to its `Observations`.
        """
        predictions, targets, sample_weight = self._named(predictions, targets, sample_weight)
        batches = {}
        for task, likelihood in self.tasks.items():
            with naming_task(task):
                batches[task] = Observations.of(
                    likelihood,
                    predictions[task],
                    targets[task],
                    sample_weight[task],
                    self._loss_dtype,
                )
        return batches

    def _stacked_observations(
        self, predictions: Any, targets: Any, sample_weight: Any
    ) -> dict[tuple[str, ...], Observations]:
        """What a batch holds, tasks that may be computed together as one."""
        predictions, targets, weights = self._named(predictions, targets, sample_weight)
        stacks: dict[Any, list[str]] = {}
        for task, kind in self._stackable_kinds.items():
            key = stack_key(kind, predictions[task], targets[task], weights[task])
            stacks.setdefault(key or task, []).append(task)
        batches = {}
        for tasks in stacks.values():
            with naming_task(tasks[0]):
                batches[tuple(tasks)] = Observations.of_tasks(
                    self.tasks[tasks[0]],
                    [predictions[task] for task in tasks],
                    [targets[task] for task in tasks],
                    [weights[task] for task in tasks],
                    self._loss_dtype,
                )
        return batches

    def target_inputs(self, predictions: Any) -> dict[str, Any]:
        """An input for the targets of each task, for a functional model that holds the layer.

        Args:
            predictions: Structure of the tasks' symbolic predictions, as in the call of the layer.

        Returns:
            Dict from task to a `keras.Input` named `"{task}_target"`, with the shape and dtype that
            the task's likelihood expects. Keras itself refuses targets of any other shape, as
            one-hot ones for `Categorical()`: those go with `Categorical(sparse=False)`.

        Raises:
            ValueError: If a task has no prediction, or one that its likelihood cannot take.
        """
        inputs = {}
        for task, prediction in by_task(list(self.tasks), predictions, "predictions").items():
            likelihood = self.tasks[task]
            with naming_task(task):
                shape = likelihood.target_shape(tuple(prediction.shape))
            inputs[task] = keras.Input(
                batch_shape=shape, dtype=likelihood.target_dtype, name=f"{task}_target"
            )
        return inputs

    def sigmas(self) -> dict[str, Any]:
        """Each task's σ, the standard deviation of its noise in its own units.

        For a classification task σ² is the temperature of its logits.

        Returns:
            Dict from task to a NumPy scalar, or a vector where each channel has its own.
        """
        sigmas = np.exp(0.5 * ops.convert_to_numpy(self._current_log_variance()))
        return {task: self._of_task(sigmas, task) for task in self.tasks}

    def task_weights(self) -> dict[str, Any]:
        """The factor that multiplies each task's raw loss, `loss_weights` included.

        For the exact classification likelihoods, where there is no such factor, it is that of the
        approximate form, `exp(-s)`.

        Returns:
            Dict from task to a NumPy scalar, or a vector where each channel has its own.
        """
        log_variance = ops.convert_to_numpy(self._current_log_variance())
        weights = self._loss_weight * self._scale * np.exp(-self._power * log_variance)
        return {task: self._of_task(weights, task) for task in self.tasks}

    def set_log_variances(self, log_variances: Mapping[str, Any]) -> None:
        """Puts log-variances where training goes on from.

        Args:
            log_variances: Dict from each task to its `s = log σ²`: a number, or a vector of one for
                each channel; NaN where it is to stay as it is.
        """
        values = np.concatenate([np.ravel(log_variances[task]) for task in self.tasks])
        for variable, new in (
            (self.state, self._state_at(values, np.full_like(values, RUNNING_RATE))),
            (self.log_variance, np.zeros_like(values)),
        ):
            variable.assign(np.where(np.isnan(values), variable.numpy(), new))

    def get_config(self) -> dict[str, Any]:
        """The arguments of the constructor, for saving."""
        return {
            **super().get_config(),
            "tasks": {
                task: keras.saving.serialize_keras_object(likelihood)
                for task, likelihood in self.tasks.items()
            },
            "loss_weights": dict(self.loss_weights),
            "update": self.update,
        }

    @property
    def _loss_dtype(self) -> str:
        # Half precision has neither the range of a squared error nor the steps of a log-variance.
        return "float64" if self.variable_dtype == "float64" else "float32"

    def _named(
        self, predictions: Any, targets: Any, sample_weight: Any
    ) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor | None]]:
        tasks = list(self.tasks)
        if sample_weight is None or not isinstance(sample_weight, (dict, list, tuple)):
            sample_weight = dict.fromkeys(tasks, sample_weight)
        return (
            by_task(tasks, predictions, "predictions"),
            by_task(tasks, targets, "targets"),
            by_task(tasks, sample_weight, "sample_weight", optional=True),
        )

    def _current_log_variance(self) -> Tensor:
        """The log-variances as they are, which an optimizer may just have moved too far."""
        if not self.built:
            raise ValueError(
                "The layer has no log-variances yet. Call it on predictions first, or make a model "
                "with it."
            )
        weight = ops.convert_to_tensor(self.log_variance)
        initial, mean_loss, lagging, _ = unstack(_snapshot(self.state))
        log_variance = trained = initial + STEP_SCALE * stop_gradient(weight)
        constants = self._each_constant()
        fixed = constants.limit > 0
        if self._any_closed_form:
            running = constants.closed_form(mean_loss)
            log_variance = self._near_closed_form(trained, running, lagging, constants)
            if self.update == "trained":
                # Only what is not where the optimizer has put it.
                fixed = log_variance != trained
        return custom_gradient(_bounded)(weight, log_variance, fixed)

    def _each_constant(self) -> _Constants:
        return _Constants(*unstack(ops.convert_to_tensor(self._constants)))

    def _state_at(self, log_variances: np.ndarray, rates: np.ndarray) -> np.ndarray:
        """The state where these log-variances are the optimum."""
        constants = _Constants(*ops.convert_to_numpy(self._constants))
        # A power of a σ that is allowed may be more than what the dtype holds.
        representable = np.finfo(self._loss_dtype)
        mean_losses = np.exp(constants.power * (log_variances - constants.offset))
        mean_losses = np.clip(mean_losses, representable.tiny, representable.max)
        return np.stack([log_variances, mean_losses, log_variances, rates])

    def _near_closed_form(
        self, log_variance: Tensor, running: Tensor, lagging: Tensor, constants: _Constants
    ) -> Tensor:
        """The nearest to log-variances that is no further from the closed form than it may be."""
        if self.update == "closed_form":
            return where(constants.limit > 0, running, log_variance)
        # Brown's smoothing: what a mean lags behind errors that fall, its mean lags once more.
        expected = running - relu(lagging - running)
        return clip(log_variance, expected - constants.band, expected + constants.band)

    def _follow(self, means: Tensor, constants: _Constants, training: bool) -> Tensor:
        """The log-variances, once those that have a closed form have followed it to this batch."""
        if not (training and self.trainable and self._any_closed_form):
            return self._current_log_variance()
        weight = ops.convert_to_tensor(self.log_variance)
        initial, mean_loss, lagging, next_rate = unstack(_snapshot(self.state))
        # It may be beyond the bound.
        log_variance = initial + STEP_SCALE * stop_gradient(weight)
        # A batch that is not observed has no error, one that is perfect says nothing of it, and one
        # that overflows may be left out by the optimizer, as in mixed precision.
        means = stop_gradient(means)
        follows = (means > 0) & (means < constants.limit)
        rate = where(follows, next_rate, 0.0)
        starts = rate == 1
        # A difference to the first batch could lose all of its digits. Of the smallest losses a
        # share would be 0, where a share of a difference to them does no harm.
        change = rate * (where(follows, means, mean_loss) - mean_loss)
        mean_loss = where(starts, means, mean_loss + change)
        running = constants.closed_form(mean_loss)
        lagging = lagging + rate * (running - lagging)
        # At its optimum a log-variance has no gradient. Not even the rounding error of one may be
        # left, for an optimizer such as Adam would make a full step of it.
        at_optimum = starts if self.update == "trained" else follows

        start = where(at_optimum, running, log_variance)
        followed = self._near_closed_form(start, running, lagging, constants)
        initial = initial + (followed - log_variance)
        next_rate = where(follows, RUNNING_RATE, next_rate)
        self.state.assign(stack([initial, mean_loss, lagging, next_rate]))
        return custom_gradient(_bounded)(weight, followed, at_optimum)

    def _task_sigmas(self, log_variance: Tensor) -> Tensor:
        """One σ for each task: the root mean square over its channels."""
        if len(self._task_of_entry) == len(self.tasks):
            return exp(0.5 * log_variance)
        variances = exp(log_variance)
        return ops.sqrt(self._sum_by_task(variances) / self._sum_by_task(ops.ones_like(variances)))

    def _sum_by_task(self, values: Tensor) -> Tensor:
        if len(self._task_of_entry) == len(self.tasks):
            return values
        return ops.segment_sum(values, self._task_of_entry, num_segments=len(self.tasks))

    def _shares(self, totals: Tensor) -> Tensor:
        """What part of its task's elements each entry has: a mean is over all of its channels."""
        if len(self._task_of_entry) == len(self.tasks):
            return cast(totals != 0, self._loss_dtype)
        of_tasks = ops.take(self._sum_by_task(totals), self._task_of_entry)
        return divide_no_nan(totals, of_tasks)

    def _each_entry(self, values: Iterable[float]) -> np.ndarray:
        """The tasks' values, repeated for each log-variance of a task."""
        counts = [entries.stop - entries.start for entries in self._entries.values()]
        return np.repeat(np.array(list(values), self._loss_dtype), counts)

    def _of_tasks(self, values: Any, tasks: tuple[str, ...]) -> Any:
        """The values of one task, or of several that are stacked, along the first axis."""
        if len(tasks) == 1:
            return self._of_task(values, tasks[0])
        entries = self._entries_of([tasks])
        if self.tasks[tasks[0]].per_channel:
            entries = entries.reshape(len(tasks), -1)
        return ops.take(values, entries, axis=0)

    def _entries_of(self, stacks: Iterable[tuple[str, ...]]) -> np.ndarray:
        """Where the log-variances of stacked tasks are."""
        indices = np.arange(len(self._task_of_entry), dtype="int32")
        return np.concatenate([indices[self._entries[task]] for tasks in stacks for task in tasks])

    def _order_of(self, stacks: Iterable[tuple[str, ...]]) -> np.ndarray | None:
        """What takes entries of stacked tasks back to their places; `None` if they are there."""
        if [task for tasks in stacks for task in tasks] == list(self.tasks):
            return None
        return np.argsort(self._entries_of(stacks)).astype("int32")

    def _of_task(self, values: Any, task: str) -> Any:
        entries = self._entries[task]
        return values[entries] if self.tasks[task].per_channel else values[entries.start]


def _validate_tasks(tasks: Any) -> dict[str, Likelihood]:
    if not isinstance(tasks, Mapping) or not tasks:
        raise ValueError(
            "`tasks` must be a dict from the name of each task to its likelihood, with one task or "
            f"more. Received: tasks={tasks!r}"
        )
    validated = {}
    for task, likelihood in tasks.items():
        if not isinstance(task, str) or not task or "/" in task:
            raise ValueError(
                "The name of a task must be a string that is not empty and has no '/' in it. "
                f"Received: {task!r}"
            )
        with naming_task(task):
            validated[task] = likelihoods.get(likelihood)
    return validated


def _validate_loss_weights(loss_weights: Any, tasks: list[str]) -> dict[str, float]:
    weights = dict.fromkeys(tasks, 1.0)
    if loss_weights is None:
        return weights
    if not isinstance(loss_weights, Mapping):
        raise ValueError(
            f"`loss_weights` must be a dict from task to a number. Received: {loss_weights!r}"
        )
    for task, weight in loss_weights.items():
        if task not in weights:
            raise ValueError(
                f"`loss_weights` names the unknown task {task!r}. The tasks are {tasks}."
            )
        if not isinstance(weight, Real) or not 0 <= float(weight) < math.inf:
            raise ValueError(
                f"Task '{task}': its entry in `loss_weights` must be a finite number that is not "
                f"negative. Received: {weight!r}"
            )
        weights[task] = float(weight)
    return weights


def _initial_log_variances(likelihood: Likelihood, prediction_shape: Shape) -> list[float | None]:
    """The log-variance that each σ of a task starts from, `None` for its optimum on the data."""
    target_shape = likelihood.target_shape(prediction_shape)
    has_channels = len(prediction_shape) > 1 and prediction_shape[-1] is not None
    if likelihood.per_channel and not has_channels:
        raise ValueError(
            "`per_channel=True` expects predictions whose last axis is of channels, as many as are "
            "known beforehand. "
            f"Received: predictions of shape {prediction_shape}"
        )
    channels = target_shape[-1] or 1 if likelihood.per_channel else 1
    sigmas = likelihood.initial_sigma
    if isinstance(sigmas, list) and len(sigmas) != channels:
        raise ValueError(
            f"`initial_sigma` must be one number or {channels} of them, one for each channel. "
            f"Received: {len(sigmas)} numbers."
        )
    if sigmas is None:
        return [None if likelihood.has_closed_form else 0.0] * channels
    starts = [2.0 * math.log(sigma) for sigma in np.broadcast_to(np.array(sigmas), channels)]
    if max(map(abs, starts)) > BOUND:
        raise ValueError(
            "`initial_sigma` must be between 1e-13 and 1e13. "
            f"Received: initial_sigma={sigmas!r}. Have the task in a unit nearer to its noise."
        )
    return [*starts]


def _bounded(weight: Tensor, log_variance: Tensor, fixed: Tensor) -> tuple[Tensor, Any]:
    """Log-variances within the bound, as functions of the weight where they are not fixed.

    An optimizer that normalises gradients moves `s` by `STEP_SCALE` learning rates a step, and
    plain gradient descent by `DESCENT_SCALE · ∂L/∂s` of them. With the true gradient it would be
    `STEP_SCALE² · ∂L/∂s`, and diverge. None points out of the bound. The gradient of `clip` alone
    is 0 out there, both ways, so that nothing would ever come back.
    """

    def gradient(upstream: Tensor) -> tuple[Tensor, None, None]:
        # An optimizer goes against the gradient: further out if it has the opposite sign.
        points_out = log_variance * sign(upstream) <= -BOUND
        damped = DESCENT_SCALE / STEP_SCALE * upstream
        # All else that they follow from is not differentiated.
        return where(points_out | fixed, 0.0, damped), None, None

    return clip(log_variance, -BOUND, BOUND), gradient


def _are_tensors(predictions: Any) -> bool:
    """Whether none of the predictions is symbolic, or has yet to become a tensor."""
    if isinstance(predictions, dict):
        predictions = predictions.values()
    elif not isinstance(predictions, (list, tuple)):
        predictions = [predictions]
    return all(map(ops.is_tensor, predictions))


def _is_shape(value: Any) -> bool:
    return not isinstance(value, dict) and all(
        size is None or isinstance(size, int) for size in value
    )


def _replica_local_variable(name: str, values: Any, dtype: str) -> keras.Variable:
    """A variable that all replicas set to the same value, none waiting for another."""
    return keras.Variable(
        lambda shape, dtype=None: ops.convert_to_tensor(values, dtype),
        shape=np.shape(values),
        dtype=dtype,
        trainable=False,
        autocast=False,
        aggregation="only_first_replica",
        synchronization="on_read",
        name=name,
    )


def _snapshot(variable: Any) -> Tensor:
    """A variable's value, which stays when something else is assigned to it."""
    value = ops.convert_to_tensor(variable)
    if keras.backend.backend() != "torch":
        return value
    import torch

    # Compiled, a backward pass computes again what it can from its inputs, so from the variable,
    # by then another: the copy must be made where the compiler does not see that it is one.
    return torch.compiler.disable(torch.clone)(value) if torch.compiler.is_compiling() else value


def _in_order(order: np.ndarray | None, values: Iterable[Tensor]) -> Tensor:
    """One vector of all entries of scalars and vectors, in this order; `None`: as they come."""
    values = list(values)
    if all(len(value.shape) == 0 for value in values):
        vector = stack(values)
    else:
        vector = ops.concatenate([ops.reshape(value, (-1,)) for value in values])
    return vector if order is None else ops.take(vector, order, axis=0)
