"""What Keras reports of the combined loss, against Keras's own mean."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_uncertainty_mtl import Gaussian, MultiTaskModel
from keras_uncertainty_mtl import model as model_module
from keras_uncertainty_mtl.statistics import MeanLoss


def test_the_mean_loss_is_that_of_keras():
    metrics = MeanLoss(), keras.metrics.Mean()
    for loss, samples in ((2.5, 8), (-4.0, 8), (1e3, 3)):
        for metric in metrics:
            metric.update_state(ops.convert_to_tensor(loss), sample_weight=samples)
    assert float(metrics[0].result()) == pytest.approx(float(metrics[1].result()), rel=1e-6)
    metrics[0].reset_state()
    assert float(metrics[0].result()) == 0


def test_the_loss_is_reported_as_keras_would(monkeypatch):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(20, 3)), rng.normal(size=(20, 1))

    def history():
        keras.utils.set_random_seed(0)
        inputs = keras.Input((3,))
        outputs = {"depth": keras.layers.Dense(1)(inputs)}
        model = MultiTaskModel(inputs, outputs, {"depth": Gaussian()})
        model.compile("adam")
        # The last batch is smaller.
        reported = model.fit(x, {"depth": y}, batch_size=8, epochs=2, shuffle=False, verbose=0)
        return model, reported.history["loss"]

    model, ours = history()
    # Keras puts it there by a private name, under which ours has to be found.
    assert isinstance(model.metrics[0], MeanLoss)
    assert [metric.name for metric in model.metrics].count("loss") == 1
    monkeypatch.setattr(model_module, "MeanLoss", keras.metrics.Mean)
    model, stock = history()
    assert type(model.metrics[0]) is keras.metrics.Mean
    np.testing.assert_allclose(ours, stock, rtol=1e-6)
