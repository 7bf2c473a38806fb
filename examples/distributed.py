"""Data-parallel training of one model by several JAX processes.

On one machine, the script starts the processes itself:

    python -m examples.distributed --processes 2

On several machines, start it once on each, with the address of process 0:

    python -m examples.distributed --processes 2 --address first-machine:12345 --process 0
    python -m examples.distributed --processes 2 --address first-machine:12345 --process 1

Only `keras.distribution` is used, so the script suits any Keras model. Gradients, σ and means are
those of the global batch, so several processes train as one does.
"""

from __future__ import annotations

import argparse
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

os.environ["KERAS_BACKEND"] = "jax"
os.environ.setdefault("JAX_CPU_COLLECTIVES_IMPLEMENTATION", "gloo")

import keras
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from examples.batches import shuffled
from keras_uncertainty_mtl import Categorical, Laplace, MultiTaskModel

BATCH = 64  # The global batch; every process has the same number of devices.


def make_data() -> Any:
    """Images, classes and ink of handwritten digits, each as a training and a held-out array."""
    digits, classes = load_digits(return_X_y=True)
    images = digits.reshape(-1, 8, 8, 1).astype("float32")
    ink = images.sum(axis=(1, 2))
    return train_test_split(images, classes.astype("int32"), ink, test_size=0.2, random_state=0)


def make_model() -> MultiTaskModel:
    image = keras.Input((8, 8, 1), name="image")
    features = keras.layers.Conv2D(32, 3, activation="relu")(keras.layers.Rescaling(1 / 16)(image))
    features = keras.layers.Dense(64, activation="relu")(keras.layers.Flatten()(features))
    outputs = {"class": keras.layers.Dense(10)(features), "ink": keras.layers.Dense(1)(features)}
    return MultiTaskModel(image, outputs, {"class": Categorical(), "ink": Laplace()})


def train(processes: int, process: int, address: str, epochs: int, output: Path) -> None:
    """Trains on the share of one process; process 0 also evaluates and exports the model."""
    keras.utils.set_random_seed(0)  # All processes must start from the same weights.
    keras.distribution.initialize(address, processes, process)
    # The arrays below are already the share of this process.
    distribution = keras.distribution.DataParallel(auto_shard_dataset=False)
    images, held_out, classes, held_out_classes, ink, _ = make_data()
    # Every process needs the same number of whole batches.
    share = slice(process, len(images) // BATCH * BATCH, processes)
    with distribution.scope():
        model = make_model()
        model.compile(keras.optimizers.Adam(1e-2), metrics={"class": ["accuracy"]})
        targets = {"class": classes[share], "ink": ink[share]}
        model.fit(
            shuffled(images[share], targets, BATCH // processes, seed=0),
            epochs=epochs,
            shuffle=False,
            verbose=2 if process == 0 else 0,
        )
    if process == 0:
        # The other processes end here, so this model must not be distributed.
        trained = make_model()
        trained.set_weights(model.get_weights())
        correct = trained.predict(held_out, verbose=0)["class"].argmax(axis=-1) == held_out_classes
        print(f"{len(keras.distribution.list_devices())} devices, {processes} processes")
        print(f"held-out accuracy: {100 * correct.mean():.1f}%")
        print(
            f"sigma: { {task: float(sigma) for task, sigma in trained.weighting.sigmas().items()} }"
        )
        trained.export(output, verbose=False)
        print(f"exported to {output}")


def start_processes(processes: int, arguments: list[str]) -> int:
    """Starts all processes on this machine and returns their exit status."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    command = [sys.executable, "-m", "examples.distributed", *arguments, "--address", address]
    started = [
        subprocess.Popen([*command, "--process", str(process)]) for process in range(processes)
    ]
    return max(abs(process.wait()) for process in started)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--process", type=int, help="index of this one, from 0 (default: all)")
    parser.add_argument("--address", help="host:port of process 0")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--output", type=Path, default=Path("distributed_output"))
    args = parser.parse_args()
    if (args.process is None) != (args.address is None):
        parser.error(
            "--process and --address must be given together. "
            f"Received: --process {args.process} --address {args.address}"
        )
    if args.process is None:
        sys.exit(start_processes(args.processes, sys.argv[1:]))
    train(args.processes, args.process, args.address, args.epochs, args.output)


if __name__ == "__main__":
    main()
