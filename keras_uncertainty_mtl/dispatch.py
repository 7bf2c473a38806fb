"""How a compiled step is run on TensorFlow, batch by batch, with little to do beside it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast
from weakref import WeakKeyDictionary

import keras

Function = Callable[[Any], Any]


def on_next_batch(step: Function, otherwise: Function, jit_compile: bool) -> Function:
    """A function that runs a step on the next batch of an iterator, as Keras's loops call it.

    Keras's own function waits for each step to see whether it ran at all, which serves several
    steps per execution (keras-team/keras pull request 20396), and has TensorFlow compare the
    structure of the data with that of every graph it has traced, and bind the argument of the one
    that it finds. For small networks all that takes longer than the weighting, and much of it grows
    with the tasks.

    Args:
        step: Function of a batch, to be compiled.
        otherwise: Keras's own function of the same step, for whatever is no `tf.data` iterator:
            the batch of `train_on_batch`, and what a `tf.distribute` strategy makes of a dataset.
        jit_compile: Whether to compile with XLA.

    Returns:
        Function of an iterator, or of what `otherwise` takes. Where a `tf.data` iterator has no
        more data, it raises `tf.errors.OutOfRangeError`, as Keras's own does.
    """
    import tensorflow as tf

    as_written = tf.autograph.experimental.do_not_convert
    compiled_step = tf.function(as_written(step), reduce_retracing=True, jit_compile=jit_compile)

    def step_on_next_batch(iterator: Any) -> Any:
        batch = iterator.get_next()
        # Keras puts an optional where a generator has given `None`.
        return compiled_step(
            keras.tree.map_structure(
                lambda value: None if isinstance(value, tf.experimental.Optional) else value, batch
            )
        )

    traced = tf.function(as_written(step_on_next_batch), reduce_retracing=True)
    calls: Any = WeakKeyDictionary()

    def function(iterator: Any) -> Any:
        if not isinstance(iterator, tf.data.Iterator) or tf.config.functions_run_eagerly():
            return otherwise(iterator)
        call = calls.get(iterator)
        if call is None:
            call = calls[iterator] = _direct_call(traced.get_concrete_function(iterator))
        return call(iterator)

    return function


def _direct_call(concrete: Any) -> Function:
    """A concrete function of an iterator, without what is the same for every batch.

    Private to TensorFlow, and there is no public way: without it, all is the same but slower.
    """
    import tensorflow as tf

    run = getattr(getattr(concrete, "inference_fn", None), "call_preflattened", None)
    if run is None:
        return cast(Function, concrete)
    return lambda iterator: run(
        [*tf.nest.flatten(iterator, expand_composites=True), *concrete.captured_inputs]
    )
