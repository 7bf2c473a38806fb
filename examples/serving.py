"""A client of `serve.py`, and a check that it answers as the model does."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import keras
import numpy as np

SERVING_TOLERANCE = 1e-4
PREDICT = "/v1/models/model:predict"
TIMEOUT = 60.0  # in seconds


@contextlib.contextmanager
def service(saved_model: Path) -> Iterator[int]:
    """The port of a process that serves the model, until the block ends."""
    script = Path(__file__).with_name("serve.py")
    command = [sys.executable, str(script), str(saved_model), "--port", "0"]
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as process,
    ):
        try:
            address = process.stdout.readline() if process.stdout else ""
            if not address:
                errors.seek(0)
                sys.exit(f"The SavedModel {saved_model} cannot be served:\n{errors.read()}")
            yield int(address.split(":")[2].split("/")[0])
        finally:
            process.terminate()


def predictions(port: int, instances: Any) -> dict[str, Any]:
    """The arrays that the service on this machine answers with."""
    connection = HTTPConnection("127.0.0.1", port, timeout=TIMEOUT)
    with contextlib.closing(connection):
        connection.request("POST", PREDICT, json.dumps({"instances": instances}))
        response = json.load(connection.getresponse())
    rows = response["predictions"]
    return {name: to_array(name, [row[name] for row in rows]) for name in rows[0]}


def to_array(name: str, values: list[Any]) -> Any:
    """The values of one output, where null is an infinite end of an interval."""
    array = np.array(values)
    if array.dtype != object:
        return array
    end = -np.inf if name.endswith("_lower") else np.inf
    return np.where(array == None, end, array).astype(float)  # noqa: E711


def check_serving(model: keras.Model, saved_model: Path, images: Any) -> None:
    """Exits with an error unless a process without Keras and the package predicts the same."""
    expected = model.predict(images, verbose=0)
    with service(saved_model) as port:
        served = predictions(port, np.asarray(images).tolist())
    differences = {
        task: np.abs(served[task] - value).max() / np.abs(value).max()
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
