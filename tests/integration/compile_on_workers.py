"""Compiles a model as a worker of the cluster in `TF_CONFIG`, and prints the error as JSON."""

import json
import sys

import keras
import tensorflow as tf

from keras_uncertainty_mtl import MultiTaskModel


def parameter_server_strategy():
    resolver = tf.distribute.cluster_resolver.TFConfigClusterResolver()
    for job in ("worker", "ps"):
        tf.distribute.Server(resolver.cluster_spec(), job_name=job, task_index=0)
    return tf.distribute.ParameterServerStrategy(resolver)


STRATEGIES = {
    "workers": tf.distribute.MultiWorkerMirroredStrategy,
    "servers": parameter_server_strategy,
}

if __name__ == "__main__":
    with STRATEGIES[sys.argv[1]]().scope():
        inputs = keras.Input((3,))
        model = MultiTaskModel(inputs, {"depth": keras.layers.Dense(1)(inputs)}, {"depth": "mse"})
        try:
            model.compile("adam")
            refusal = None
        except ValueError as error:
            refusal = str(error)
    print(json.dumps(refusal))
