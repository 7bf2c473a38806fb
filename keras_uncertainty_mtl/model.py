"""Functional models: one that trains with uncertainty weighting, and one without any trace of it."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_uncertainty_mtl.reductions import num_replicas
from keras_uncertainty_mtl.structures import by_task
from keras_uncertainty_mtl.weighting import UncertaintyWeighting

Tensor = Any


@keras.saving.register_keras_serializable(package="keras_uncertainty_mtl")
class MultiTaskModel(keras.Model):
    """A functional model whose tasks are weighted by their uncertainty.

    It behaves as `keras.Model(inputs, outputs)` does, with the targets as `y`. Its loss is that of
    an `UncertaintyWeighting`, and exported models hold nothing but the network.

    Args:
        inputs: Structure of `keras.Input`s.
        outputs: Dict of symbolic tensors keyed by task, or a sequence of them in task order.
        weighting: An `UncertaintyWeighting`, or the dict of tasks to make one from.
        **kwargs: Arguments of `keras.Model`: `name`, `trainable`.

    Raises:
        ValueError: If the outputs are not those of the tasks.

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

    def __init__(self, inputs: Any, outputs: Any, weighting: Any, **kwargs: Any) -> None:
        if not isinstance(weighting, UncertaintyWeighting):
            weighting = UncertaintyWeighting(weighting)
        tasks = list(weighting.tasks)
        by_task(tasks, outputs, "outputs")
        super().__init__(inputs=inputs, outputs=outputs, **kwargs)
        if not weighting.built:
            weighting.build(keras.tree.map_structure(lambda tensor: tuple(tensor.shape), outputs))
        self.weighting = weighting
        if not isinstance(outputs, dict):
            # So that metrics are given, and reported, by task rather than by the last layer's name.
            self.output_names = tasks

    def compile(
        self,
        optimizer: Any = "rmsprop",
        loss: Any = None,
        loss_weights: Any = None,
        **kwargs: Any,
    ) -> None:
        """Configures the model for training; see `keras.Model.compile`.

        Args:
            optimizer: As in `keras.Model.compile`. Its weight decay leaves log-variances alone.
            loss: Must be `None`: losses are the likelihoods of the tasks.
            loss_weights: Must be `None`: they belong to the `UncertaintyWeighting`.
            **kwargs: As in `keras.Model.compile`: `metrics`, `steps_per_execution`, …

        Raises:
            ValueError: If `loss` or `loss_weights` is given.
        """
        if loss is not None:
            raise ValueError(
                "MultiTaskModel.compile() takes no `loss`: hand the losses to the weighting "
                "instead, `MultiTaskModel(inputs, outputs, UncertaintyWeighting({task: loss, …}))`. "
                f"Received: loss={loss!r}"
            )
        if loss_weights is not None:
            raise ValueError(
                "MultiTaskModel.compile() takes no `loss_weights`: hand them to "
                "`UncertaintyWeighting(tasks, loss_weights=…)`. "
                f"Received: loss_weights={loss_weights!r}"
            )
        super().compile(optimizer=optimizer, **kwargs)
        _exclude_from_weight_decay(self.optimizer, self.weighting.log_variance)

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
        training: bool = True,
    ) -> Tensor:
        """The combined loss of the tasks, and whatever the network's layers add to it."""
        loss = self.weighting.combined_loss(y_pred, y, sample_weight, training=training)
        # Keras adds up the replicas' losses.
        loss = loss / num_replicas()
        if self.losses:
            loss = loss + ops.cast(super().compute_loss(x, y, y_pred, sample_weight), loss.dtype)
        return loss

    def export(self, filepath: Any, *args: Any, **kwargs: Any) -> None:
        """Exports the network alone, without targets and log-variances; see `keras.Model.export`."""
        inference_model(self).export(filepath, *args, **kwargs)

    def get_config(self) -> dict[str, Any]:
        """What `from_config` makes the model anew from."""
        return {
            "network": keras.saving.serialize_keras_object(inference_model(self)),
            "weighting": keras.saving.serialize_keras_object(self.weighting),
            "name": self.name,
            "trainable": self.trainable,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> MultiTaskModel:
        """The model that `get_config` describes."""
        config = dict(config)
        network, weighting = (
            keras.saving.deserialize_keras_object(config.pop(part), custom_objects=custom_objects)
            for part in ("network", "weighting")
        )
        return cls(network.input, network.output, weighting, **config)


def inference_model(model: keras.Model) -> keras.Model:
    """The network alone: neither targets nor log-variances, the same layers and weights.

    Args:
        model: A `MultiTaskModel`, or a functional model that holds an `UncertaintyWeighting`.

    Returns:
        A functional `keras.Model` of those inputs that its predictions need.

    Raises:
        ValueError: If `model` is not functional.

    Example:

    ```python
    inference_model(model).export("saved_model")
    ```
    """
    if isinstance(model, MultiTaskModel):
        return keras.Model(model.input, model.output, name=model.name)
    if not hasattr(model, "operations"):
        raise ValueError(
            f"inference_model() expects a functional model or a MultiTaskModel. Received: {model!r}"
        )

    def leave_weighting_out(layer: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(layer, UncertaintyWeighting):
            return args[0] if args else kwargs["predictions"]
        return layer(*args, **kwargs)

    network = keras.models.clone_model(
        model, clone_function=lambda layer: layer, call_function=leave_weighting_out
    )
    needed = _source_inputs(network.outputs)
    inputs = network.input
    if isinstance(inputs, dict):
        inputs = {name: tensor for name, tensor in inputs.items() if id(tensor) in needed}
    elif isinstance(inputs, (list, tuple)):
        inputs = [tensor for tensor in inputs if id(tensor) in needed]
    return keras.Model(inputs, network.output, name=model.name)


def _source_inputs(outputs: list[Any]) -> set[int]:
    """The ids of the symbolic tensors that the outputs are computed from.

    `keras.utils.get_source_inputs` would walk every path of the graph, of which a residual network
    has exponentially many, so this reads the same private history once for each tensor.
    """
    seen: set[int] = set()
    pending = list(outputs)
    while pending:
        tensor = pending.pop()
        if id(tensor) not in seen:
            seen.add(id(tensor))
            operation, node_index, _ = tensor._keras_history
            pending += operation._inbound_nodes[node_index].input_tensors
    return seen


def _exclude_from_weight_decay(optimizer: Any, variable: Any) -> None:
    """Adds a variable to those that an optimizer's weight decay leaves alone.

    The public `exclude_from_weight_decay` forgets what a user has excluded before, and refuses an
    optimizer that is built, so this adds to the set that it keeps.
    """
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)
    excluded = getattr(optimizer, "_exclude_from_weight_decay", set())
    optimizer._exclude_from_weight_decay = {*excluded, optimizer._var_key(variable)}
    optimizer._exclude_from_weight_decay_cache = {}
