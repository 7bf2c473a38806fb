"""Data that are shuffled anew, and data sets that each have the labels of one task."""

import keras
import numpy as np
import pytest

from examples.batches import MixedArrays, mixed, shuffled
from keras_uncertainty_mtl import Categorical, Laplace, MultiTaskModel

# A data set of 300 depths and one of 60 classes.
RATES = {"depth": 0.25, "classes": 0.75}
MISSING = {"depth": np.float32("nan"), "classes": np.int32(-1)}


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(360, 3)).astype("float32")
    depth = 5 + rng.laplace(scale=2.0, size=300).astype("float32")
    return {"depth": (x[:300], depth), "classes": (x[300:], rng.integers(0, 4, 60, "int32"))}


def as_datasets(arrays):
    import tensorflow as tf

    return {
        task: tf.data.Dataset.from_tensor_slices(pair).shuffle(300, seed=0)
        for task, pair in arrays.items()
    }


def model():
    inputs = keras.Input((3,))
    heads = {
        "depth": keras.layers.Dense(1, kernel_initializer="zeros")(inputs),
        "classes": keras.layers.Dense(4, kernel_initializer="zeros")(inputs),
    }
    tasks = {"depth": Laplace(missing=np.nan), "classes": Categorical(missing=-1)}
    made = MultiTaskModel(inputs, heads, tasks)
    # The network stays as it is, so its error is known.
    made.compile(keras.optimizers.SGD(0.0), metrics={"depth": ["mae"]})
    return made


def batches_of(kind, arrays):
    if kind == "tf.data":
        return mixed(as_datasets(arrays), MISSING, RATES, batch_size=40, seed=0)
    return MixedArrays(arrays, MISSING, RATES, batch_size=40, seed=0, steps=100)


@pytest.mark.parametrize("kind", ["tf.data", "PyDataset"])
def test_data_sets_of_one_task_each_mix_at_their_rates(kind, arrays):
    batches = batches_of(kind, arrays)
    batches = batches.take(100).as_numpy_iterator() if kind == "tf.data" else iter(batches)
    _, labels = zip(*[next(batches) for _ in range(100)], strict=True)
    has_depth, has_class = (
        np.concatenate([observed(each[task]) for each in labels])
        for task, observed in (("depth", np.isfinite), ("classes", lambda y: y >= 0))
    )
    assert np.all(has_depth != has_class)
    assert has_depth.mean() == pytest.approx(RATES["depth"], abs=0.03)


@pytest.mark.parametrize("kind", ["tf.data", "PyDataset"])
def test_each_task_learns_from_its_own_data_set(kind, arrays):
    trained = model()
    batches = batches_of(kind, arrays)
    steps = {"steps_per_epoch": 100} if kind == "tf.data" else {}
    trained.fit(batches, verbose=0, **steps)
    # The mean absolute error of a head of zeros, of its own data set alone.
    expected = np.sqrt(2) * np.mean(np.abs(arrays["depth"][1]))
    assert trained.weighting.sigmas()["depth"] == pytest.approx(expected, rel=0.1)


def test_every_epoch_has_an_order_of_its_own():
    x = np.arange(32, dtype="float32")

    def orders(seed):
        batches = shuffled(x, {"y": x}, batch_size=8, seed=seed)
        return [np.concatenate([batch for batch, _ in batches.as_numpy_iterator()]) for _ in "12"]

    first, second = orders(0)
    assert sorted(first) == sorted(second) == list(x)
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(orders(0), [first, second])
