"""What a graph of TensorFlow's works out before what."""

import time

import numpy as np
import pytest
import tensorflow as tf

from keras_uncertainty_mtl import Categorical
from keras_uncertainty_mtl.ordering import after


def test_a_tensor_waits_for_others():
    done = []

    def slow(x):
        time.sleep(0.5)
        done.append("other")
        return x

    def quick(x):
        done.append("tensor")
        return x

    # TensorFlow would keep the order of what has a state.
    @tf.function
    def graph(x):
        other = tf.numpy_function(slow, [x], tf.float32, stateful=False)
        return other, tf.numpy_function(quick, [after(x, other)], tf.float32, stateful=False)

    graph(tf.constant(1.0))
    assert done == ["other", "tensor"]


def test_what_runs_at_once_is_handed_on():
    x = tf.constant([1.0])
    assert after(x, x) is x


@pytest.mark.parametrize("is_graph", [False, True], ids=["eager", "another graph"])
def test_a_gradient_may_be_of_another_graph_than_the_loss(is_graph):
    logits = tf.constant(np.random.default_rng(0).normal(size=(4, 3)), tf.float32)

    def loss(logits, s):
        classes = tf.constant([0, 2, 1, 1])
        return tf.reduce_sum(Categorical().negative_log_likelihood(classes, logits, s))

    def gradients(function):
        s = tf.constant(0.5)
        with tf.GradientTape() as tape:
            tape.watch([logits, s])
            value = function(logits, s)
        return tape.gradient(value, [logits, s])

    of_graph = tf.function(loss)
    outer = tf.function(gradients) if is_graph else gradients
    for expected, gradient in zip(gradients(loss), outer(of_graph), strict=True):
        np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-6)
