"""The few arrays that a batch travels to JAX in: the same for the step, and really few."""

import keras
import ml_dtypes
import numpy as np
import pytest

from keras_uncertainty_mtl import Gaussian, MultiTaskModel
from keras_uncertainty_mtl.batches import MANY, SMALL, jit_of_few_arrays

pytestmark = pytest.mark.backends("jax", reason="JAX takes long over each array")

jax = pytest.importorskip("jax")

RNG = np.random.default_rng(0)

BATCHES = {
    "of many dtypes and shapes": {
        "floats": [
            RNG.normal(size=shape).astype("float32") for shape in ((), (1,), (4, 1), (2, 3))
        ],
        "half": (RNG.normal(size=(4, 2)).astype("float16"), np.ones(3, ml_dtypes.bfloat16)),
        "integers": [np.arange(5, dtype=dtype) for dtype in ("int8", "uint8", "int32")],
        "flags": np.array([True, False]),
        "empty": np.zeros((0, 3), "float32"),
        "none": None,
    },
    "with what is large, of JAX's, or no plain array": [
        *(np.full((3,), value, "float64") for value in range(MANY)),
        np.ones(SMALL, "float32"),
        lambda: jax.numpy.arange(3),
        np.asmatrix(np.eye(2)),
        np.float32(2.0),
        7,
    ],
    "of columns and reversed rows": [
        np.arange(12.0, dtype="float32").reshape(3, 4)[::-1, column] for column in range(4)
    ]
    * 3,
    "of few": (np.ones((4, 3), "float32"), {"y": np.arange(4)}),
    "of none": {},
}


@pytest.mark.parametrize("batch", BATCHES.values(), ids=BATCHES)
def test_a_step_sees_the_batch_as_jax_hands_it_over(batch):
    # JAX must not be started where these tests are collected for another backend.
    batch = jax.tree.map(lambda leaf: leaf() if callable(leaf) else leaf, batch)
    expected = jax.jit(lambda batch: batch)(batch)
    state, seen = jit_of_few_arrays(lambda state, batch: (state + 1, batch))(
        jax.numpy.zeros(()), batch
    )
    assert state == 1
    assert jax.tree.structure(seen) == jax.tree.structure(expected)
    for of_few, of_jax in zip(jax.tree.leaves(seen), jax.tree.leaves(expected), strict=True):
        assert of_few.dtype == of_jax.dtype
        np.testing.assert_array_equal(of_few, of_jax, strict=True)


@pytest.fixture
def handed_over(monkeypatch):
    """What each call of a compiled step is given for the batch."""
    batches = []
    jit = jax.jit

    def recording_jit(function, **options):
        compiled = jit(function, **options)
        return lambda *args: batches.append(args[1]) or compiled(*args)

    monkeypatch.setattr(jax, "jit", recording_jit)
    return batches


def test_many_small_arrays_are_handed_over_as_one_of_each_dtype(handed_over):
    step = jit_of_few_arrays(lambda state, batch: batch)
    few = [np.zeros(2, "float32")] * (MANY - 1)
    largest = np.ones(SMALL, "int8")
    too_large = np.ones(SMALL, "int16")
    step(0.0, few)
    step(0.0, [*few, few[0], largest, largest[1:], too_large, too_large, np.arange(3)])
    of_few, of_many = map(jax.tree.leaves, handed_over)
    assert [array.shape for array in of_few] == [(2,)] * (MANY - 1)
    assert sorted((array.dtype.name, array.size) for array in of_many) == [
        ("float32", 2 * MANY),
        ("int16", SMALL),
        ("int16", SMALL),
        ("int64", 3),
        ("int8", 2 * SMALL - 1),
    ]


def test_what_is_on_the_device_is_handed_over_as_it_is(handed_over):
    batch = [jax.numpy.zeros(2)] * MANY
    jit_of_few_arrays(lambda state, batch: batch)(0.0, batch)
    assert handed_over[0] is batch


def test_a_step_is_traced_once_for_each_layout():
    traced = []

    def step(state, batch):
        traced.append(jax.tree.map(jax.numpy.shape, batch))
        return state

    compiled = jit_of_few_arrays(step)
    for size in (4, 4, 3, 4, 3):
        compiled(0.0, {str(index): np.ones(size, "float32") for index in range(MANY)})
    # As many numbers, but not in the same arrays.
    halves = [(2,), (6,), *[(4,)] * (MANY - 2)]
    compiled(0.0, {str(index): np.ones(shape, "float32") for index, shape in enumerate(halves)})
    assert [shapes["0"] for shapes in traced] == [(4,), (3,), (2,)]


def test_the_state_is_donated():
    compiled = jit_of_few_arrays(lambda state, batch: state + sum(batch))
    state = jax.numpy.zeros(3)
    for batch in ([np.ones(3, "float32")], [np.ones(3, "float32")] * MANY):
        before = state
        state = compiled(before, batch)
        assert before.is_deleted()
    np.testing.assert_array_equal(state, 1 + MANY)


def test_a_model_trains_on_large_arrays_and_many_small_ones_of_double_precision():
    """As on the same batch on the device, of which nothing is handed over in a vector."""
    tasks = {f"task_{index}": Gaussian() for index in range(MANY)}
    x = RNG.normal(size=(8, SMALL)).astype("float32")
    y = {task: RNG.normal(size=(8, 1)) for task in tasks}
    histories = []
    for place in (np.asarray, jax.numpy.asarray):
        keras.utils.set_random_seed(0)
        inputs = keras.Input((SMALL,))
        outputs = {task: keras.layers.Dense(1)(inputs) for task in tasks}
        model = MultiTaskModel(inputs, outputs, tasks)
        model.compile("adam")
        batch = jax.tree.map(place, (x, y))
        histories.append(model.fit((batch for _ in range(4)), verbose=0).history)
    assert histories[0].keys() == histories[1].keys()
    for name, values in histories[0].items():
        np.testing.assert_allclose(values, histories[1][name], rtol=1e-6, err_msg=name)
