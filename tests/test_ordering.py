"""What a graph of TensorFlow's works out before what."""

import time

import numpy as np
import pytest
import tensorflow as tf

from keras_uncertainty_mtl import Categorical, UncertaintyWeighting
from keras_uncertainty_mtl.ordering import after

pytestmark = pytest.mark.backends("tensorflow", reason="the order is that of TensorFlow's graphs")


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


def test_likelihoods_wait_for_the_raw_losses():
    done = []

    class Recorded(Categorical):
        @staticmethod
        def recorded(values, name, seconds=0.0):
            def record(array):
                time.sleep(seconds)
                done.append(name)
                return array

            result = tf.numpy_function(record, [values], tf.float32, stateful=False)
            return tf.ensure_shape(result, values.shape)

        def loss(self, targets, predictions):
            return self.recorded(super().loss(targets, predictions), "raw", 0.5)

        def negative_log_likelihood(self, targets, predictions, log_variance):
            # Of the temperature alone: predictions are there from the start.
            return predictions[:, 0] * self.recorded(tf.exp(-log_variance), "likelihood")

    weighting = UncertaintyWeighting({"kind": Recorded()})
    logits, classes = tf.zeros((4, 3)), tf.constant([0, 2, 1, 1])
    weighting({"kind": logits}, {"kind": classes})
    done.clear()
    tf.function(weighting.combined_loss)({"kind": logits}, {"kind": classes})
    assert done == ["raw", "likelihood"]


def test_one_hot_classes_wait_for_what_is_expected():
    @tf.function
    def gradient(logits):
        classes = tf.constant([0, 2, 1, 1])
        losses = Categorical().negative_log_likelihood(classes, logits, tf.constant(0.5))
        return tf.gradients(losses, logits)[0]

    graph = gradient.get_concrete_function(tf.TensorSpec((4, 3))).graph
    (one_hot,) = (op for op in graph.get_operations() if op.type == "OneHot")
    waited, unseen = set(), [one_hot]
    while unseen:
        op = unseen.pop()
        waited.add(op.type)
        unseen += [tensor.op for tensor in op.inputs] + op.control_inputs
    # Classes have nothing to do with the division by which what is expected ends.
    assert "RealDiv" in waited


@pytest.mark.parametrize("form", ["raw", "exact", "approximate"])
def test_class_ids_are_neither_widened_nor_made_a_mask_of_the_logits(form):
    likelihood = Categorical(approximate=form == "approximate")

    @tf.function
    def losses_and_gradient(logits, classes):
        if form == "raw":
            losses = likelihood.loss(classes, logits)
        else:
            losses = likelihood.negative_log_likelihood(classes, logits, tf.constant(0.5))
        return losses, tf.gradients(losses, logits)[0]

    specs = tf.TensorSpec((4, 3)), tf.TensorSpec((4,), tf.int32)
    graph = losses_and_gradient.get_concrete_function(*specs).graph
    tensors = [tensor for op in graph.get_operations() for tensor in op.outputs]
    assert not [t for t in tensors if t.dtype == tf.int64 and t.shape == (4,)]
    assert not [t for t in tensors if t.dtype == tf.bool and t.shape == (4, 3)]


# As many logits as 32 bits do not count, or may not.
@pytest.mark.parametrize("elements", [2**30, None])
def test_the_places_of_many_logits_are_counted_in_64_bits(elements):
    loss = tf.function(Categorical().loss)
    specs = tf.TensorSpec((elements,), tf.int32), tf.TensorSpec((elements, 3))
    graph = loss.get_concrete_function(*specs).graph
    (gather,) = (op for op in graph.get_operations() if op.type == "GatherV2")
    assert gather.inputs[1].dtype == tf.int64
