"""Twenty thousand steps in one process take no more memory and no new graph."""

import gc

import keras
import numpy as np
import psutil
import pytest

from keras_uncertainty_mtl import Categorical, Gaussian, Laplace, MultiTaskModel

pytestmark = pytest.mark.backends(
    "tensorflow", reason="JAX compiles each batch size, PyTorch nothing"
)

STEPS, BATCH = 1000, 8


@keras.saving.register_keras_serializable(package="tests")
class Counting(Gaussian):
    """Counts how often its Python runs, once for each graph."""

    calls = 0

    def loss(self, targets, predictions):
        Counting.calls += 1
        return super().loss(targets, predictions)


def memory():
    gc.collect()
    return psutil.Process().memory_info().rss


# Steps that Keras executes one by one take several times as long.
@pytest.mark.parametrize(("steps_per_execution", "epochs"), [(1, 8), (10, 20)])
def test_memory_is_flat_and_nothing_is_traced_after_the_first_epoch(steps_per_execution, epochs):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(STEPS * BATCH, 4)).astype("float32")
    y = {
        "counted": x[:, :1],
        "near": np.where(rng.random((len(x), 2)) < 0.5, np.nan, x[:, :2]).astype("float32"),
        "kind": (x[:, 3] > 0).astype("int32"),
    }
    inputs = keras.Input((4,))
    outputs = {
        task: keras.layers.Dense(units)(inputs)
        for task, units in (("counted", 1), ("near", 2), ("kind", 2))
    }
    near = Laplace(per_channel=True, missing=float("nan"))
    model = MultiTaskModel(
        inputs, outputs, {"counted": Counting(), "near": near, "kind": Categorical()}
    )
    model.compile("adam", steps_per_execution=steps_per_execution)

    def epoch(index):
        # The last batches of training and evaluation have another size in each epoch. Data of whole
        # batches would need one more graph, so there are none.
        samples = len(x) - 1 - index % (BATCH - 1)
        data = x[:samples], {task: target[:samples] for task, target in y.items()}
        model.fit(*data, batch_size=BATCH, verbose=0)
        held_out = x[: 97 + index], {task: target[: 97 + index] for task, target in y.items()}
        return model.evaluate(*held_out, batch_size=32, verbose=0, return_dict=True)

    epoch(0)
    traced = Counting.calls
    for index in range(1, 5):
        epoch(index)
    before = memory()
    for index in range(5, epochs):
        evaluation = epoch(index)
    assert int(model.optimizer.iterations) == STEPS * epochs
    assert np.all(np.isfinite(list(evaluation.values())))
    assert Counting.calls == traced
    assert memory() < 1.01 * before
