"""What `fit` runs on TensorFlow in place of Keras's function: the same, without what that adds."""

import gc
import weakref

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_uncertainty_mtl import Categorical, Gaussian, MultiTaskModel, dispatch
from keras_uncertainty_mtl import model as model_module

pytestmark = pytest.mark.backends("tensorflow", reason="replaces a function of TensorFlow's")

ROWS = 20


def make_model(**options):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((3,))
    outputs = {"depth": keras.layers.Dense(1)(inputs), "classes": keras.layers.Dense(4)(inputs)}
    model = MultiTaskModel(inputs, outputs, {"depth": Gaussian(), "classes": Categorical()})
    model.compile("adam", metrics={"classes": ["accuracy"]}, **options)
    return model


def arrays():
    rng = np.random.default_rng(0)
    return rng.normal(size=(ROWS, 3)).astype("float32"), {
        "depth": rng.normal(size=(ROWS, 1)).astype("float32"),
        "classes": rng.integers(4, size=ROWS).astype("int32"),
    }


def weights():
    return np.linspace(0.5, 2.0, ROWS).astype("float32")


def dataset(batch_size=8, **options):
    return tf.data.Dataset.from_tensor_slices(arrays()).batch(batch_size, **options)


def generated():
    """A dataset that does not know how long it is."""
    spec = dataset().element_spec
    return tf.data.Dataset.from_generator(lambda: iter(dataset()), output_signature=spec)


@pytest.fixture
def keras_functions(monkeypatch):
    """Has models use Keras's own functions from now on."""

    def use():
        monkeypatch.setattr(
            model_module, "on_next_batch", lambda step, otherwise, jit_compile: otherwise
        )

    return use


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize(
    "make_data",
    [
        lambda: {"x": arrays()[0], "y": arrays()[1], "batch_size": 8},
        lambda: {"x": arrays()[0], "y": arrays()[1], "batch_size": 8, "sample_weight": weights()},
        lambda: {"x": dataset()},
        lambda: {"x": generated()},
        lambda: {"x": dataset().repeat(), "steps_per_epoch": 4},
        lambda: {"x": (batch for batch in dataset().repeat(2)), "steps_per_epoch": 3},
    ],
    ids=["arrays", "weighted arrays", "dataset", "unknown length", "endless", "generator"],
)
def test_models_train_and_evaluate_as_with_keras_own_function(
    make_data, jit_compile, keras_functions
):
    histories, sigmas = [], []
    for _ in ("ours", "Keras's"):
        model = make_model(jit_compile=jit_compile)
        options = {"epochs": 2, "shuffle": False, "verbose": 0, "validation_data": dataset()}
        histories.append(model.fit(**make_data(), **options).history)
        sigmas.append(model.weighting.sigmas())
        keras_functions()
    assert histories[0] == histories[1]
    assert sigmas[0] == sigmas[1]
    assert {"depth_sigma", "val_classes_accuracy"} < histories[0].keys()


def test_keras_function_is_not_run(monkeypatch):
    """Fails when Keras no longer makes its functions by the private method that is overridden."""

    def refuse(*args):
        raise AssertionError("a step's results are put into an optional, or its argument is bound")

    monkeypatch.setattr(tf.experimental.Optional, "from_value", refuse)
    concrete_function = type(tf.function(lambda: 0).get_concrete_function())
    monkeypatch.setattr(concrete_function, "__call__", refuse)
    model = make_model()
    model.fit(dataset(), verbose=0)
    model.evaluate(dataset(), verbose=0)


def test_a_tensorflow_without_its_private_function_is_called_as_it_may_be():
    def concrete_function(iterator):
        return iterator

    assert dispatch._direct_call(concrete_function) is concrete_function


@pytest.mark.parametrize("options", [{"run_eagerly": True}, {"steps_per_execution": 2}], ids=str)
def test_keras_function_is_run_where_it_does_more(monkeypatch, options):
    monkeypatch.setattr(model_module, "on_next_batch", None)
    assert np.isfinite(make_model(**options).fit(dataset(), verbose=0).history["loss"][0])


def test_functions_may_be_run_eagerly():
    eager = []

    class Model(MultiTaskModel):
        def train_step(self, data):
            eager.append(tf.executing_eagerly())
            return super().train_step(data)

    source = make_model()
    model = Model(source.input, source.output)
    model.compile("adam")
    tf.config.run_functions_eagerly(True)
    try:
        model.fit(dataset(), verbose=0)
    finally:
        tf.config.run_functions_eagerly(False)
    assert eager == [True] * 3


def test_too_few_data_end_the_training_with_a_warning():
    model = make_model()
    with pytest.warns(UserWarning, match="ran out of data"):
        model.fit(dataset(), steps_per_epoch=5, verbose=0)
    assert int(model.optimizer.iterations) == 3


def test_data_of_another_structure_or_size_are_traced_anew():
    model = make_model()
    x, y = arrays()
    model.fit(dataset(8), verbose=0)
    model.fit(dataset(5, drop_remainder=True), verbose=0)
    model.fit(dataset(10, drop_remainder=True), verbose=0)
    model.fit(x, y, sample_weight=weights(), batch_size=4, verbose=0)
    model.fit(dataset(8), verbose=0)
    model.train_on_batch(x, y)
    assert int(model.optimizer.iterations) == 3 + 4 + 2 + 5 + 3 + 1


def test_an_optional_input_may_be_left_out():
    class Sum(keras.layers.Layer):
        def call(self, first, second=None):
            return first if second is None else first + second

    features, more = keras.Input((3,)), keras.Input((3,), optional=True)
    outputs = {"depth": keras.layers.Dense(1)(Sum()(features, more))}
    model = MultiTaskModel([features, more], outputs, {"depth": Gaussian()})
    model.compile("adam")
    x, y = arrays()
    # For those of a generator Keras has a tf.experimental.Optional stand in.
    batches = (((x, None), {"depth": y["depth"]}) for _ in range(2))
    history = model.fit(batches, steps_per_epoch=2, verbose=0).history
    assert np.isfinite(history["loss"][0])


def test_an_iterator_is_let_go_of():
    model = make_model()
    model.make_train_function()
    iterator = iter(dataset())
    model.train_function(iterator)
    gone = weakref.ref(iterator)
    del iterator
    gc.collect()
    assert gone() is None


def test_an_error_of_the_data_is_raised():
    def broken(x, y):
        return tf.debugging.check_numerics(x / 0.0, "broken data"), y

    with pytest.raises(tf.errors.InvalidArgumentError, match="broken data"):
        make_model().fit(dataset().map(broken), verbose=0)
