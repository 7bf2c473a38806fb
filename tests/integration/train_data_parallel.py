"""Trains on JAX with `keras.distribution.DataParallel`, and prints the results as JSON.

    train_data_parallel.py                                    on all devices of this process
    train_data_parallel.py <address> <processes> <process>    on all devices of several processes

This is a process of its own, because JAX settles its number of devices when it starts.
"""

import json
import sys

import jax
import keras
import numpy as np
from scale_out import BATCH, EPOCHS, KINDS, SAMPLES, make_data, make_model, results


def train(kind, processes, process):
    # Every process has its share of every batch.
    batches = np.split(np.arange(SAMPLES), range(BATCH, SAMPLES, BATCH))
    share = np.concatenate([np.split(batch, processes)[process] for batch in batches])
    data = keras.tree.map_structure(lambda array: array[share], make_data(kind))
    fed = {
        **dict(zip(("x", "y", "sample_weight"), data, strict=False)),
        "batch_size": BATCH // processes,
        "verbose": 0,
    }
    model = make_model(kind)
    history = model.fit(
        **fed,
        epochs=EPOCHS,
        shuffle=False,
        validation_data=data,
        validation_freq=2,
        validation_batch_size=BATCH // processes,
    )
    return results(model, history, model.evaluate(**fed, return_dict=True))


if __name__ == "__main__":
    processes, process = 1, 0
    if len(sys.argv) > 1:
        processes, process = int(sys.argv[2]), int(sys.argv[3])
        keras.distribution.initialize(sys.argv[1], processes, process)
    if len(jax.devices()) > 1:
        # Keras shards `tf.data` alone, and takes NumPy arrays as the share of the process.
        keras.distribution.set_distribution(
            keras.distribution.DataParallel(auto_shard_dataset=False)
        )
    trained = {kind: train(kind, processes, process) for kind in KINDS}
    print(json.dumps({"devices": len(jax.devices()), **trained}))
