"""Models and training loops of one's own train as `fit` of a MultiTaskModel does."""

import keras
import numpy as np
import pytest

from keras_uncertainty_mtl import Categorical, Laplace, MultiTaskModel, UncertaintyWeighting

STEPS, BATCH, RATE = 6, 16, 0.01


def tasks():
    return {"depth": Laplace(), "classes": Categorical()}


def heads():
    names = {"depth": 1, "classes": 3}
    return {
        task: keras.layers.Dense(units, kernel_initializer="ones", name=task)
        for task, units in names.items()
    }


@pytest.fixture
def batches():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(STEPS * BATCH, 4)).astype("float32")
    y = {
        "depth": 30 * x[:, :1] + rng.normal(size=(len(x), 1)).astype("float32"),
        "classes": x[:, :3].argmax(axis=-1).astype("int32"),
    }
    return x, y


def each_batch(x, y):
    for start in range(0, len(x), BATCH):
        part = slice(start, start + BATCH)
        yield x[part], {task: y[task][part] for task in y}


def functional_model():
    inputs = keras.Input((4,))
    return MultiTaskModel(inputs, {task: head(inputs) for task, head in heads().items()}, tasks())


@pytest.fixture
def expected(batches):
    """σ and weights after `fit`."""
    model = functional_model()
    model.compile(keras.optimizers.SGD(RATE))
    model.fit(*batches, batch_size=BATCH, shuffle=False, verbose=0)
    return model


def assert_trained_alike(model, expected):
    assert model.weighting.sigmas() == pytest.approx(expected.weighting.sigmas(), rel=1e-5)
    for weights, wanted in zip(model.trainable_weights, expected.trainable_weights, strict=True):
        np.testing.assert_allclose(
            keras.ops.convert_to_numpy(weights.value),
            keras.ops.convert_to_numpy(wanted.value),
            rtol=1e-4,
            atol=1e-5,
        )


@keras.saving.register_keras_serializable(package="test_loops")
class OwnModel(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.heads = heads()
        self.weighting = UncertaintyWeighting(tasks())

    def call(self, x):
        return self.weighting({task: head(x) for task, head in self.heads.items()})

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        return self.weighting.combined_loss(y_pred, y, sample_weight, training=training)


def test_a_subclassed_model_trains_reports_and_is_saved(batches, expected, tmp_path):
    x, y = batches
    model = OwnModel()
    model.compile(keras.optimizers.SGD(RATE))
    history = model.fit(x, y, batch_size=BATCH, shuffle=False, verbose=0).history
    sigmas = model.weighting.sigmas()
    assert sigmas == pytest.approx(expected.weighting.sigmas(), rel=1e-5)
    for task, sigma in sigmas.items():
        assert history[f"{task}_sigma"][-1] == pytest.approx(sigma, rel=1e-5)

    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.weighting.sigmas() == pytest.approx(sigmas)
    for task, answer in model.predict(x, verbose=0).items():
        np.testing.assert_allclose(loaded.predict(x, verbose=0)[task], answer, rtol=1e-6)


@pytest.mark.backends("tensorflow", reason="reads a SavedModel")
def test_a_subclassed_model_exports(batches, tmp_path):
    import tensorflow as tf

    x, y = batches
    model = OwnModel()
    model.compile(keras.optimizers.SGD(RATE))
    model.fit(x, y, batch_size=BATCH, verbose=0)
    model.export(tmp_path / "exported", verbose=False)
    artifact = tf.saved_model.load(tmp_path / "exported")
    served = artifact.serve(tf.constant(x))
    for task, answer in model.predict(x, verbose=0).items():
        np.testing.assert_allclose(served[task], answer, rtol=1e-5, atol=1e-6)


@pytest.mark.backends("tensorflow", reason="a TensorFlow loop")
def test_a_tape_loop_trains_as_fit_does(batches, expected):
    import tensorflow as tf

    model, optimizer = functional_model(), keras.optimizers.SGD(RATE)

    @tf.function
    def step(x, y):
        with tf.GradientTape() as tape:
            y_pred = model(x, training=True)
            loss = model.compute_loss(x, y, y_pred, training=True)
        gradients = tape.gradient(loss, model.trainable_weights)
        optimizer.apply(gradients, model.trainable_weights)

    for x, y in each_batch(*batches):
        step(tf.constant(x), {task: tf.constant(target) for task, target in y.items()})
    assert_trained_alike(model, expected)


@pytest.mark.backends("torch", reason="a PyTorch loop")
def test_a_pytorch_loop_trains_as_fit_does(batches, expected):
    import torch

    model, optimizer = functional_model(), keras.optimizers.SGD(RATE)
    for x, y in each_batch(*batches):
        model.zero_grad()
        loss = model.compute_loss(x, y, model(x, training=True), training=True)
        loss.backward()
        gradients = [weights.value.grad for weights in model.trainable_weights]
        with torch.no_grad():
            optimizer.apply(gradients, model.trainable_weights)
    assert_trained_alike(model, expected)


@pytest.mark.backends("jax", reason="a JAX loop")
def test_a_stateless_loop_trains_as_fit_does(batches, expected):
    import jax

    model, optimizer = functional_model(), keras.optimizers.SGD(RATE)
    optimizer.build(model.trainable_variables)

    def loss_and_state(trainable, other, x, y):
        y_pred, other = model.stateless_call(trainable, other, x, training=True)
        metrics = [variable.value for variable in model.metrics_variables]
        loss, (_, other, _) = model.stateless_compute_loss(
            trainable, other, metrics, x=x, y=y, y_pred=y_pred, training=True
        )
        return loss, other

    @jax.jit
    def step(trainable, other, state, x, y):
        gradient = jax.grad(loss_and_state, has_aux=True)
        gradients, other = gradient(trainable, other, x, y)
        trainable, state = optimizer.stateless_apply(state, gradients, trainable)
        return trainable, other, state

    variables = (
        [variable.value for variable in model.trainable_variables],
        [variable.value for variable in model.non_trainable_variables],
        [variable.value for variable in optimizer.variables],
    )
    for x, y in each_batch(*batches):
        variables = step(*variables, x, y)
    kept = model.trainable_variables, model.non_trainable_variables
    for variable, value in zip([*kept[0], *kept[1]], [*variables[0], *variables[1]], strict=True):
        variable.assign(value)
    assert_trained_alike(model, expected)
