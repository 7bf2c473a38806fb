"""What a compiled step of JAX is given, as few arrays until it has them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

Tensor = Any
Batch = Any
Step = Callable[[Any, Batch], Any]

# Fewer arrays take as long to put together as to hand over.
MANY = 8

# Bytes. To copy a larger array takes as long as to hand it over by itself.
SMALL = 2**12


def jit_of_few_arrays(step: Step) -> Step:
    """A step compiled by JAX, which is handed the small NumPy arrays of a batch together.

    Every one that a compiled function is given costs four microseconds, however small it is. With a
    target a task, that is more than all the rest of the weighting. Elsewhere than on a CPU, Keras
    has put the batch on the device before, as arrays of JAX's.

    Args:
        step: Function of a state, which is donated, and a batch.

    Returns:
        Function of a state and a batch that returns what `jax.jit(step, donate_argnums=0)` would.
    """
    import jax

    def step_of_packed(state: Any, packed: Any, layout: Any) -> Any:
        return step(state, _unpack(packed, layout))

    compiled = jax.jit(step_of_packed, donate_argnums=0, static_argnums=2)
    return lambda state, batch: compiled(state, *_pack(batch))


def _pack(batch: Batch) -> tuple[Any, Any]:
    """Arrays as they are, and a vector for each dtype of small ones; and how they were before."""
    import jax

    leaves, structure = jax.tree.flatten(batch)
    if len(leaves) < MANY:
        return batch, None
    # Those left as they are, and those of each dtype.
    groups: list[list[Any]] = [[]]
    group_of: dict[np.dtype, int] = {}
    places = []
    for leaf in leaves:
        place = 0
        if type(leaf) is np.ndarray and leaf.nbytes <= SMALL:
            place = group_of.setdefault(leaf.dtype, len(groups))
            if place == len(groups):
                groups.append([])
        groups[place].append(leaf)
        places.append(place)
    left, *small = groups
    if not small:
        return batch, None
    vectors = [np.concatenate(arrays, axis=None) for arrays in small]
    shapes = tuple(tuple(array.shape for array in arrays) for arrays in small)
    return (left, vectors), (structure, tuple(places), shapes)


def _unpack(packed: Any, layout: Any) -> Batch:
    if layout is None:
        return packed
    left, vectors = packed
    structure, places, shapes = layout
    groups = [iter(left), *map(_split, vectors, shapes)]
    return structure.unflatten([next(groups[place]) for place in places])


def _split(vector: Tensor, shapes: tuple[tuple[int, ...], ...]) -> Iterator[Tensor]:
    import jax

    ends = np.cumsum([math.prod(shape) for shape in shapes])
    return map(jax.numpy.reshape, jax.numpy.split(vector, ends[:-1]), shapes)
