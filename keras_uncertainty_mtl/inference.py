"""The network without the weighting, for serving."""

import itertools
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_uncertainty_mtl._calibration_state import CalibrationState
from keras_uncertainty_mtl._structures import by_task, in_structure_of
from keras_uncertainty_mtl.conformal import with_rounding
from keras_uncertainty_mtl.likelihoods import Likelihood
from keras_uncertainty_mtl.weighting import UncertaintyWeighting


def inference_model(model: keras.Model) -> keras.Model:
    """The network alone, without targets and log-variances, on the same layers and weights.

    It answers as the trained model does. The temperature of an exact classification likelihood goes
    into it as a `keras.layers.Rescaling` of the logits, with the σ of this moment.

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
    network = without_weighting(model)
    network(network.input)  # Keras exports a model to ONNX only once it has been called.
    return network


def unweighted(inputs: Any, outputs: Any, weighting: Any) -> tuple[Any, Any]:
    """A network's inputs and outputs, without a weighting that it has, for another one to follow.

    Logits stay at the temperature of the earlier one, unless that is the same layer.
    """
    network = keras.Model(inputs, outputs)
    if any(isinstance(layer, UncertaintyWeighting) for layer in network.layers):
        network = without_weighting(network, untempered=weighting)
        return network.input, network.output
    return inputs, outputs


def without_weighting(
    model: keras.Model, untempered: Any = None, all_inputs: bool = False
) -> keras.Model:
    """The network of a functional model, without any weighting.

    Args:
        model: A functional model.
        untempered: The weighting whose logits are not at their temperature.
        all_inputs: If true, the network has the inputs of the model. If not, those that it needs.
    """
    if not hasattr(model, "operations"):
        raise ValueError(f"inference_model() expects a functional model. Received: {model!r}")
    # The ids of the inputs behind each tensor. `keras.utils.get_source_inputs` walks every path of
    # the graph, of which a residual network has exponentially many.
    origins: dict[int, set[int]] = {}
    taken = {operation.name for operation in model.operations}
    _keep_names(model)

    def call_without_weighting(layer: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(layer, UncertaintyWeighting):
            sources = args[0] if args else kwargs["predictions"]
            outputs = sources if layer is untempered else _tempered(layer, sources, taken)
        else:
            inner = layer.layers if isinstance(layer, keras.Model) else []
            if any(isinstance(each, UncertaintyWeighting) for each in inner):
                layer = without_weighting(layer, untempered)
            sources, outputs = (args, kwargs), layer(*args, **kwargs)
        found = [origins.get(id(tensor), {id(tensor)}) for tensor in keras.tree.flatten(sources)]
        for output in keras.tree.flatten(outputs):
            origins.setdefault(id(output), set().union(*found))
        return outputs

    network = keras.models.clone_model(
        keras.Model(model.input, model.output),
        clone_function=lambda layer: layer,
        call_function=call_without_weighting,
    )
    needed = set().union(*(origins.get(id(output), {id(output)}) for output in network.outputs))
    inputs = network.input if all_inputs else _only(needed, network.input)
    return keras.Model(inputs, network.output, name=model.name)


def _only(needed: set[int], inputs: Any) -> Any:
    """The inputs of these ids, in their structure; `None` if there is none."""
    if isinstance(inputs, dict):
        kept = {name: _only(needed, each) for name, each in inputs.items()}
        return {name: each for name, each in kept.items() if each is not None} or None
    if isinstance(inputs, (list, tuple)):
        parts = [_only(needed, each) for each in inputs]
        return [each for each in parts if each is not None] or None
    return inputs if id(inputs) in needed else None


def _keep_names(model: keras.Model) -> None:
    """Makes Keras name new operations otherwise than those that a loaded model has brought along.

    Keras counts the names that it gives in this process: `multiply`, then `multiply_1`.
    """
    for operation in model.operations:
        if not isinstance(operation, keras.Layer):
            prefix, _, number = operation.name.rpartition("_")
            if not number.isdigit():
                prefix, number = operation.name, "0"
            while keras.backend.get_uid(prefix) <= int(number):
                pass


def predictive_outputs(weighting: Any, state: CalibrationState, predictions: Any) -> dict[str, Any]:
    """The parameters and the regions of each task's distribution, with all that is known of now.

    Args:
        weighting: The `UncertaintyWeighting`.
        state: The model's numbers beside σ.
        predictions: Symbolic predictions of the `inference_model`.
    """
    log_variances = weighting.log_variances()
    outputs: dict[str, Any] = {}
    for task, prediction in by_task(weighting.tasks, predictions, "predictions").items():
        likelihood = weighting.tasks[task]
        form = likelihood.exact_form()
        # Half precision may not hold a σ in the task's units.
        dtype = "float64" if prediction.dtype == "float64" else "float32"
        prediction = ops.cast(prediction, dtype)
        logits = likelihood.logits(prediction)
        answered_at = log_variances[task] if likelihood.is_tempered else 0.0
        sigma = np.exp(0.5 * log_variances[task]).astype(dtype)
        parameters = likelihood.predictive(prediction, sigma)
        if task in state.log_temperatures:
            tempered = _at_temperature(form, logits, state.log_temperatures[task])
            parameters = form.predictive(tempered, sigma)
        if task in state.quantiles:
            s = state.scored_at[task]
            tempered = _at_temperature(form, logits, s - answered_at)
            quantile = with_rounding(state.quantiles[task]).astype(dtype)
            scale = np.exp(0.5 * s).astype(dtype)
            parameters |= form.prediction_region(tempered, scale, quantile)
        outputs |= {f"{task}_{name}": tensor for name, tensor in parameters.items()}
    return outputs


def _tempered(weighting: UncertaintyWeighting, predictions: Any, taken: set[str]) -> Any:
    """Symbolic predictions, with logits of exact likelihoods at the temperature of this moment.

    The layers that this takes have none of the names that are `taken`.
    """
    outputs = by_task(weighting.tasks, predictions, "predictions")
    dtype = "float64" if weighting.variable_dtype == "float64" else "float32"
    for task, log_variance in weighting.log_variances().items():
        likelihood, output = weighting.tasks[task], outputs[task]
        if not likelihood.is_tempered:
            continue
        if likelihood.per_channel:
            # A `Rescaling` by several numbers would depend on Keras's `image_data_format`.
            outputs[task] = _at_temperature(likelihood, ops.cast(output, dtype), log_variance)
        else:
            # An array, because Keras makes a plain number single precision first.
            scale = np.array(np.exp(-np.asarray(log_variance, "float64")))
            name = f"{task}_temperature"
            names = itertools.chain([name], (f"{name}_{index}" for index in itertools.count(1)))
            free = next(each for each in names if each not in taken)
            taken.add(free)
            outputs[task] = keras.layers.Rescaling(scale, dtype=dtype, name=free)(output)
    return in_structure_of(predictions, outputs)


def _at_temperature(form: Likelihood, logits: Any, log_temperature: Any) -> Any:
    """Symbolic logits of an exact form, as `form.temper` makes them.

    The factor is NumPy's. ONNX's converter takes a tensor, such as Keras's operations make of a
    number, for one more input of the model.
    """
    if not form.is_tempered:
        return logits
    scale = np.exp(-np.asarray(log_temperature, "float64")).astype(logits.dtype)
    if form.per_channel:
        classes = len(logits.shape) - len(form.loss_shape(logits.shape))
        scale = scale.reshape(-1, *[1] * classes)
    return logits * scale
