"""One model trained by several processes, on this machine or on several, with JAX.

On one machine, where the script starts the processes itself:

    python -m examples.distributed --processes 2

On several, once on each, all told where the first one is:

    python -m examples.distributed --processes 2 --address first-machine:12345 --process 0
    python -m examples.distributed --processes 2 --address first-machine:12345 --process 1

`keras.distribution` does all of the work: whatever is here is for any Keras model. The gradient, σ
and every mean are those of the whole batch, so more processes train as one would.
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

from keras_uncertainty_mtl import Categorical, Laplace, MultiTaskModel

BATCH = 64  # Over all processes; each has as many devices as the others.


def make_data() -> Any:
    """Handwritten digits, which one each is and how much ink it has: for training, and held out."""
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
    """What each of the processes does."""
    keras.utils.set_random_seed(0)  # The same in all of them, so that they start from one model.
    keras.distribution.initialize(address, processes, process)
    # `auto_shard_dataset` is for `tf.data`. NumPy arrays are the process's own share already.
    distribution = keras.distribution.DataParallel(auto_shard_dataset=False)
    images, held_out, classes, held_out_classes, ink, _ = make_data()
    # As many samples for each process, in whole batches.
    share = slice(process, len(images) // BATCH * BATCH, processes)
    with distribution.scope():
        model = make_model()
        model.compile(keras.optimizers.Adam(1e-2), metrics={"class": ["accuracy"]})
        model.fit(
            images[share],
            {"class": classes[share], "ink": ink[share]},
            batch_size=BATCH // processes,
            epochs=epochs,
            verbose=2 if process == 0 else 0,
        )
    if process == 0:
        # The same model once more, by itself, for no other process takes part from here on.
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
    """Starts this script once for each process, on this machine, and returns its exit status."""
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
    parser.add_argument("--process", type=int, help="which one this is, from 0; default: all")
    parser.add_argument("--address", help="host:port of process 0, the same for all")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--output", type=Path, default=Path("distributed_output"))
    args = parser.parse_args()
    if (args.process is None) != (args.address is None):
        parser.error("--process and --address go together")
    if args.process is None:
        sys.exit(start_processes(args.processes, sys.argv[1:]))
    train(args.processes, args.process, args.address, args.epochs, args.output)


if __name__ == "__main__":
    main()
