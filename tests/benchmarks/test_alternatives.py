"""Alternatives to the default do what their names say, and validation data choose among them."""

import keras
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from scipy import optimize

from benchmarks import alternatives, methods
from benchmarks.candidates import ALTERNATIVES, DEFAULT, package
from benchmarks.problems import PROBLEMS
from examples.batches import shuffled
from keras_uncertainty_mtl import Categorical, Gaussian, Laplace

pytestmark = pytest.mark.backends("tensorflow", reason="the benchmarks run on TensorFlow")

TASKS = {"square": Gaussian(), "value": Laplace(), "class": Categorical()}


def network():
    x = keras.Input((4,))
    shared = keras.layers.Dense(6, activation="tanh", name="shared")(x)
    sizes = {"square": 1, "value": 1, "class": 3}
    return keras.Model(x, {task: keras.layers.Dense(size)(shared) for task, size in sizes.items()})


def data(rows=40):
    random = np.random.default_rng(0)
    x = random.normal(size=(rows, 4)).astype("float32")
    y = {
        "square": 100 * x[:, :1] + random.normal(size=(rows, 1)).astype("float32"),
        "value": random.normal(size=(rows, 1)).astype("float32"),
        "class": random.integers(3, size=rows),
    }
    return x, y


def weights_of(rule, losses):
    losses = tf.constant(losses, "float32")
    with tf.GradientTape() as tape:
        tape.watch(losses)
        loss = rule.weigh(losses)
    return tape.gradient(loss, losses).numpy()


def test_a_prior_variance_is_the_optimum_of_the_likelihood_with_an_inverse_gamma_prior():
    first, now, strength = np.array([9.0, 2.0, 1.0]), np.array([4.0, 0.5, 0.2]), 0.5
    rule = methods.PriorVariance(network(), TASKS, strength=strength)
    weights_of(rule, first)
    weights = weights_of(rule, now)
    means = first + 0.1 * (now - first)

    def objective(variance, mean):  # ½·(1 + κ)·log σ² + ½·(m + κ·σ₀²) / σ² for a Gaussian
        return (1 + strength) * np.log(variance) + (mean + strength * first[0]) / variance

    best = optimize.minimize_scalar(objective, (1, 5), args=(means[0],), tol=1e-10).x
    assert weights[0] == pytest.approx(0.5 / best, rel=1e-4)
    variance = (2 * means[1] ** 2 + strength * 2 * first[1] ** 2) / (1 + strength)
    assert weights[1] == pytest.approx(np.sqrt(2 / variance), rel=1e-5)
    assert weights[2] == 1.0


def gradients_of(model, losses_of):
    """Each task's gradients where the heads branch off, and of its head's kernel."""
    trunk = keras.Model(model.input, model.get_layer("shared").output)
    heads = [keras.Model(trunk.output, output) for output in model.output.values()]
    kernels = [head.trainable_variables[0] for head in heads]
    features = trunk(data()[0])
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(features)
        losses = losses_of([head(features) for head in heads])
    pairs = zip(losses, kernels, strict=True)
    gradients = [tape.gradient(loss, [features, kernel]) for loss, kernel in pairs]
    return gradients, kernels


def mean_losses(predictions):
    _, y = data()
    return [
        tf.reduce_mean(TASKS[task].loss(y[task], prediction))
        for task, prediction in zip(TASKS, predictions, strict=True)
    ]


def assert_a_step_follows(rule, model, kernels, of_features, of_heads):
    """A step of gradient descent moves the kernels by the gradients that are expected."""
    x, y = data()
    shared = model.get_layer("shared").kernel
    with tf.GradientTape() as tape:
        features = keras.Model(model.input, model.get_layer("shared").output)(x)
    expected = [tape.gradient(features, shared, output_gradients=of_features), *of_heads]
    before, rate = [kernel.numpy() for kernel in (shared, *kernels)], 1e-3
    rule.optimizer.learning_rate = rate
    rule.fit(x, y, batch_size=len(x), shuffle=False, verbose=0)
    for start, kernel, gradient in zip(before, (shared, *kernels), expected, strict=True):
        np.testing.assert_allclose(
            start - kernel.numpy(), rate * np.asarray(gradient), rtol=1e-3, atol=1e-6
        )


def test_balanced_gradients_are_of_one_length_where_the_heads_branch_off():
    model, (x, y) = network(), data()
    rule = methods.BalancedGradients(model, TASKS)
    rule.compile(keras.optimizers.SGD(0.0))
    # With one batch, its lengths are the running ones.
    rule.fit(x, y, batch_size=len(x), verbose=0)
    gradients, kernels = gradients_of(
        model, lambda predictions: [tf.math.log(loss) for loss in mean_losses(predictions)]
    )
    lengths = [float(tf.norm(of_features)) for of_features, _ in gradients]
    balanced = sum(
        max(lengths) / length * of_features
        for length, (of_features, _) in zip(lengths, gradients, strict=True)
    )
    assert_a_step_follows(rule, model, kernels, balanced, [of_head for _, of_head in gradients])


def test_kernel_eigenvalues_weigh_as_the_tangent_kernel_of_four_parts_does():
    model = network()
    rule = methods.KernelEigenvalues(model, TASKS)
    rule.compile(keras.optimizers.SGD(0.0))
    gradients, kernels = gradients_of(model, mean_losses)
    eigenvalues = []
    for index in range(len(TASKS)):
        rows = []  # the gradient of the mean loss of every fourth sample
        for part in range(4):
            members = np.arange(40) % 4 == part

            def part_losses(predictions, members=members):
                _, y = data()
                return [
                    tf.reduce_mean(TASKS[task].loss(y[task][members], prediction[members]))
                    for task, prediction in zip(TASKS, predictions, strict=True)
                ]

            (of_features, _) = gradients_of(model, part_losses)[0][index]
            rows.append(np.ravel(of_features))
        jacobian = np.stack(rows)
        eigenvalues.append(np.linalg.eigvalsh(jacobian @ jacobian.T)[-1])
    weights = np.sqrt(sum(eigenvalues) / np.array(eigenvalues))
    weighted = [
        [weight * part for part in pair] for weight, pair in zip(weights, gradients, strict=True)
    ]
    of_features = sum(pair[0] for pair in weighted)
    assert_a_step_follows(rule, model, kernels, of_features, [pair[1] for pair in weighted])


def test_sigma_of_held_out_rows_is_their_root_mean_square_error():
    x, y = data()
    model = network()
    tasks = {
        task: each.from_config(each.get_config() | {"trainable": False})
        for task, each in TASKS.items()
    }

    def batches(inputs, targets):
        assert len(inputs) == 36
        return shuffled(inputs, targets, 8, seed=0)

    rule = methods.HeldOutSigma(model.input, model.output, tasks, rows=(x, y), batches=batches)
    rule.compile(keras.optimizers.SGD(0.0))
    rule.fit(shuffled(x, y, 8, seed=0), epochs=2, verbose=0)
    errors = y["square"][::10] - model(x[::10])["square"].numpy()
    assert rule.weighting.sigmas()["square"] == pytest.approx(np.sqrt(np.mean(errors**2)), rel=1e-4)
    assert int(rule.optimizer.iterations) == 2 * 5


@pytest.mark.parametrize("name", ALTERNATIVES)
def test_each_alternative_starts_from_the_network_of_the_default(name):
    problem = PROBLEMS["tumours"]()
    part = problem.load(0)
    models = [
        make(problem, part, problem.build(part.train, 0), 0)
        for make in (package, ALTERNATIVES[name])
    ]
    ours, other = (model(part.test.inputs[:4]) for model in models)
    for task, prediction in ours.items():
        np.testing.assert_array_equal(other[task], prediction)


def test_validation_data_choose_and_test_data_judge():
    first, second, *_ = ALTERNATIVES
    errors = {
        DEFAULT: (1.0, 1.0),
        first: (0.9, 2.0),
        second: (1.0, 0.5),
        "single price": (1.0, 1.0),
    }
    scores = dict.fromkeys((DEFAULT, first, second, "single cut"), (0.5, 0.5))
    rows = pd.DataFrame(
        [
            {"problem": "diamonds", "method": method, "seed": seed, "task": task}
            | dict(zip(("validation", "test"), pair, strict=True))
            for task, values in {"price": errors, "cut": scores}.items()
            for method, pair in values.items()
            for seed in range(3)
        ]
    )
    text, best = alternatives.table(rows, ["diamonds"], "validation")
    assert best == first
    assert "+5.00 [+5.00, +5.00]" in text
    text, best = alternatives.table(rows, ["diamonds"], "test")
    assert best == second
    assert "+25.00 [+25.00, +25.00]" in text
    assert "-50.00 [-50.00, -50.00]" in text
