"""The few arrays that a batch travels to JAX in: the same for the step, and really few."""

import ml_dtypes
import numpy as np
import pytest

from keras_uncertainty_mtl.batches import MANY, SMALL, jit_of_few_arrays

jax = pytest.importorskip("jax")
jnp = jax.numpy

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
    "with what is large, on the device or no array": [
        *(np.full((3,), value, "int32") for value in range(MANY)),
        np.ones(SMALL, "float32"),
        jnp.arange(3),
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
    expected = jax.jit(lambda batch: batch)(batch)
    state, seen = jit_of_few_arrays(lambda state, batch: (state + 1, batch))(jnp.zeros(()), batch)
    assert state == 1
    assert jax.tree.structure(seen) == jax.tree.structure(expected)
    for of_few, of_jax in zip(jax.tree.leaves(seen), jax.tree.leaves(expected), strict=True):
        assert of_few.dtype == of_jax.dtype
        np.testing.assert_array_equal(of_few, of_jax, strict=True)


def test_many_small_arrays_are_handed_over_as_one_of_each_dtype(monkeypatch):
    handed_over = []
    jit = jax.jit

    def recording_jit(function, **options):
        compiled = jit(function, **options)
        return lambda *args: handed_over.append(jax.tree.leaves(args[1])) or compiled(*args)

    monkeypatch.setattr(jax, "jit", recording_jit)
    step = jit_of_few_arrays(lambda state, batch: batch)
    few = [np.zeros(2, "float32")] * (MANY - 1)
    largest = np.ones(SMALL, "int8")
    too_large = np.ones(SMALL, "int16")
    step(0.0, few)
    step(0.0, [*few, few[0], largest, largest[1:], too_large, np.arange(3)])
    assert [array.shape for array in handed_over[0]] == [(2,)] * (MANY - 1)
    assert {array.dtype: array.size for array in handed_over[1]} == {
        few[0].dtype: 2 * MANY,
        largest.dtype: 2 * SMALL - 1,
        too_large.dtype: SMALL,
        np.arange(3).dtype: 3,
    }
    assert len(handed_over[1]) == 4


def test_a_step_is_traced_once_for_each_layout():
    traced = []

    def step(state, batch):
        traced.append(jax.tree.map(jnp.shape, batch))
        return state

    compiled = jit_of_few_arrays(step)
    for size in (4, 4, 3, 4, 3):
        compiled(0.0, {str(index): np.ones(size, "float32") for index in range(MANY)})
    # As many numbers, but not in the same arrays.
    halves = [(2,), (6,), *[(4,)] * (MANY - 2)]
    compiled(0.0, {str(index): np.ones(shape, "float32") for index, shape in enumerate(halves)})
    assert [shapes["0"] for shapes in traced] == [(4,), (3,), (2,)]
