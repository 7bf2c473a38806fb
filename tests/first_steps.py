"""A first model with the installed package alone: `make package` runs this, and pytest does not."""

import importlib.metadata
import importlib.util
import os
import tempfile
from pathlib import Path

os.environ["CUDA_VISIBLE_DEVICES"] = ""
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import keras
import numpy as np
import tensorflow as tf

import keras_uncertainty_mtl
from keras_uncertainty_mtl import Categorical, Gaussian, MultiTaskModel

ROOT = Path(__file__).parents[1]


def main():
    package = Path(keras_uncertainty_mtl.__file__).parent
    assert package != ROOT / "keras_uncertainty_mtl"
    assert (package / "py.typed").exists()
    assert keras_uncertainty_mtl.__version__ == importlib.metadata.version("keras_uncertainty_mtl")
    for extra in ("matplotlib", "scipy", "sklearn", "pandas"):
        assert importlib.util.find_spec(extra) is None, extra

    x = np.random.default_rng(0).normal(size=(256, 4)).astype("float32")
    y = {"height": 100 * x[:, :1] + 3, "kind": np.argmax(x[:, :3], axis=-1)}
    features = keras.Input((4,))
    outputs = {"height": keras.layers.Dense(1)(features), "kind": keras.layers.Dense(3)(features)}
    model = MultiTaskModel(features, outputs, {"height": Gaussian(), "kind": Categorical()})
    model.compile(keras.optimizers.Adam(0.1), metrics={"kind": ["accuracy"]})
    history = model.fit(x[:192], y_of(y, slice(192)), epochs=20, verbose=0).history
    assert history["kind_accuracy"][-1] > 0.9
    assert 0 < model.calibrate(x[192:], y_of(y, slice(192, None)), verbose=0)["height"] < 200

    model.save("model.keras")
    loaded = keras.saving.load_model("model.keras")
    assert loaded.weighting.sigmas() == model.weighting.sigmas()
    predictive = model.predictive_model()
    predictive.export("saved_model", verbose=False)
    network = tf.saved_model.load("saved_model")
    served = network.serve(x)
    for name, value in predictive.predict(x, verbose=0).items():
        np.testing.assert_allclose(served[name], value, rtol=1e-5, atol=1e-5)
    print(f"keras_uncertainty_mtl {keras_uncertainty_mtl.__version__} works in {package}")


def y_of(y, rows):
    return {task: targets[rows] for task, targets in y.items()}


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as directory:
        os.chdir(directory)
        main()
