"""Trains on several replicas, and prints the results as JSON.

    train_mirrored.py <replicas> <kind of model> …

This is a process of its own, because TensorFlow's collectives keep one number of replicas.
"""

import contextlib
import json
import sys

import tensorflow as tf
from scale_out import BATCH, EPOCHS, make_data, make_model, results


def train(kind, strategy):
    with strategy.scope() if strategy else contextlib.nullcontext():
        model = make_model(kind)
    dataset = tf.data.Dataset.from_tensor_slices(make_data(kind)).batch(BATCH)
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    dataset = dataset.with_options(options)
    history = model.fit(
        dataset, epochs=EPOCHS, validation_data=dataset, validation_freq=2, verbose=0
    )
    return results(model, history, model.evaluate(dataset, verbose=0, return_dict=True))


if __name__ == "__main__":
    replicas, kinds = int(sys.argv[1]), sys.argv[2:]
    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0],
        [tf.config.LogicalDeviceConfiguration()] * replicas,
    )
    mirrored = tf.distribute.MirroredStrategy([f"CPU:{index}" for index in range(replicas)])
    print(
        json.dumps(
            {kind: {"one": train(kind, None), "several": train(kind, mirrored)} for kind in kinds}
        )
    )
