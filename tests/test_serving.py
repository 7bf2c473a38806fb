"""Exported models are served by a process without Keras and the package."""

import re
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

from examples.serving import check_serving

pytestmark = pytest.mark.backends("tensorflow", reason="TensorFlow serves the SavedModel")

ROOT = Path(__file__).parents[1]


IMPORT = """
import examples.serve
for module in ("keras", "keras_uncertainty_mtl"):
    try:
        __import__(module)
    except ImportError as error:
        print(error)
"""


def test_the_serving_process_can_import_neither_keras_nor_the_package():
    run = subprocess.run(
        [sys.executable, "-c", IMPORT], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True
    )
    assert re.findall("import of (.*) halted", run.stdout) == ["keras", "keras_uncertainty_mtl"]


def test_a_saved_model_that_disagrees_ends_the_run(tmp_path):
    image = keras.Input((2, 2, 1))
    model = keras.Model(image, {"ink": keras.layers.Dense(1)(keras.layers.Flatten()(image))})
    model.export(tmp_path / "saved_model", verbose=False)
    images = np.ones((3, 2, 2, 1), "float32")
    check_serving(model, tmp_path / "saved_model", images)

    model.set_weights([1.01 * weight for weight in model.get_weights()])
    with pytest.raises(SystemExit, match="disagrees"):
        check_serving(model, tmp_path / "saved_model", images)
    with pytest.raises(SystemExit, match="cannot be served"):
        check_serving(model, tmp_path / "nothing here", images)
