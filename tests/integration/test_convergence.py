"""Trained to convergence, σ agrees with closed forms and with the noise of the data."""

import keras
import numpy as np
import pytest
import statsmodels.api as sm
import tensorflow as tf

from keras_uncertainty_mtl import Gaussian, Laplace, MultiTaskModel, UncertaintyWeighting

pytestmark = pytest.mark.backends("tensorflow", reason="feeds a tf.data.Dataset")


def multi_task_model(inputs, outputs, weighting, x, targets):
    """A `MultiTaskModel`, with the targets as `y`."""
    return MultiTaskModel(inputs, outputs, weighting), (x, targets)


def bare_layer(inputs, outputs, weighting, x, targets):
    """The layer in a plain functional model, with the targets as inputs."""
    target_inputs = weighting.target_inputs(outputs)
    model = keras.Model(
        {"x": inputs} | {tensor.name: tensor for tensor in target_inputs.values()},
        weighting(outputs, target_inputs),
    )
    data = {"x": x} | {f"{task}_target": target for task, target in targets.items()}
    return model, (data,)


def trained_sigmas(make, tasks, outputs_of, x, targets, learning_rate=0.05, steps=600):
    """Each task's σ after training with Adam."""
    inputs = keras.Input(x.shape[1:], name="x")
    weighting = UncertaintyWeighting(tasks)
    model, data = make(inputs, outputs_of(inputs), weighting, x, targets)
    # The learning rate decays to 0, so the last steps settle.
    schedule = keras.optimizers.schedules.CosineDecay(learning_rate, steps)
    model.compile(keras.optimizers.Adam(schedule))
    batches = tf.data.Dataset.from_tensors(data).repeat()
    model.fit(batches, epochs=1, steps_per_epoch=steps, shuffle=False, verbose=0)
    return weighting.sigmas()


def linear(*tasks):
    """A linear model for each task."""
    return lambda inputs: {task: keras.layers.Dense(1)(inputs)[:, 0] for task in tasks}


@pytest.mark.parametrize("make", [multi_task_model, bare_layer])
@pytest.mark.parametrize("initial_sigma", [None, 1.0, 300.0])
def test_sigma_is_that_of_the_classical_regression(make, initial_sigma):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 3)).astype("float32")
    design = sm.add_constant(x)
    # With few samples and much noise, the closed forms differ from the noise of the data.
    normal = (design @ [1, 2, -1, 0.5] + 7 * rng.standard_t(4, 300)).astype("float32")
    heavy = (design @ [-1, 0, 1, 2] + 0.2 * rng.standard_cauchy(300).clip(-9, 9)).astype("float32")

    squares, *_ = np.linalg.lstsq(design, normal)
    least_squares = np.sqrt(np.mean((normal - design @ squares) ** 2))
    deviations = sm.QuantReg(heavy, design).fit(q=0.5, max_iter=10_000).resid
    least_deviations = np.sqrt(2) * np.mean(np.abs(deviations))

    sigmas = trained_sigmas(
        make,
        {
            "normal": Gaussian(initial_sigma=initial_sigma),
            "heavy": Laplace(initial_sigma=initial_sigma),
        },
        linear("normal", "heavy"),
        x,
        {"normal": normal, "heavy": heavy},
    )
    np.testing.assert_allclose(sigmas["normal"], least_squares, rtol=0.01)
    np.testing.assert_allclose(sigmas["heavy"], least_deviations, rtol=0.01)


@pytest.mark.parametrize("make", [multi_task_model, bare_layer])
def test_sigma_of_each_channel_is_that_of_its_regression(make):
    rng = np.random.default_rng(1)
    x = rng.normal(size=(300, 3)).astype("float32")
    noise = rng.normal(size=(300, 3)) * [0.3, 2, 20]
    targets = (x @ rng.normal(size=(3, 3)) + noise).astype("float32")
    design = sm.add_constant(x)
    coefficients, *_ = np.linalg.lstsq(design, targets)
    expected = np.sqrt(np.mean((targets - design @ coefficients) ** 2, axis=0))
    sigmas = trained_sigmas(
        make,
        {"position": Gaussian(per_channel=True)},
        lambda inputs: {"position": keras.layers.Dense(3)(inputs)},
        x,
        {"position": targets},
    )
    np.testing.assert_allclose(sigmas["position"], expected, rtol=0.01)


@pytest.mark.parametrize("make", [multi_task_model, bare_layer])
@pytest.mark.parametrize("noises", [(10.0, 1.0), (0.01, 1000.0)])
def test_sigma_is_the_noise_of_the_data(make, noises):
    rng = np.random.default_rng(2)
    # The standard error of σ is 1.1%.
    x = rng.normal(size=(4000, 4)).astype("float32")
    units = np.maximum(noises, 1)
    signals = x @ rng.normal(size=(4, 2)) * units
    targets = (signals + rng.normal(size=signals.shape) * noises).astype("float32")

    def shared_network(inputs):
        hidden = keras.layers.Dense(8)(inputs)
        return {
            task: keras.layers.Rescaling(unit)(keras.layers.Dense(1)(hidden))
            for task, unit in zip(("first", "second"), units, strict=True)
        }

    sigmas = trained_sigmas(
        make,
        {"first": Gaussian(), "second": Gaussian()},
        shared_network,
        x,
        {"first": targets[:, 0], "second": targets[:, 1]},
        learning_rate=0.02,
        steps=800,
    )
    np.testing.assert_allclose([sigmas["first"], sigmas["second"]], noises, rtol=0.05)


@pytest.mark.parametrize("likelihood", [Gaussian, Laplace])
def test_a_first_batch_without_errors_does_not_end_the_training(likelihood):
    # A head that starts at zero is right about sparse targets, which are often zero.
    x = np.random.default_rng(3).normal(size=(6400, 2)).astype("float32")
    noise = 2.0 * np.random.default_rng(4).choice([-1, 1], 6400)
    targets = (x @ [1.0, -1.0] + noise).astype("float32")
    targets[:64] = 0
    inputs = keras.Input((2,))
    head = keras.layers.Dense(1, kernel_initializer="zeros")(inputs)
    model = MultiTaskModel(inputs, {"count": head}, {"count": likelihood()})
    model.compile(keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(0.05, 500)))
    batches = tf.data.Dataset.from_tensor_slices((x, {"count": targets})).batch(64)
    model.fit(batches, epochs=5, shuffle=False, verbose=0)
    loss = model.evaluate(x, {"count": targets}, verbose=0, return_dict=True)["count_loss"]
    expected = np.sqrt(loss) if likelihood is Gaussian else np.sqrt(2) * loss
    assert expected < 2.9  # less than before training
    np.testing.assert_allclose(model.weighting.sigmas()["count"], expected, rtol=0.05)
