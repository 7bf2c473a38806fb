"""The layer that owns the log-variances and adds the combined loss."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_uncertainty_mtl._checks import check_predictions, is_traced, known_training
from keras_uncertainty_mtl._groups import group_tasks
from keras_uncertainty_mtl._keras_internals import take_losses
from keras_uncertainty_mtl._log_variances import LogVariances
from keras_uncertainty_mtl._loss_weights import LossWeights
from keras_uncertainty_mtl._metrics import TaskStatistics
from keras_uncertainty_mtl._observations import (
    Observations,
    labelled_tasks,
    observe,
    tensors_by_task,
)
from keras_uncertainty_mtl._reductions import (
    concatenate,
    concatenate_by_task,
    global_mean,
    nan_unless,
    num_replicas,
    sum_over_replicas,
)
from keras_uncertainty_mtl._shapes import Tensor
from keras_uncertainty_mtl._structures import by_task, in_structure_of, naming_task
from keras_uncertainty_mtl.likelihoods.identifiers import validate_tasks


@keras.saving.register_keras_serializable(package="keras_uncertainty_mtl")
class UncertaintyWeighting(keras.layers.Layer):
    """Weighs the losses of several tasks by the homoscedastic uncertainty of each.

    With `s = log σ²`, a task's trainable log-variance, and `L` its mean raw loss, the layer adds
    the sum over tasks of `loss_weight · (scale · exp(-power · s) · L + ½ · s)` by `add_loss`. The
    task's likelihood gives `scale` and `power`: ½ and 1 for `Gaussian`. The exact classification
    likelihoods put `exp(-s)` inside of their softmax instead, and the layer returns their logits at
    this temperature. The sum is a negative log-likelihood, so it may be negative.

    The mean is over observed elements, `Σ w·L / Σ w` with sample weights. An element whose target
    is missing, which a Keras mask leaves out, or whose weight is zero contributes nothing.

    σ stays between 1e-13 and 1e13 in the units of its task. A NaN or infinity that reaches a loss
    makes the combined loss NaN. Training and evaluation report `{task}_loss`, the raw loss, and
    `{task}_sigma`. Without an element that counts, the reported loss is NaN.

    Args:
        tasks: Dict from each task's name to its likelihood, or to a Keras loss, its name or config.
        loss_weights: Dict from task to a number that multiplies its loss, for tasks that matter
            more than their noise says. `None`, or a task left out: 1.
        update: `"trained"`: a log-variance is the closed-form optimum of a running mean of the
            loss, plus a correction that the model's optimizer trains. `"closed_form"`: without the
            correction. The temperature of an exact classification likelihood has no closed form,
            and is trained either way.
        **kwargs: Arguments of `keras.layers.Layer`. Losses of double precision need
            `dtype="float64"`.

    Call arguments:
        predictions: Dict of tensors keyed by task, or a sequence of them in task order.
        targets: Structure of the targets of all tasks that have labels. Without, no loss is added.
        sample_weight: Structure of weights of samples or elements, or a tensor for all. Optional.
        training: If true, the log-variances follow this batch. Keras sets it from the model's call.
            With targets a compiled step must know it.

    Returns:
        The predictions: logits of exact classification likelihoods at their temperature,
        `exp(-s) · f`, and all others unchanged.

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
        self.tasks = validate_tasks(tasks)
        self._loss_weights = LossWeights([*self.tasks], loss_weights, self._loss_dtype)
        if update not in ("trained", "closed_form"):
            raise ValueError(f'`update` must be "trained" or "closed_form". Received: {update!r}')
        self.update = update
        self.last_training: dict[bool, bool | None] = {}  # The last call's, by `is_traced`.
        self.masked: set[str] = set()  # The tasks whose predictions carry a Keras mask.
        self.reports = True

    @property
    def metrics(self) -> list[Any]:
        """The metrics of the tasks, unless a `MultiTaskModel` reports them in its own steps."""
        return super().metrics if self.reports else []

    def build(self, predictions_shape: Any) -> None:
        """Groups the tasks, and creates the log-variances: one for each task or channel."""
        predictions = keras.tree.map_shape_structure(
            lambda shape: None if shape is None else keras.KerasTensor(shape), predictions_shape
        )
        named = by_task(self.tasks, predictions, "predictions")
        self.groups = group_tasks(self.tasks, {task: named[task].shape for task in named})
        self._log_variances = LogVariances(self.groups, self.update == "trained", self._loss_dtype)
        self._log_variances.trainable = self.trainable
        self._log_variances.build()
        order = [task for group in self.groups for task in group.tasks]
        self.statistics = TaskStatistics(order)
        self._loss_weights.create_vector(order)

    def call(
        self,
        predictions: Any,
        targets: Any = None,
        sample_weight: Any = None,
        predictions_mask: Any = None,
        training: bool | None = None,
    ) -> Any:
        """Adds the combined loss, if there are targets, and returns the predictions."""
        self.last_training[is_traced(predictions)] = training
        check_predictions(self.tasks, predictions)
        # An eager call that says nothing is an evaluation.
        if training is None and not is_traced(predictions):
            training = False
        predictions = self._tempered(predictions)
        if targets is not None:
            # Keras on JAX drops metrics that a layer's call updates, and would report zeros.
            report = keras.backend.backend() != "jax"
            # Replicas wait for each other in the loss, and share each layer's list of losses.
            is_shared = num_replicas() > 1
            added = take_losses(self) if is_shared else []
            batch = predictions, targets, sample_weight, predictions_mask
            loss = self.combined_loss(*batch, training, report)
            if is_shared:
                take_losses(self)
            self.add_loss([*added, loss])
        return predictions

    def compute_output_spec(self, predictions: Any, targets: Any = None, *_: Any, **__: Any) -> Any:
        """The shapes and dtypes of the predictions, once the targets are seen to fit them."""
        check_predictions(self.tasks, predictions)
        named = by_task(self.tasks, predictions, "predictions")
        if targets is not None:
            labelled = labelled_tasks(self.tasks, targets)
            for task, target in by_task(labelled, targets, "targets", outputs=predictions).items():
                with naming_task(task):
                    self.tasks[task].align(target, named[task])
        for task, prediction in named.items():
            is_tempered = self.tasks[task].is_tempered
            dtype = self._loss_dtype if is_tempered else prediction.dtype
            named[task] = keras.KerasTensor(prediction.shape, dtype)
        return in_structure_of(predictions, named)

    def compute_mask(self, predictions: Any, previous_mask: Any) -> Any:
        """The masks of the predictions, unchanged."""
        if previous_mask is not None:
            masks = by_task(self.tasks, previous_mask, "mask", optional=True)
            self.masked = {task for task, mask in masks.items() if mask is not None}
        return previous_mask

    def combined_loss(
        self,
        predictions: Any,
        targets: Any,
        sample_weight: Any = None,
        mask: Any = None,
        training: bool | None = None,
        report: bool = True,
    ) -> Tensor:
        """The combined negative log-likelihood of a batch, for a model that returns its loss.

        Args:
            predictions: Structure of predictions as the layer's call returns them.
            targets, sample_weight: As in the call of the layer.
            mask: Structure of Keras masks. `None`: those that the predictions carry.
            training: As in the call of the layer. `None`: as it was in its last call.
            report: If true, the batch counts in the metrics of the tasks.

        Returns:
            Scalar tensor, NaN if any of the tasks' losses is not finite.

        Raises:
            ValueError: If the layer has not been called, or `training` is not known.
        """
        batches = self.observe(predictions, targets, sample_weight, mask)
        training = known_training(training, self.last_training.get(is_traced(predictions)))
        totals = sum_over_replicas(concatenate([batch.weight_sum for batch in batches]))
        last, groups = self._log_variances(), list(zip(self.groups, batches, strict=True))
        sums = [batch.running_loss_sum(group.of(last)) for group, batch in groups]
        mean_losses = global_mean(concatenate(sums), totals)
        log_variances = self._log_variances(mean_losses, training=training)
        if report:
            variances = [ops.exp(group.of(log_variances)) for group in self.groups]
            self.statistics.update_state(batches, variances)
        sums = [
            batch.tempered_negative_log_likelihood_sum(group.of(log_variances))
            for group, batch in groups
        ]
        totals = concatenate_by_task([group.of(totals) for group in self.groups])
        means = global_mean(concatenate_by_task(sums), totals)
        loss = ops.sum(ops.convert_to_tensor(self._loss_weights.vector) * means)
        return nan_unless(ops.isfinite(loss), loss)

    def observe(
        self, predictions: Any, targets: Any, sample_weight: Any = None, mask: Any = None
    ) -> list[Observations]:
        """The observations of a batch, one for each of `groups`; see `combined_loss`."""
        self._check_built()
        tensors = tensors_by_task(self.tasks, predictions, targets, sample_weight, mask)
        dtype = self._loss_dtype
        return [
            observe(group.likelihood, group.channels, {t: tensors[t] for t in group.tasks}, dtype)
            for group in self.groups
        ]

    def target_inputs(self, predictions: Any) -> dict[str, Any]:
        """An input for the targets of each task, for a functional model that holds the layer.

        Args:
            predictions: Structure of the tasks' symbolic predictions, as in the call of the layer.

        Returns:
            Dict from each task with labels to a `keras.Input` named `"{task}_target"`, with the
            shape and dtype that the likelihood expects. Keras refuses targets of any other shape.

        Raises:
            ValueError: If a task has no prediction, or one that its likelihood cannot take.
        """
        named = by_task(self.tasks, predictions, "predictions")
        inputs = {}
        for task in labelled_tasks(self.tasks, None):
            with naming_task(task):
                shape = self.tasks[task].target_shape(tuple(named[task].shape))
            dtype = self.tasks[task].target_dtype.replace("float32", self._loss_dtype)
            inputs[task] = keras.Input(batch_shape=shape, dtype=dtype, name=f"{task}_target")
        return inputs

    @property
    def loss_weights(self) -> Mapping[str, float]:
        """The number that multiplies each task's loss.

        Assign a dict to change them, in a callback too: `loss_weights = {"depth": 0.5}`.
        They are saved with the model, but not in a file of weights alone.
        """
        return MappingProxyType(self._loss_weights.by_task())

    @loss_weights.setter
    def loss_weights(self, loss_weights: Mapping[str, float] | None) -> None:
        self._loss_weights.assign(loss_weights)

    def log_variances(self) -> dict[str, Any]:
        """Each task's `s = log σ²`: a NumPy scalar, or a vector where each channel has its own.

        Raises:
            ValueError: If the layer is not built.
        """
        self._check_built()
        log_variances = self._log_variances.by_task()
        return {task: log_variances[task] for task in self.tasks}

    def sigmas(self) -> dict[str, Any]:
        """Each task's σ, the standard deviation of its noise in its own units.

        For an exact classification task σ² is the temperature of its logits. A task whose
        likelihood names its `channels` has a dict of them.
        """
        sigmas: dict[str, Any] = {}
        for task, log_variance in self.log_variances().items():
            sigma, names = np.exp(0.5 * log_variance), self.tasks[task].channels
            sigmas[task] = dict(zip(names, sigma, strict=True)) if names else sigma
        return sigmas

    def task_weights(self) -> dict[str, Any]:
        """The factor of each task's raw loss, `loss_weights` included.

        Without a closed form, as of exact classes, it is only an order of magnitude.
        """
        s = self.log_variances()
        return {
            task: self.loss_weights[task] * each.scale * np.exp(-each.power * s[task])
            for task, each in self.tasks.items()
        }

    def set_log_variances(self, log_variances: Mapping[str, Any]) -> None:
        """Sets the log-variances that training goes on from.

        Args:
            log_variances: Dict as of `log_variances()`. A task left out, or NaN, stays as it is.

        Raises:
            ValueError: If the layer is not built, or a task, shape or value is not as expected.
        """
        self._check_built()
        self._log_variances.assign(log_variances)

    def get_config(self) -> dict[str, Any]:
        """The arguments of the constructor, for saving."""
        tasks = {}
        for task, likelihood in self.tasks.items():
            with naming_task(task):
                tasks[task] = keras.saving.serialize_keras_object(likelihood)
        return {
            **super().get_config(),
            "tasks": tasks,
            "loss_weights": dict(self.loss_weights),
            "update": self.update,
        }

    @property
    def _loss_dtype(self) -> str:
        # Half precision has neither the range of a squared error nor the steps of a log-variance.
        return "float64" if self.variable_dtype == "float64" else "float32"

    def _check_built(self) -> None:
        if not self.built:
            raise ValueError(
                "The layer has no log-variances yet. Call it on predictions first, and hand what "
                "it answers to a loss."
            )

    def _tempered(self, predictions: Any) -> Any:
        """The predictions, with logits of exact likelihoods at their temperature."""
        if not any(group.likelihood.is_tempered for group in self.groups):
            return predictions
        named = by_task(self.tasks, predictions, "predictions")
        log_variances = self._log_variances()
        for group in self.groups:
            named |= group.tempered(named, log_variances, self._loss_dtype)
        return in_structure_of(predictions, named)
