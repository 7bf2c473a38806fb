"""All private names of Keras that this package uses, one function each.

Every function says what it reads, why there is no public way, and what happens without it.
"""

from functools import partial
from typing import Any

import keras

# Layers and operations that leave the numbers as they are.
UNCHANGING = {
    *("Reshape", "Permute", "Flatten", "Transpose", "Squeeze", "ExpandDims"),
    *("Identity", "Dropout", "Cast"),
}


def loss_arguments(loss: Any) -> dict[str, Any]:
    """The arguments that a Keras loss was made with.

    Reads `_fn_kwargs`: Keras 3.15 leaves some arguments out of the public `get_config`, as `delta`
    of `Huber(delta=3)`. Keras 3.16 leaves out none, and without the name the config alone counts.
    """
    if isinstance(loss, partial):
        return dict(loss.keywords)
    config = loss.get_config() if hasattr(loss, "get_config") else {}
    return {**config, **getattr(loss, "_fn_kwargs", {})}


def exclude_from_weight_decay(optimizer: Any, variable: Any) -> None:
    """Adds a variable to those that an optimizer's weight decay leaves alone.

    Writes `_exclude_from_weight_decay` and what Keras derives from it. The public
    `exclude_from_weight_decay` forgets earlier exclusions, and refuses an optimizer that is built.
    Where these have no effect the public method is called, whose refusal is a clear error.
    """
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)
    for each in getattr(optimizer, "optimizers", ()):  # Those of a `MultiOptimizer`.
        exclude_from_weight_decay(each, variable)
    if optimizer.weight_decay is None and getattr(optimizer, "adam_weight_decay", None) is None:
        return
    if hasattr(optimizer, "_var_key"):
        key = optimizer._var_key(variable)
        excluded = getattr(optimizer, "_exclude_from_weight_decay", ())
        optimizer._exclude_from_weight_decay = {*excluded, key}
        optimizer._exclude_from_weight_decay_cache = {}  # Keras 3.15
        getattr(optimizer, "_weight_decay_by_var_key", {})[key] = False  # Keras 3.16
        if not (optimizer.built and optimizer._use_weight_decay(variable)):
            return
    optimizer.exclude_from_weight_decay(var_list=[variable])


def activation_name(tensor: Any) -> str:
    """The name of the activation that a tensor comes out of: "softmax", "sigmoid", "linear", …

    Reads `_keras_logits`, which Keras's activations leave on their output, and `_keras_history`,
    the operation of a symbolic tensor: no public name leads from one to the other. Without these
    names, no activation is known, and the name is another one.
    """
    if hasattr(tensor, "_keras_logits"):
        return "softmax"  # Or a sigmoid.
    operation, inputs = _origin(tensor)
    operation = getattr(operation, "layer", operation)  # As of `TimeDistributed`.
    if outputs := getattr(operation, "outputs", None):
        return activation_name(outputs[0])
    activation = getattr(operation, "activation", operation)
    name: str = getattr(activation, "__name__", type(activation).__name__)
    is_linear = isinstance(operation, keras.layers.Activation) and name == "linear"
    if is_linear or type(operation).__name__ in UNCHANGING:
        return activation_name(inputs[0])
    return name.lower()


def layer_name(tensor: Any) -> str | None:
    """The name of the layer or operation that a symbolic tensor comes out of.

    Reads `_keras_history`, as `activation_name` does. Without it, there is no name.
    """
    return getattr(_origin(tensor)[0], "name", None)


def _origin(tensor: Any) -> tuple[Any, list[Any]]:
    """The operation that a symbolic tensor comes out of, in nested models too, and its inputs."""
    if not hasattr(tensor, "_keras_history"):
        return None, []
    operation, node, index = tensor._keras_history
    if outputs := getattr(operation, "outputs", None):  # A model as a layer.
        return _origin(outputs[index])
    return operation, operation._inbound_nodes[node].input_tensors


def copy_direction(metric: Any, to: Any) -> None:
    """Says of one metric what is known of another: if more of it is better, or less.

    Copies `_direction`, which `EarlyStopping` and `ModelCheckpoint` read for `mode="auto"`. Keras
    has no public way to set it. Without it, they raise an error that asks for another mode.
    """
    if hasattr(metric, "_direction"):
        to._direction = metric._direction


def take_losses(layer: Any) -> list[Any]:
    """Takes away all losses that were added, in any layer, in the model's call around a layer's.

    Reads `_get_call_context` and calls `_clear_losses`. The replicas of a `tf.distribute` strategy
    share each layer's list of losses, and Keras has no public way to empty it, or to find the model
    that is called. Without the private names, an error says so.
    """
    if not (hasattr(layer, "_get_call_context") and hasattr(layer, "_clear_losses")):
        raise ValueError(
            "The layer cannot add its loss with this Keras. Received: a tf.distribute strategy of "
            "several replicas. Train a MultiTaskModel instead."
        )
    model = layer._get_call_context().entry_layer
    losses = model.losses
    # The last ones are of regularized weights, and are no state.
    regularized = sum(weight.regularizer is not None for weight in model.trainable_weights)
    model._clear_losses()
    return losses[: len(losses) - regularized]


def name_outputs(model: Any, names: list[str]) -> None:
    """Names the outputs of a functional model for `compile(metrics=…)` and for reports.

    Sets `output_names`, which Keras takes from the layers that the outputs come out of: here one
    layer for all. Without it, `compile` refuses metrics that are keyed by task.
    """
    model.output_names = names
