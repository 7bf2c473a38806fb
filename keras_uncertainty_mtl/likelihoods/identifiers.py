"""From a Keras loss to its likelihood."""

from __future__ import annotations

from typing import Any

import keras

from keras_uncertainty_mtl._keras_internals import loss_arguments
from keras_uncertainty_mtl.likelihoods.base import Likelihood
from keras_uncertainty_mtl.likelihoods.continuous import Gaussian, Laplace
from keras_uncertainty_mtl.likelihoods.discrete import Bernoulli, Categorical
from keras_uncertainty_mtl.likelihoods.gibbs import Gibbs, get_keras_loss

_LOSS_OF_FUNCTION = {
    keras.losses.mean_squared_error: keras.losses.MeanSquaredError,
    keras.losses.mean_absolute_error: keras.losses.MeanAbsoluteError,
    keras.losses.binary_crossentropy: keras.losses.BinaryCrossentropy,
    keras.losses.categorical_crossentropy: keras.losses.CategoricalCrossentropy,
    keras.losses.sparse_categorical_crossentropy: keras.losses.SparseCategoricalCrossentropy,
}


def get(identifier: Any) -> Likelihood:
    """The likelihood of a Keras loss, a name or a config.

    Args:
        identifier: A `Likelihood` or its config; or an argument of `keras.losses.get`: a loss, its
            name or config, a function. The squared and absolute error and the cross-entropies
            become the matching likelihood, any other loss becomes `Gibbs(loss)`. Cross-entropy of
            probabilities becomes the approximate form, as the exact one needs logits.

    Returns:
        A `Likelihood`.

    Raises:
        ValueError: If `identifier` is none of these.
    """
    likelihood = identifier
    if isinstance(identifier, dict) and "module" in identifier:
        likelihood = keras.saving.deserialize_keras_object(identifier)
    if isinstance(likelihood, Likelihood):
        return likelihood
    loss = get_keras_loss(likelihood)
    if loss is None:
        raise ValueError(
            "Expected a likelihood, such as Gaussian() or Categorical(), or a Keras loss, its "
            f"name or config. Received: {identifier!r}"
        )
    return _from_keras_loss(loss)


def _from_keras_loss(loss: Any) -> Likelihood:
    if loss in _LOSS_OF_FUNCTION:
        loss = _LOSS_OF_FUNCTION[loss]()
    kind = type(loss)
    if kind is keras.losses.MeanSquaredError:
        return Gaussian()
    if kind is keras.losses.MeanAbsoluteError:
        return Laplace()
    arguments = loss_arguments(loss)
    axis = arguments.get("axis", -1)
    if kind is keras.losses.SparseCategoricalCrossentropy and axis != -1:
        raise ValueError(
            "Expected a sparse cross-entropy over the last axis. "
            f"Received: {kind.__name__}(axis={axis}). Move the classes to the last axis."
        )
    if arguments.get("label_smoothing") or axis != -1:
        return Gibbs(loss)
    from_logits = arguments.get("from_logits", False)
    form = {"from_logits": from_logits, "approximate": not from_logits}
    if kind is keras.losses.BinaryCrossentropy:
        return Bernoulli(**form)
    if kind is keras.losses.CategoricalCrossentropy:
        return Categorical(sparse=False, **form)
    if kind is keras.losses.SparseCategoricalCrossentropy:
        return Categorical(missing=arguments.get("ignore_class"), **form)
    return Gibbs(loss)
