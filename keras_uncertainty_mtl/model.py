"""The functional model whose tasks are weighted by their uncertainty."""

import inspect
import os
from types import SimpleNamespace
from typing import Any

import keras
from keras import ops

from keras_uncertainty_mtl._calibration_state import CalibrationState
from keras_uncertainty_mtl._checks import check_labels, check_order, check_strategy, is_traced
from keras_uncertainty_mtl._compiled_metrics import observed_metrics
from keras_uncertainty_mtl._keras_internals import exclude_from_weight_decay, name_outputs
from keras_uncertainty_mtl._loss_check import add_loss_check
from keras_uncertainty_mtl._observations import masks_by_task, tensors_by_task
from keras_uncertainty_mtl._observed_metrics import observed_elements
from keras_uncertainty_mtl._reductions import num_replicas
from keras_uncertainty_mtl._shapes import Tensor
from keras_uncertainty_mtl._structures import by_task, naming_task
from keras_uncertainty_mtl.calibration import calibration_on
from keras_uncertainty_mtl.conformal import check_level
from keras_uncertainty_mtl.inference import inference_model, predictive_outputs, unweighted
from keras_uncertainty_mtl.weighting import UncertaintyWeighting

FIT, EVALUATE = inspect.signature(keras.Model.fit), inspect.signature(keras.Model.evaluate)


@keras.saving.register_keras_serializable(package="keras_uncertainty_mtl")
class MultiTaskModel(keras.Model):
    """A functional model whose tasks are weighted by their uncertainty.

    It behaves as `keras.Model(inputs, outputs)` does, with the targets as `y`. Its loss is that of
    an `UncertaintyWeighting`, and exported models hold nothing but the network.

    Args:
        inputs: Structure of `keras.Input`s.
        outputs: Dict of symbolic tensors keyed by task, or a sequence of them in task order. They
            may be those of a trained `MultiTaskModel`, whose weighting is then left out.
        weighting: An `UncertaintyWeighting`, or the dict of tasks to make one from.
        **kwargs: Arguments of `keras.Model`: `name`, `trainable`.

    Raises:
        ValueError: If the outputs are not those of the tasks, or an argument is unknown.

    Example:

    ```python
    model = MultiTaskModel(
        image,
        {"depth": depth, "classes": logits},
        UncertaintyWeighting({"depth": Laplace(), "classes": Categorical()}),
    )
    model.compile("adam", metrics={"classes": ["accuracy"]})
    model.fit(x, {"depth": y1, "classes": y2})
    model.export("saved_model")
    ```

    References:
        - [Kendall, Gal & Cipolla, 2018](https://arxiv.org/abs/1705.07115)
    """

    _has_metrics = False
    _masked: Any = None  # on JAX, the masks of the predictions of `x`

    # Keras clones and revives a functional subclass only where its constructor takes `*args` and
    # `**kwargs`, by these names. It then leaves out `weighting`, which the graph holds already.
    def __init__(
        self, inputs: Any, outputs: Any, weighting: Any = None, *args: Any, **kwargs: Any
    ) -> None:
        if unknown := kwargs.keys() - {"name", "trainable"}:
            raise ValueError(
                "MultiTaskModel() takes `name` and `trainable`. Received: the unknown arguments "
                f"{sorted(unknown)}. Losses come third, in a dict keyed by task. Arguments of the "
                "weighting belong to UncertaintyWeighting(…), those of a task to its likelihood."
            )
        if weighting is not None:
            if not isinstance(weighting, UncertaintyWeighting):
                is_double = any(each.dtype == "float64" for each in keras.tree.flatten(outputs))
                weighting = UncertaintyWeighting(weighting, dtype="float64" if is_double else None)
            inputs, outputs = unweighted(inputs, outputs, weighting)
            check_order(weighting.tasks, outputs)
            outputs = weighting(outputs)
        super().__init__(inputs, outputs, *args, **kwargs)
        held = [layer for layer in self.layers if isinstance(layer, UncertaintyWeighting)]
        if not held:
            raise ValueError(
                "MultiTaskModel(inputs, outputs, weighting) expects a weighting: an "
                "UncertaintyWeighting, or a dict of tasks. Received: weighting=None"
            )
        self.weighting = held[0]
        self.weighting.reports = False  # Inside of another model, it sees no batches.
        names = {task: task for task in self.weighting.tasks}
        self._calibration = CalibrationState()
        name_outputs(self, keras.tree.flatten(names if isinstance(outputs, dict) else list(names)))

    @property
    def metrics(self) -> list[Any]:
        """The metrics of Keras, and those of the tasks."""
        return [*super().metrics, self.weighting.statistics]

    def compile(
        self,
        optimizer: Any = "rmsprop",
        loss: Any = None,
        loss_weights: Any = None,
        metrics: Any = None,
        weighted_metrics: Any = None,
        **kwargs: Any,
    ) -> None:
        """Configures the model for training; see `keras.Model.compile`.

        The optimizer's weight decay leaves log-variances alone. Metrics see the elements that the
        loss sees, and of a heteroscedastic task the estimates. Without any element they are NaN.

        Raises:
            ValueError: If `loss` or `loss_weights` is given, which belong to the weighting, if a
                metric has the name of another number, or if Keras cannot train with the model's
                `tf.distribute` strategy.
        """
        if keras.backend.backend() == "tensorflow":
            check_strategy(self.distribute_strategy)
        for name, value in {"loss": loss, "loss_weights": loss_weights}.items():
            if value is not None:
                raise ValueError(
                    f"MultiTaskModel.compile() takes no `{name}`: losses and their weights belong "
                    "to the weighting, `UncertaintyWeighting(tasks, loss_weights=…)`. Received: "
                    f"{name}={value!r}"
                )
        observed = observed_metrics(self.weighting.tasks, self.output, metrics, weighted_metrics)
        super().compile(optimizer=optimizer, weighted_metrics=observed or None, **kwargs)
        self._has_metrics = self._has_metrics or bool(observed)
        # In a dict or a list Keras would find the metrics, and report them once more.
        self._given_metrics = SimpleNamespace(metrics=metrics, weighted_metrics=weighted_metrics)
        self._keep_off_weight_decay()

    def make_train_function(self, force: bool = False) -> Any:
        """Makes the function that `fit` runs; see `keras.Model`."""
        self._calibration.warn_of_lost_intervals("Training")
        self._calibration.assign({}, {}, {})  # It is of the network before this training.
        self._keep_off_weight_decay()  # A user's own exclusion makes Keras forget all others.
        return super().make_train_function(force)

    def _keep_off_weight_decay(self) -> None:
        # Weight decay would pull every σ to where it started.
        for variable in self.weighting.trainable_variables:
            exclude_from_weight_decay(self.optimizer, variable)

    def fit(self, x: Any = None, y: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Trains the model; see `keras.Model.fit`.

        Raises:
            ValueError: If arrays of targets have a number of which the loss would be NaN, or a loss
                is below 0. All else that makes the loss NaN is warned of.
        """
        call = self._checked_call(FIT, "steps_per_epoch", x, y, *args, **kwargs)
        if isinstance(validation := call.arguments.get("validation_data"), (list, tuple)):
            _, labels, weights = keras.utils.unpack_x_y_sample_weight(validation)
            self._check_labels(labels, weights, call.arguments.get("validation_steps"))
        return super().fit(*call.args[1:], **call.kwargs)

    def evaluate(self, x: Any = None, y: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Returns the loss and the metrics; see `keras.Model.evaluate`. Arrays are checked too."""
        call = self._checked_call(EVALUATE, "steps", x, y, *args, **kwargs)
        return super().evaluate(*call.args[1:], **call.kwargs)

    def _checked_call(self, signature: Any, steps: str, /, *args: Any, **kwargs: Any) -> Any:
        """The arguments of `fit` or `evaluate`, with labels checked and a check of the losses."""
        call = signature.bind(self, *args, **kwargs)
        given = call.arguments
        self._check_labels(given["y"], given.get("sample_weight"), given.get(steps))
        add_loss_check(given, self.weighting.tasks, self.name)
        return call

    def _check_labels(self, labels: Any, sample_weight: Any, steps: Any) -> None:
        """Checks labels, if all of them count and are those that the loss sees."""
        has_own_loss = type(self).compute_loss is not MultiTaskModel.compute_loss
        if labels is not None and sample_weight is None and steps is None and not has_own_loss:
            check_labels(self.weighting.tasks, labels, self.output, self.weighting.masked)

    def get_compile_config(self) -> dict[str, Any] | None:
        """The arguments of `compile`, for saving."""
        config = super().get_compile_config()
        if not self.compiled:
            return config
        return config | keras.saving.serialize_keras_object(vars(self._given_metrics))

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """Compiles a loaded model as it was compiled when it was saved."""
        self.compile(**keras.saving.deserialize_keras_object(config))
        self.optimizer.build(self.trainable_variables)

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool | None = None,
    ) -> Tensor:
        """The combined loss of the tasks, and whatever the network's layers add to it.

        Args:
            x, y, y_pred, sample_weight: As in `keras.Model.compute_loss`.
            training: If true, the log-variances follow this batch. `None`: as in the last call.
        """
        if training is None:
            # A compiled step of `fit`, traced once, says nothing of a call outside of it.
            training = bool(self.weighting.last_training.get(is_traced(y_pred)))
        if self._has_metrics and keras.backend.backend() == "jax":
            # In training, predictions lose their masks on the way to the metrics.
            predictions = by_task(self.weighting.tasks, y_pred, "predictions")
            self._masked = SimpleNamespace(x=x, masks=masks_by_task(predictions))
        # First, because replicas share one list of losses, and wait for each other in the next.
        added = super().compute_loss(x, y, y_pred, sample_weight) if self.losses else None
        loss = self.weighting.combined_loss(y_pred, y, sample_weight, training=training)
        loss = loss / num_replicas()  # Keras adds up the replicas' losses.
        return loss if added is None else loss + ops.cast(added, loss.dtype)

    def compute_metrics(
        self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None
    ) -> dict[str, Any]:
        """Updates the metrics of `compile` by the elements that the loss sees."""
        if not self._has_metrics:
            return super().compute_metrics(x, y, y_pred, sample_weight)
        tasks = self.weighting.tasks
        masks = self._masked.masks if self._masked and self._masked.x is x else None
        targets, estimates, weights = {}, {}, {}
        for task, tensors in tensors_by_task(tasks, y_pred, y, sample_weight, masks).items():
            with naming_task(task):
                targets[task], estimates[task], weights[task] = observed_elements(
                    tasks[task], *tensors
                )
        return super().compute_metrics(x, targets, estimates, weights)

    def calibrate(
        self,
        x: Any,
        y: Any = None,
        sample_weight: Any = None,
        batch_size: int | None = None,
        steps: int | None = None,
        verbose: Any = "auto",
        intervals: float | None = None,
    ) -> dict[str, Any]:
        """Sets every σ to its maximum-likelihood value on held-out data, the network as it is.

        Training errors understate test errors, so the trained σ is too small. Held-out data give σ
        in closed form, the factor of a heteroscedastic σ too, and by temperature scaling for the
        exact classification forms, whose logits `predict` then has at the new one. An approximate
        form or a head of probabilities gets a temperature of its own, which only `predictive_model`
        uses: there σ² weighs the loss. For probabilities it divides their logarithms. A `Gibbs`
        loss has neither.

        `intervals=0.95` adds split-conformal intervals and sets to `predictive_model`. They hold
        a new target with at least this probability, whatever the network, if it is exchangeable
        with the labels given here. An interval reaches `q · σ` to both sides, with the σ of the
        element in a heteroscedastic task. A set holds each class with `-log p ≤ q`, and may be
        empty. `q` is the `⌈0.95 · (n + 1)⌉`-th smallest of the `n` labels' `|y - f| / σ` or
        `-log p`; with weights the smallest `q` with `Σ w·[score ≤ q] ≥ 0.95 · (Σ w + max w)`.

        - The unit is an element. Pixels of one image depend on each other, so the share of the next
          image may differ from that of many.
        - Each channel of a `per_channel` task has a `q` of its own. All others share one a task.
        - If there are fewer than `0.95 / (1 - 0.95)` labels, intervals are infinite and sets hold
          every class, with a warning.
        - The `-log p` are at the temperature from before this call, as data that had chosen it
          would suit it too well. Calibrate with other data first to have the better of two.

        Missing labels, masks and sample weights count as in training. A task without any label
        keeps its σ. The data are read once, or three times for a temperature or for `intervals`.
        Temperatures beside σ and intervals are saved with the model. Training on forgets them, and
        so does another call, which sets its own.

        Args:
            x, y, sample_weight, batch_size, steps, verbose: As in `keras.Model.evaluate`.
            intervals: The share of new targets to be held, between 0 and 1. `None`: no intervals.

        Returns:
            Dict from task to its new σ, as `weighting.sigmas()`.

        Raises:
            ValueError: If a task's loss is not finite, or data would have to be read again and are
                a generator, or others each time.

        Example:

        >>> sigmas = model.calibrate(x_held_out, y_held_out, intervals=0.9, verbose=0)

        References:
            - [Guo et al., 2017](https://arxiv.org/abs/1706.04599), for temperature scaling
            - [Angelopoulos & Bates, 2021](https://arxiv.org/abs/2107.07511), for intervals and sets
            - [Tibshirani et al., 2019](https://arxiv.org/abs/1904.06019), for weights
        """
        check_level(intervals)
        options = {"batch_size": batch_size, "steps": steps, "verbose": verbose}
        # At a temperature that these data had chosen, scores would not be exchangeable with others.
        scored_at = self._calibration.exact_log_variances(self.weighting)
        found = calibration_on(
            self, scored_at, intervals, x, y, sample_weight=sample_weight, **options
        )
        if intervals is None:
            self._calibration.warn_of_lost_intervals("calibrate() without `intervals`")
        self.weighting.set_log_variances(found.log_variances)
        self._calibration.assign(found.exact_forms, scored_at, found.quantiles)
        return self.weighting.sigmas()

    def predictive_model(self) -> keras.Model:
        """A model that answers with distributions: what is predicted, and how sure it is.

        It is a snapshot: σ, temperatures and intervals are constants of this moment. The network's
        layers are shared, so after training on, an old one answers with the new network and the
        old σ. Make another one then. Neither a saved model nor an export of it needs this package.

        Returns:
            A functional `keras.Model` with a dict of outputs:

            - `"{task}_mean"` and `"{task}_standard_deviation"` for `Gaussian`, `Poisson` and
              `NegativeBinomial`;
            - `"{task}_location"` and `"{task}_scale"` for `Laplace`, `StudentT` and `Ordinal`;
            - `"{task}_quantile"` and `"{task}_scale"` for `Quantile`;
            - `"{task}_probabilities"` for `Categorical`, `Bernoulli` and `Ordinal`;
            - `"{task}_prediction"` for `Gibbs`;
            - after `calibrate(intervals=…)` also `"{task}_lower"` and `"{task}_upper"` of
              intervals, and `"{task}_set"` for classes: truth values by class on the last axis, of
              `Bernoulli` by no and yes.

        Example:

        >>> predicted = model.predictive_model().predict(x, verbose=0)
        >>> scales = predicted["depth_scale"]  # one for each of predicted["depth_location"]
        """
        network = inference_model(self)
        outputs = predictive_outputs(self.weighting, self._calibration, network.output)
        predictive = keras.Model(network.input, outputs, name=f"{self.name}_predictive_snapshot")
        predictive(predictive.input)  # As for `inference_model`.
        return predictive

    def export(self, filepath: Any, format: str = "tf_saved_model", **kwargs: Any) -> None:
        """Exports the network alone, without log-variances; see `keras.Model.export`.

        Raises:
            ValueError: If a SavedModel is asked for on the PyTorch backend.
        """
        if format == "tf_saved_model" and keras.backend.backend() == "torch":
            raise ValueError(
                'Keras exports no SavedModel from PyTorch. Received: format="tf_saved_model". Load '
                'the saved model with KERAS_BACKEND=tensorflow, or export with format="torch".'
            )
        inference_model(self).export(os.fspath(filepath), format=format, **kwargs)
