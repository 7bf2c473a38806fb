"""A check that TensorFlow alone serves an exported model correctly."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import keras
import numpy as np

SERVING_TOLERANCE = 1e-4


def check_serving(model: keras.Model, saved_model: Path, images: Any) -> None:
    """Exits with an error unless a process without Keras and the package predicts the same."""
    expected = model.predict(images, verbose=0)
    with tempfile.TemporaryDirectory() as directory:
        images_file, predictions_file = Path(directory, "images.npy"), Path(directory, "served.npz")
        np.save(images_file, images)
        script = Path(__file__).with_name("serve.py")
        served = subprocess.run(
            [sys.executable, script, saved_model, images_file, predictions_file],
            capture_output=True,
            text=True,
        )
        if served.returncode:
            sys.exit(f"The SavedModel {saved_model} cannot be served:\n{served.stderr}")
        with np.load(predictions_file) as predictions:
            differences = {
                task: np.abs(predictions[task] - value).max() / np.abs(value).max()
                for task, value in expected.items()
            }
    largest = np.max(list(differences.values()))
    print(
        "\nThe SavedModel, in a new process that can import neither Keras nor this package: "
        f"largest difference {largest:.1e} of the largest prediction"
    )
    if not largest < SERVING_TOLERANCE:
        sys.exit(
            f"The SavedModel disagrees with the model: `differences` must be below "
            f"{SERVING_TOLERANCE:g}. Received: differences={differences}. Export the model again."
        )
