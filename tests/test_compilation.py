"""A training step compiles with XLA: no operation on the host, every shape known."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_uncertainty_mtl import Bernoulli, Categorical, Gaussian, Gibbs, Laplace, MultiTaskModel

pytestmark = pytest.mark.backends("tensorflow", reason="XLA is reached through tf.function")

NAN = float("nan")
BATCH, STEPS, CHANNELS = 6, 5, 2

LIKELIHOODS = {
    "gaussian": Gaussian(missing=NAN),
    "gaussian twin": Gaussian(missing=NAN),
    "channels": Laplace(per_channel=True, missing=-999.0),
    "channels' twin": Laplace(per_channel=True, missing=-999.0),
    "heteroscedastic": Laplace(heteroscedastic=True),
    "heteroscedastic twin": Laplace(heteroscedastic=True),
    "exact": Categorical(missing=255),
    "exact twin": Categorical(missing=255),
    "approximate": Categorical(approximate=True, missing=-1),
    "one-hot": Categorical(sparse=False),
    "bernoulli": Bernoulli(missing=-1),
    "huber": Gibbs("huber"),
}


def tokens_with_targets():
    rng = np.random.default_rng(0)
    numbers = rng.normal(size=(BATCH, STEPS, CHANNELS)).astype("float32")
    ids = rng.integers(CHANNELS, size=(BATCH, STEPS)).astype("int32")
    targets = {
        **dict.fromkeys(["heteroscedastic", "heteroscedastic twin"], numbers[..., :1]),
        **dict.fromkeys(["exact", "exact twin"], ids),
        "approximate": ids,
        "one-hot": np.eye(CHANNELS, dtype="float32")[ids],
        "bernoulli": ids[..., None] * np.ones(CHANNELS, "int32"),
    }
    targets = {task: targets.get(task, numbers).copy() for task in LIKELIHOODS}
    targets["gaussian"][::2] = NAN
    targets["exact"][:, 0] = 255
    # Token 0 is padding, which the mask leaves out.
    return rng.integers(4, size=(BATCH, STEPS)).astype("int32"), targets


def is_on_the_host(operation):
    return "PyFunc" in operation.type or operation.type.startswith(("Host", "_Host"))


@pytest.mark.parametrize(
    ("weigh", "mask"), [(None, False), ("samples", False), ("elements", True), (None, True)]
)
def test_a_step_compiles_whole_and_knows_every_shape(weigh, mask):
    inputs = keras.Input((STEPS,), dtype="int32")
    hidden = keras.layers.Embedding(4, 8, mask_zero=mask)(inputs)
    outputs = {task: keras.layers.Dense(CHANNELS)(hidden) for task in LIKELIHOODS}
    model = MultiTaskModel(inputs, outputs, LIKELIHOODS)
    model.compile("adam")
    tokens, targets = tokens_with_targets()
    batch = [tokens, targets]
    if weigh:
        shape = (BATCH,) if weigh == "samples" else (BATCH, STEPS)
        weights = np.linspace(0, 1, BATCH * STEPS, dtype="float32").reshape(BATCH, STEPS)
        batch.append(dict.fromkeys(LIKELIHOODS, weights[(...,) if len(shape) > 1 else (..., 0)]))
    batch = keras.tree.map_structure(tf.constant, tuple(batch))
    model.optimizer.build(model.trainable_variables)

    step = tf.function(model.train_step, jit_compile=True)
    graph = step.get_concrete_function(batch).graph
    operations = graph.get_operations()
    for operation in operations:
        assert not is_on_the_host(operation), operation
        for tensor in operation.outputs:
            assert tensor.dtype == tf.resource or tensor.shape.is_fully_defined(), operation
    assert len(operations) > 100
    assert all(np.isfinite(value) for value in step(batch).values())
