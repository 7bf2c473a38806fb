"""From a Keras loss to its likelihood."""

from collections.abc import Mapping
from typing import Any

from keras import losses, saving

from keras_uncertainty_mtl._keras_internals import loss_arguments
from keras_uncertainty_mtl._structures import naming_task
from keras_uncertainty_mtl.likelihoods.base import Likelihood
from keras_uncertainty_mtl.likelihoods.continuous import Gaussian, Laplace
from keras_uncertainty_mtl.likelihoods.discrete import Bernoulli, Categorical
from keras_uncertainty_mtl.likelihoods.gibbs import Gibbs, get_keras_loss, stock_function

_CLASS_OF_FUNCTION = {
    losses.mean_squared_error: losses.MeanSquaredError,
    losses.mean_absolute_error: losses.MeanAbsoluteError,
    losses.binary_crossentropy: losses.BinaryCrossentropy,
    losses.categorical_crossentropy: losses.CategoricalCrossentropy,
    losses.sparse_categorical_crossentropy: losses.SparseCategoricalCrossentropy,
}


def get(identifier: Any) -> Likelihood:
    """The likelihood of a Keras loss, a name or a config.

    Args:
        identifier: A `Likelihood` or its config, or an argument of `keras.losses.get`. The squared
            and absolute error and the cross-entropies become the matching likelihood, any other
            loss `Gibbs(loss)`. A cross-entropy of probabilities becomes the approximate form.

    Returns:
        A `Likelihood`.

    Raises:
        ValueError: If `identifier` is none of these.
    """
    if isinstance(identifier, dict) and "module" in identifier:
        identifier = saving.deserialize_keras_object(identifier)
    if isinstance(identifier, Likelihood):
        return identifier
    loss = get_keras_loss(identifier)
    if loss is None:
        raise ValueError(
            "Expected a likelihood, such as Gaussian() or Categorical(), or a Keras loss, its "
            f"name or config. Received: {identifier!r}"
        )
    return _from_keras_loss(loss)


def validate_tasks(tasks: Any) -> dict[str, Likelihood]:
    """The likelihood of each task."""
    if not isinstance(tasks, Mapping) or not tasks:
        raise ValueError(
            "`tasks` must be a dict from one task or more to likelihoods, in the order of the "
            f"outputs where these are a list: {{'depth': Laplace()}}. Received: {tasks!r}"
        )
    validated = {}
    for task, likelihood in tasks.items():
        if not isinstance(task, str) or not task or "/" in task:
            raise ValueError(
                f"A task's name must be a string, not empty, with no '/'. Received: {task!r}"
            )
        if task == "val" or task.startswith("val_"):
            raise ValueError(
                "A task's name must not be 'val' or begin with 'val_', which Keras puts before the "
                f"numbers of validation. Received: {task!r}. Give the task another name."
            )
        with naming_task(task):
            validated[task] = get(likelihood)
    return validated


def _from_keras_loss(loss: Any) -> Likelihood:
    function = stock_function(loss)
    kinds = (kind for known, kind in _CLASS_OF_FUNCTION.items() if known is function)
    kind = next(kinds, type(loss))
    if kind is losses.MeanSquaredError:
        return Gaussian()
    if kind is losses.MeanAbsoluteError:
        return Laplace()
    arguments = loss_arguments(loss)
    axis = arguments.get("axis", -1)
    is_sparse = kind is losses.SparseCategoricalCrossentropy
    if is_sparse and axis != -1:
        raise ValueError(
            f"A sparse cross-entropy must be over the last axis. Received: axis={axis}. Move the "
            "classes to the last axis."
        )
    if arguments.get("label_smoothing") or axis != -1:
        return Gibbs(loss)
    from_logits = arguments.get("from_logits", False)
    form = {"from_logits": from_logits, "approximate": not from_logits}
    if kind is losses.BinaryCrossentropy:
        return Bernoulli(**form)
    if is_sparse or kind is losses.CategoricalCrossentropy:
        return Categorical(is_sparse, missing=arguments.get("ignore_class"), **form)
    return Gibbs(loss)
