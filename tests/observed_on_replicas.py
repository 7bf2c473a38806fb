"""An evaluation on several devices, for a process of its own, as collectives interfere."""

import keras
import tensorflow as tf

from keras_uncertainty_mtl import Bernoulli, Gaussian, Laplace, MultiTaskModel


def evaluate(replicas, x, y):
    """The numbers of `evaluate` of a model that answers with its inputs."""
    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
    )
    with tf.distribute.MirroredStrategy([f"CPU:{index}" for index in range(replicas)]).scope():
        missing = float("nan")
        tasks = {"a": Gaussian(missing=missing), "b": Bernoulli(missing=-1)}
        tasks["c"] = Laplace(missing=missing)
        inputs = {task: keras.Input((3,), name=task) for task in tasks}
        outputs = {task: keras.layers.Identity()(inputs[task]) for task in tasks}
        model = MultiTaskModel(inputs, outputs, tasks)
        auc = keras.metrics.AUC(from_logits=True, name="auc")
        model.compile(metrics={"a": ["mae"], "b": ["accuracy", auc], "c": ["mae"]})
    return model.evaluate(x, y, batch_size=10, verbose=0, return_dict=True)
