"""What a compiled step of JAX is given, as few arrays until it has them."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np

Batch = Any
Step = Callable[[Any, Batch], Any]

# Fewer arrays take as long to put together as to hand over.
MANY = 8

# Bytes. To copy a larger array takes as long as to hand it over by itself.
SMALL = 2**12


def jit_of_few_arrays(step: Step) -> Step:
    """A step compiled by JAX, which is handed the small arrays of a batch together.

    Every NumPy array that a compiled function is given costs four microseconds, however small it
    is. With a target a task, that is more than all the rest of the weighting.

    Args:
        step: Function of a state, which is donated, and a batch.

    Returns:
        What `jax.jit(step, donate_argnums=0)` would be.
    """
    import jax

    def step_of_packed(state: Any, packed: Any, layout: Any) -> Any:
        return step(state, _unpack(packed, layout))

    compiled = jax.jit(step_of_packed, donate_argnums=0, static_argnums=2)
    return lambda state, batch: compiled(state, *_pack(batch))


def _pack(batch: Batch) -> tuple[Any, Any]:
    """Arrays as they are and a vector for each dtype of small ones; and what they were."""
    import jax

    leaves, structure = jax.tree.flatten(batch)
    if len(leaves) < MANY:
        return batch, None
    kinds = []
    arrays = defaultdict(list)
    for leaf in leaves:
        is_small = isinstance(leaf, np.ndarray) and leaf.nbytes <= SMALL
        dtype, shape = (leaf.dtype, leaf.shape) if is_small else (None, None)
        kinds.append((dtype, shape))
        arrays[dtype].append(leaf)
    left = arrays.pop(None, [])
    vectors = [np.concatenate(values, axis=None) for values in arrays.values()]
    return (left, vectors), (structure, tuple(kinds), tuple(arrays))


def _unpack(packed: Any, layout: Any) -> Batch:
    import jax

    if layout is None:
        return packed
    left, vectors = packed
    structure, kinds, dtypes = layout
    arrays = {None: iter(left)}
    for vector, dtype in zip(vectors, dtypes, strict=True):
        ends = np.cumsum([math.prod(shape) for of, shape in kinds if of == dtype])
        arrays[dtype] = iter(jax.numpy.split(vector, ends[:-1]))
    leaves = [
        next(arrays[dtype]) if shape is None else next(arrays[dtype]).reshape(shape)
        for dtype, shape in kinds
    ]
    return structure.unflatten(leaves)
