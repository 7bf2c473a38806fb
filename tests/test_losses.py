"""Raw losses as anybody may call them: with arrays, and with symbolic tensors, on every backend."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_uncertainty_mtl import Bernoulli, Categorical, Gaussian, Laplace

LIKELIHOODS = [Gaussian(), Laplace(), Bernoulli(), Categorical(), Categorical(approximate=True)]


def ids_of(likelihoods):
    return [f"{type(item).__name__}-{getattr(item, 'approximate', '')}" for item in likelihoods]


@pytest.mark.parametrize("likelihood", LIKELIHOODS, ids=ids_of(LIKELIHOODS))
def test_symbolic_tensors_have_a_symbolic_loss(likelihood):
    predictions = keras.Input((5,))
    target_shape = likelihood.target_shape(predictions.shape)
    targets = keras.Input(target_shape[1:], dtype=likelihood.target_dtype)
    assert likelihood.loss(targets, predictions).shape == target_shape
    assert likelihood.negative_log_likelihood(targets, predictions, 0.5).shape == target_shape


@pytest.mark.parametrize("likelihood", LIKELIHOODS, ids=ids_of(LIKELIHOODS))
def test_arrays_have_a_tensor_of_losses(likelihood):
    predictions = np.full((2, 5), 0.5, "float32")
    targets = np.ones(likelihood.target_shape(predictions.shape), likelihood.target_dtype)
    losses = likelihood.loss(targets, predictions)
    assert ops.is_tensor(losses)
    expected = {Gaussian: 0.25, Laplace: 0.5, Bernoulli: np.log1p(np.exp(-0.5))}
    of_one = expected.get(type(likelihood), np.log(5))  # All classes are as likely.
    np.testing.assert_allclose(
        ops.convert_to_numpy(losses), np.full(targets.shape, of_one), rtol=1e-6
    )


@pytest.mark.parametrize("approximate", [False, True])
def test_truth_values_are_classes(approximate):
    losses = Categorical(approximate=approximate).loss(np.array([True, False]), ops.zeros((2, 5)))
    np.testing.assert_allclose(ops.convert_to_numpy(losses), np.log([5, 5]), rtol=1e-6)
