"""Private names of Keras do what this package uses them for, on every Keras that it supports."""

import keras
import numpy as np
import pytest

from keras_uncertainty_mtl import Gaussian, Laplace, MultiTaskModel
from keras_uncertainty_mtl._keras_internals import (
    copy_direction,
    exclude_from_weight_decay,
    layer_name,
    loss_arguments,
    take_losses,
)


@pytest.mark.parametrize(
    ("loss", "name", "value"),
    [
        (keras.losses.Huber(delta=3.0), "delta", 3.0),
        (keras.losses.CosineSimilarity(axis=1), "axis", 1),
        (keras.losses.BinaryCrossentropy(from_logits=True), "from_logits", True),
    ],
    ids=["huber", "cosine", "binary"],
)
def test_the_arguments_of_a_loss_are_those_it_was_made_with(loss, name, value):
    assert loss_arguments(loss)[name] == value


def test_the_layer_of_a_tensor_has_its_name_in_nested_models_too():
    inputs = keras.Input((2,))
    inner = keras.Model(inputs, [keras.layers.Dense(1, name=name)(inputs) for name in "ab"])
    outer = keras.Model(inputs, inner(inputs))
    assert [layer_name(each) for each in outer(keras.Input((2,)))] == ["a", "b"]
    assert layer_name(np.ones(2)) is None


def test_without_the_private_name_the_arguments_are_those_of_the_config():
    class Loss:
        def get_config(self):
            return {"delta": 3.0}

    assert loss_arguments(Loss()) == {"delta": 3.0}


@pytest.mark.parametrize("state", ["new", "built", "used"])
def test_weight_decay_moves_all_variables_but_the_excluded(state):
    variables = spared, other, user = [keras.Variable(np.ones(2)) for _ in range(3)]
    gradients = [keras.ops.zeros(2) for _ in variables]
    optimizer = keras.optimizers.AdamW(0.1, weight_decay=0.5)
    optimizer.exclude_from_weight_decay(var_list=[user])
    if state == "built":
        optimizer.build(variables)
    elif state == "used":
        optimizer.apply(gradients, variables)
    before = spared.numpy()
    exclude_from_weight_decay(optimizer, spared)
    optimizer.apply(gradients, variables)
    np.testing.assert_array_equal(spared.numpy(), before)
    np.testing.assert_array_equal(user.numpy(), 1)
    assert np.all(other.numpy() < 1)


def test_without_the_private_names_the_public_exclusion_is_called():
    class Optimizer:
        weight_decay = 0.5
        excluded = ()

        def exclude_from_weight_decay(self, var_list):
            self.excluded = var_list

    optimizer, variable = Optimizer(), keras.Variable(1.0)
    exclude_from_weight_decay(optimizer, variable)
    assert optimizer.excluded == [variable]


def test_added_losses_are_taken_from_all_layers_of_the_call():
    class Taker(keras.layers.Layer):
        def call(self, x):
            self.taken = [float(loss) for loss in take_losses(self)]
            self.left = len(model.losses)
            return x

        def compute_output_spec(self, x):
            return keras.KerasTensor(x.shape, x.dtype)

    x = keras.Input((2,))
    regularized = keras.layers.Dense(
        2, kernel_initializer="ones", kernel_regularizer="l1", activity_regularizer="l1"
    )
    taker = Taker()
    model = keras.Model(x, taker(regularized(x)))
    model(np.ones((1, 2), "float32"))
    # Of activity, 0.01 · |2| · 2 outputs. What is left is that of the kernel, and is no state.
    assert taker.taken == pytest.approx([0.04])
    assert taker.left == 1


def test_without_the_private_name_losses_are_refused():
    with pytest.raises(ValueError, match=r"several replicas.*MultiTaskModel"):
        take_losses(object())


def test_a_direction_is_copied_where_there_is_one():
    error, own, mean = keras.metrics.MeanSquaredError(), keras.metrics.Mean(), keras.metrics.Mean()
    copy_direction(mean, own)  # of a mean it is not known
    copy_direction(error, own)
    stop = keras.callbacks.EarlyStopping("mean_squared_error", patience=1)
    inputs = keras.Input((1,))
    model = MultiTaskModel(inputs, {"a": keras.layers.Dense(1)(inputs)}, {"a": Gaussian()})
    model.compile(metrics=[error])
    x = np.ones((4, 1))
    model.fit(x, x, verbose=0, callbacks=[stop])  # or an error that asks for a mode
    assert own._direction == error._direction


def test_metrics_of_outputs_in_a_list_are_named_by_task():
    inputs = keras.Input((2,))
    outputs = [keras.layers.Dense(1)(inputs) for _ in range(2)]
    model = MultiTaskModel(inputs, outputs, {"z": Gaussian(), "a": Laplace()})
    model.compile("adam", metrics={"z": ["mae"], "a": ["mse"]})
    x, y = np.ones((4, 2)), [np.zeros((4, 1)), np.ones((4, 1))]
    reported = model.evaluate(x, y, verbose=0, return_dict=True)
    z, a = model.predict(x, verbose=0)
    assert reported["z_mae"] == pytest.approx(np.mean(np.abs(z)), rel=1e-5)
    assert reported["a_mse"] == pytest.approx(np.mean((a - 1) ** 2), rel=1e-5)
