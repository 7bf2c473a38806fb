"""Serves an exported model in a process that can import neither Keras nor the package.

`python serve.py SAVED_MODEL IMAGES.npy PREDICTIONS.npz`
"""

from __future__ import annotations

import sys

for module in ("keras", "keras_uncertainty_mtl"):
    sys.modules[module] = None  # type: ignore[assignment]  # blocks the import

import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402


def main() -> None:
    saved_model, images, predictions = sys.argv[1:]
    network = tf.saved_model.load(saved_model)
    outputs = network.serve(np.load(images))
    np.savez(predictions, **{task: output.numpy() for task, output in outputs.items()})


if __name__ == "__main__":
    main()
