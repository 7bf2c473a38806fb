"""Trains on the backend in `KERAS_BACKEND`, and prints the results as JSON."""

import json

import keras
import numpy as np
from scale_out import BATCH, EPOCHS, KINDS, make_data, make_model, results


def start(kind, optimizer):
    """A model with the same weights on all backends, and the arguments of `fit`."""
    model = make_model(kind)
    rng = np.random.default_rng(2)
    for layer in model.layers:
        if isinstance(layer, keras.layers.Dense):
            layer.set_weights([rng.normal(size=w.shape) for w in layer.get_weights()])
    model.compile(optimizer)
    fed = dict(zip(("x", "y", "sample_weight"), make_data(kind), strict=False))
    return model, fed | {"verbose": 0}


def gradients(kind):
    """The changes of the weights in two steps of plain gradient descent."""
    model, fed = start(kind, keras.optimizers.SGD(1.0))
    before = model.get_weights()
    # σ starts from the first batch, and has a gradient in the second.
    model.fit(**fed, batch_size=206, shuffle=False)
    return [
        np.ravel(one.astype(float) - other.astype(float)).tolist()
        for one, other in zip(before, model.get_weights(), strict=True)
    ]


def train(kind):
    model, fed = start(kind, keras.optimizers.Adam(0.01))
    history = model.fit(**fed, batch_size=BATCH, epochs=EPOCHS, shuffle=False)
    return results(model, history, model.evaluate(**fed, batch_size=BATCH, return_dict=True))


if __name__ == "__main__":
    trained = {kind: {"gradients": gradients(kind), **train(kind)} for kind in KINDS}
    print(json.dumps({"backend": keras.backend.backend(), **trained}))
