"""The one tensor that a step's numbers travel in: the same for everybody, and really one."""

import functools
import sys

import keras
import numpy as np
import pytest
from keras import ops

from keras_uncertainty_mtl import Categorical, Gaussian, MultiTaskModel
from keras_uncertainty_mtl import model as model_module

TAKES_SEVERAL_STEPS = pytest.mark.backends(
    "tensorflow", "jax", reason="Keras on PyTorch takes no steps_per_execution"
)


def make_model():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((3,))
    outputs = {"depth": keras.layers.Dense(1)(inputs), "classes": keras.layers.Dense(4)(inputs)}
    return MultiTaskModel(inputs, outputs, {"depth": Gaussian(), "classes": Categorical()})


def data():
    rng = np.random.default_rng(0)
    return rng.normal(size=(20, 3)), {
        "depth": rng.normal(size=(20, 1)),
        "classes": rng.integers(4, size=20),
    }


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"run_eagerly": True},
        pytest.param({"steps_per_execution": 2}, marks=TAKES_SEVERAL_STEPS),
    ],
    ids=["compiled", "run_eagerly", "steps_per_execution"],
)
def test_history_evaluate_and_train_on_batch_are_as_without(monkeypatch, options):
    x, y = data()
    seen = []
    for packed in (True, False):
        if not packed:
            monkeypatch.setattr(model_module, "as_one_tensor", lambda step, make: make(step))
        model = make_model()
        model.compile("adam", metrics={"classes": ["accuracy"]}, **options)
        history = model.fit(
            x, y, batch_size=8, epochs=2, shuffle=False, validation_data=(x, y), verbose=0
        )
        seen.append(
            history.history
            | model.evaluate(x, y, verbose=0, return_dict=True)
            | {"list": model.train_on_batch(x, y)}
        )
    assert seen[0].keys() == seen[1].keys()
    assert {"loss", "depth_sigma", "classes_accuracy", "val_depth_loss"} < seen[0].keys()
    for name, values in seen[0].items():
        np.testing.assert_allclose(values, seen[1][name], rtol=1e-6, err_msg=name)


def test_callbacks_see_numbers_after_every_batch():
    logs_of_batches = []
    x, y = data()
    model = make_model()
    model.compile("adam")
    callback = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: logs_of_batches.append(dict(logs))
    )
    model.fit(x, y, batch_size=10, verbose=0, callbacks=[callback])
    assert len(logs_of_batches) == 2
    for logs in logs_of_batches:
        assert set(logs) == {"loss", *(f"{t}_{v}" for t in y for v in ("loss", "sigma"))}
        assert all(isinstance(value, float) for value in logs.values())


@pytest.mark.backends("tensorflow", reason="iterators and steps without a state are TensorFlow's")
def test_what_a_compiled_step_of_tensorflow_returns_is_one_tensor(monkeypatch):
    """Fails when Keras no longer makes its functions by the private method that is overridden."""
    returned = []
    on_next_batch = model_module.on_next_batch

    def recording(*args):
        function = on_next_batch(*args)
        return lambda iterator: returned.append(function(iterator)) or returned[-1]

    monkeypatch.setattr(model_module, "on_next_batch", recording)
    x, y = data()
    model = make_model()
    model.compile("adam")
    model.fit(x, y, verbose=0)
    model.evaluate(x, y, verbose=0)
    assert [[tuple(v.shape) for v in logs.values()] for logs in returned] == [[(5,)], [(5,)]]


@pytest.mark.backends("tensorflow", reason="iterators and steps without a state are TensorFlow's")
def test_tensorflow_sees_at_once_what_the_numbers_of_a_step_are():
    """Fails when it no longer does, by their class or its name: all is slower."""
    import tensorflow as tf

    x, y = data()
    model = make_model()
    model.compile("adam")
    model.make_train_function()
    logs = model.train_function(iter(tf.data.Dataset.from_tensors((x, y))))
    assert set(logs) == {"loss", *(f"{t}_{v}" for t in y for v in ("loss", "sigma"))}
    for name, number in logs.items():
        assert number.numpy() == pytest.approx(float(number)) == tf.add(number, 0).numpy(), name
    assert calls_within(tf.is_tensor, number) == 1 < calls_within(tf.is_tensor, 1.0)
    if tuple(map(int, tf.__version__.split(".")[:2])) >= (2, 21):
        assert not tf.is_tensor(number)


def calls_within(function, argument):
    """How many functions of Python a call of one runs, itself included."""
    calls = []
    sys.setprofile(lambda frame, event, _: calls.append(frame) if event == "call" else None)
    try:
        function(argument)
    finally:
        sys.setprofile(None)
    return len(calls)


@pytest.mark.backends("jax", reason="steps with a state are JAX's")
def test_what_a_compiled_step_of_jax_returns_is_one_array(monkeypatch):
    """Fails when Keras no longer makes its functions by the private method that is overridden."""
    import jax

    returned = []
    jit = jax.jit

    def recording_jit(function, **options):
        compiled = jit(function, **options)

        def recorded(*args):
            logs, state = compiled(*args)
            returned.append(logs)
            return logs, state

        return recorded

    x, y = data()
    model = make_model()
    model.compile("adam")
    monkeypatch.setattr(jax, "jit", recording_jit)
    model.fit(x, y, verbose=0)
    model.evaluate(x, y, verbose=0)
    assert [[v.shape for v in logs.values()] for logs in returned] == [[(5,)], [(5,)]]


@pytest.mark.backends("torch", reason="PyTorch compiles no step")
def test_what_a_step_of_pytorch_returns_leaves_its_device_at_once(monkeypatch):
    read = []
    convert_to_numpy = ops.convert_to_numpy
    monkeypatch.setattr(ops, "convert_to_numpy", lambda x: read.append(x) or convert_to_numpy(x))
    x, y = data()
    model = make_model()
    model.compile("adam")
    model.fit(x, y, epochs=2, verbose=0)
    logs = model.train_function([(ops.convert_to_tensor(x), y)])
    assert set(logs) == {"loss", *(f"{t}_{v}" for t in y for v in ("loss", "sigma"))}
    read.clear()
    numbers = [float(number) for number in logs.values()]
    assert np.isfinite(numbers).all()
    assert [tuple(vector.shape) for vector in read] == [(5,)]


@pytest.mark.backends("jax", reason="steps with a state are JAX's")
def test_jax_compiles_a_train_step_of_ones_own_as_it_is_wrapped():
    def counted(step):
        @functools.wraps(step)
        def counting(*args):
            logs, state = step(*args)
            return logs | {"one": ops.ones(())}, state

        return counting

    class Model(MultiTaskModel):
        train_step = counted(MultiTaskModel.train_step)

    x, y = data()
    source = make_model()
    model = Model(source.input, source.output)
    model.compile("adam")
    history = model.fit(x, y, verbose=0).history
    assert history["one"] == [1]
    assert "depth_sigma" in history


@pytest.mark.backends("jax", reason="steps with a state are JAX's")
def test_what_jax_hands_from_step_to_step_is_not_searched_for_layers():
    """Fails when Keras keeps it under another name: then its loop is slower, and no worse."""

    class Reading(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            states.append(self.model._jax_state)

    states = []
    x, y = data()
    model = make_model()
    model.compile("adam")
    model.fit(x, y, batch_size=10, verbose=0, callbacks=[Reading()])
    assert [type(state) for state in states] == [dict, dict]
    assert {type(variables) for state in states for variables in state.values()} == {list}


@pytest.mark.backends("tensorflow", reason="iterators and steps without a state are TensorFlow's")
def test_a_train_step_of_ones_own_may_report_whatever_it_likes():
    class Model(MultiTaskModel):
        def train_step(self, data):
            return super().train_step(data) | {"rows": ops.shape(data[0])[0], "pair": ops.ones(2)}

    x, y = data()
    source = make_model()
    model = Model(source.input, source.output)
    model.compile("adam")
    history = model.fit(x, y, batch_size=20, verbose=0).history
    assert history["rows"] == [20]
    assert "depth_sigma" in history


@pytest.mark.backends("tensorflow", reason="iterators and steps without a state are TensorFlow's")
def test_steps_that_report_other_numbers_each_have_their_own():
    class Model(MultiTaskModel):
        def train_step(self, data):
            logs = super().train_step(data)
            if keras.utils.unpack_x_y_sample_weight(data)[2] is not None:
                return {f"weighted_{name}": value for name, value in logs.items()}
            return logs

    x, y = data()
    source = make_model()
    model = Model(source.input, source.output)
    model.compile("adam")
    weights = np.ones(len(x))
    one, other, again = (
        set(model.train_on_batch(x, y, sample_weight=given, return_dict=True))
        for given in (None, weights, None)
    )
    assert one == again == {"loss", *(f"{t}_{v}" for t in y for v in ("loss", "sigma"))}
    assert other == {f"weighted_{name}" for name in one}


@pytest.mark.backends("tensorflow", reason="iterators and steps without a state are TensorFlow's")
def test_tensorflow_traces_a_step_once():
    traces = []

    class Model(MultiTaskModel):
        def train_step(self, data):
            traces.append(data)
            return super().train_step(data)

    x, y = data()
    source = make_model()
    model = Model(source.input, source.output)
    model.compile(keras.optimizers.LossScaleOptimizer(keras.optimizers.AdamW()))
    model.fit(x, y, epochs=2, batch_size=10, verbose=0)
    model.fit(x, y, epochs=2, batch_size=10, verbose=0)
    assert len(traces) == 1
