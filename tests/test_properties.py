"""Properties of drawn tasks and batches: losses, gradients and symmetries, against plain NumPy.

The reference below follows the equations of the documentation element by element, in float64. It
shares nothing with the package.
"""

import copy

import keras
import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from keras_uncertainty_mtl import (
    Bernoulli,
    Categorical,
    Gaussian,
    Gibbs,
    Laplace,
    UncertaintyWeighting,
)

NAN = float("nan")


def examples(number):
    """Draws so many examples, the same in every run."""
    return settings(
        max_examples=number,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow],
    )


def log_softmax(logits):
    shifted = logits - logits.max()
    return shifted - np.log(np.sum(np.exp(shifted)))


def cross_entropy(kind, y, f):
    """The cross-entropy of one element, `f` its logits or its logit."""
    if kind == "bernoulli":
        return np.logaddexp(0, -f) * y + np.logaddexp(0, f) * (1 - y)
    return -np.sum(y * log_softmax(f)) if kind == "one-hot" else -log_softmax(f)[int(y)]


def element_loss(kind, approximate, y, f, s):
    """The negative log-likelihood of one element, at log-variance `s`."""
    if kind == "gaussian":
        return 0.5 * np.exp(-s) * (y - f) ** 2 + 0.5 * s
    if kind == "laplace":
        return np.sqrt(2) * np.exp(-s / 2) * abs(y - f) + 0.5 * s
    if kind == "huber":  # delta is 1
        error = abs(y - f)
        return np.exp(-s) * (0.5 * error**2 if error <= 1 else error - 0.5) + 0.5 * s
    if approximate:
        return np.exp(-s) * cross_entropy(kind, y, f) + 0.5 * s
    return cross_entropy(kind, y, np.exp(-s) * f)


class Task:
    """One task and a batch of it, drawn from a seed."""

    KINDS = ("gaussian", "laplace", "huber", "categorical", "one-hot", "bernoulli")

    def __init__(self, kind, seed, axes, per_channel, approximate, hide, weigh, dtype, loss_weight):
        rng = np.random.default_rng(seed)
        self.kind, self.approximate, self.loss_weight = kind, approximate, loss_weight
        self.per_channel = per_channel and kind in ("gaussian", "laplace")
        # Huber of Keras averages over the last axis, which has one entry here.
        last = (2,) if self.per_channel else (1,) if kind == "huber" else ()
        shape = (*axes, *last)
        ids = rng.integers(0, 3, size=shape)
        self.y = {
            "categorical": ids.astype("float64"),
            "one-hot": np.eye(3)[ids],
            "bernoulli": (ids > 0).astype("float64"),
        }.get(kind, rng.normal(size=shape).astype("float32").astype("float64"))
        logits = (3,) if kind in ("categorical", "one-hot") else ()
        self.f = (2 * rng.normal(size=shape + logits)).astype(dtype)
        self.sigma = rng.uniform(0.3, 3.0, size=last if self.per_channel else ())

        self.weights = np.ones(shape)
        self.missing = None
        if hide:
            self.missing = -1.0 if kind == "categorical" else rng.choice([NAN, -999.0])
            hidden = rng.random(shape) < hide
            self.y[hidden] = self.missing
            self.weights[hidden] = 0
        self.sample_weight = None
        if weigh:
            of_each = {"sample": axes[:1], "element": axes if kind == "huber" else shape}[weigh]
            self.sample_weight = rng.choice([0.0, 0.5, 1.0, 3.0], size=of_each)
            self.weights *= self.sample_weight.reshape(of_each + (1,) * (len(shape) - len(of_each)))

    def likelihood(self, initial_sigma="own"):
        sigma = self.sigma.tolist() if initial_sigma == "own" else initial_sigma
        common = {"initial_sigma": sigma, "missing": self.missing}
        return {
            "gaussian": lambda: Gaussian(per_channel=self.per_channel, **common),
            "laplace": lambda: Laplace(per_channel=self.per_channel, **common),
            "huber": lambda: Gibbs(keras.losses.Huber(), **common),
            "categorical": lambda: Categorical(approximate=self.approximate, **common),
            "one-hot": lambda: Categorical(sparse=False, approximate=self.approximate, **common),
            "bernoulli": lambda: Bernoulli(approximate=self.approximate, **common),
        }[self.kind]()

    def loss(self, f=None, log_variance=None):
        """The reference Σ w·nll / Σ w, element by element."""
        f = self.f.astype("float64") if f is None else f
        s = 2 * np.log(self.sigma) if log_variance is None else log_variance
        total = 0.0
        for index in np.argwhere(self.weights):
            index = tuple(index)
            of_element = s[index[-1]] if self.per_channel else s
            total += self.weights[index] * element_loss(
                self.kind, self.approximate, self.y[index], f[index], of_element
            )
        return self.loss_weight * total / max(self.weights.sum(), 1e-9)

    def loss_of(self, likelihood, f, log_variance):
        """The same mean from the losses of a likelihood of the package, as a tensor."""
        hidden = self.weights == 0
        hidden = hidden[..., None] if self.y.ndim > hidden.ndim else hidden
        y = np.where(hidden, 0, self.y).astype(likelihood.target_dtype)
        f, y = keras.ops.convert_to_tensor(f), keras.ops.convert_to_tensor(y)
        losses = likelihood.negative_log_likelihood(y, f, log_variance)
        weights = np.reshape(self.weights, losses.shape) / max(self.weights.sum(), 1e-9)
        weights = keras.ops.convert_to_tensor(weights.astype("float32"))
        return self.loss_weight * keras.ops.sum(losses * weights)

    def permuted(self, seed):
        """The same batch in another order."""
        other = copy.copy(self)
        order = np.random.default_rng(seed).permutation(len(self.f))
        other.f, other.y = self.f[order], self.y[order]
        if self.sample_weight is not None:
            other.sample_weight = self.sample_weight[order]
        return other


# A backend may compile every operation for every shape, so there are few.
axes = st.sampled_from([(1,), (4,), (5, 1), (4, 3), (2, 3, 2)])
seeds = st.integers(0, 2**32 - 1)
kinds_of_task = st.fixed_dictionaries(
    {
        "kind": st.sampled_from(Task.KINDS),
        "axes": axes,
        "per_channel": st.booleans(),
        "approximate": st.booleans(),
        "hide": st.sampled_from([0.0, 0.3, 1.0]),
        "weigh": st.sampled_from([None, "sample", "element"]),
        "dtype": st.sampled_from(["float16", "float32", "float64"]),
        "loss_weight": st.sampled_from([1.0, 0.0, 2.5]),
    }
)
tasks = st.builds(lambda options, seed: Task(**options, seed=seed), kinds_of_task, seeds)
# Tasks of one kind are computed together, so there are up to three of each.
task_sets = st.lists(
    st.tuples(kinds_of_task, st.lists(seeds, min_size=1, max_size=3)), min_size=1, max_size=3
).map(
    lambda groups: {
        f"task_{index}": Task(**options, seed=seed)
        for index, (options, seed) in enumerate(
            (options, seed) for options, seeds in groups for seed in seeds
        )
    }
)


def make_layer(tasks, initial_sigma="own"):
    return UncertaintyWeighting(
        {name: task.likelihood(initial_sigma) for name, task in tasks.items()},
        loss_weights={name: task.loss_weight for name, task in tasks.items()},
    )


def combined_loss(layer, tasks, predictions=None, training=False):
    return layer.combined_loss(
        layer(predictions or {name: task.f for name, task in tasks.items()}),
        {name: task.y for name, task in tasks.items()},
        {name: task.sample_weight for name, task in tasks.items()},
        training=training,
    )


def build(layer, tasks):
    layer.build({name: task.f.shape for name, task in tasks.items()})
    return layer


@examples(300)
@given(task_sets)
def test_the_loss_is_that_of_the_equations(tasks):
    layer = make_layer(tasks)
    layer(
        *({name: getattr(task, part) for name, task in tasks.items()} for part in ("f", "y")),
        sample_weight={name: task.sample_weight for name, task in tasks.items()},
    )
    expected = sum(task.loss() for task in tasks.values())
    np.testing.assert_allclose(float(layer.losses[0]), expected, rtol=1e-5, atol=1e-5)


def assert_differences_agree(function, arguments, position, gradient, step=1e-5):
    """Compares a gradient in one of a function's arguments with its central differences."""

    def moved(index, change):
        values = np.array(arguments[position])
        values[index] += change
        return function(*arguments[:position], values, *arguments[position + 1 :])

    for index in np.ndindex(arguments[position].shape):
        difference = (moved(index, step) - moved(index, -step)) / (2 * step)
        np.testing.assert_allclose(gradient[index], difference, rtol=1e-3, atol=1e-4)


@examples(100)
@given(task_sets)
def test_gradients_are_the_finite_differences_of_the_equations(value_and_gradients, tasks):
    layer = build(make_layer(tasks), tasks)
    f = {name: task.f.astype("float32") for name, task in tasks.items()}
    s = {name: np.float32(2 * np.log(task.sigma)) for name, task in tasks.items()}
    predictions, log_variances = (
        {name: keras.Variable(value, dtype="float32") for name, value in values.items()}
        for values in (f, s)
    )
    _, of_predictions = value_and_gradients(
        lambda: combined_loss(layer, tasks, {k: v.value for k, v in predictions.items()}),
        list(predictions.values()),
    )
    _, of_log_variances = value_and_gradients(
        lambda: sum(
            task.loss_of(task.likelihood(), f[name], log_variances[name].value)
            for name, task in tasks.items()
        ),
        list(log_variances.values()),
    )
    for (name, task), *gradients in zip(
        tasks.items(), of_predictions, of_log_variances, strict=True
    ):
        at = f[name].astype("float64"), s[name].astype("float64")
        for argument, gradient in enumerate(gradients):
            assert_differences_agree(task.loss, at, argument, gradient)


@examples(100)
@given(task_sets, st.integers(0, 2**32 - 1))
def test_the_order_of_the_batch_and_of_the_tasks_changes_nothing(tasks, seed):
    names = np.random.default_rng(seed).permutation(list(tasks))
    permuted = {str(name): tasks[name].permuted(seed) for name in names}
    one, other = (build(make_layer(these, None), these) for these in (tasks, permuted))
    losses = [
        float(combined_loss(layer, these, training=True))
        for layer, these in ((one, tasks), (other, permuted))
    ]
    np.testing.assert_allclose(*losses, rtol=1e-5, atol=1e-5)
    for name, sigma in one.sigmas().items():
        np.testing.assert_allclose(other.sigmas()[name], sigma, rtol=1e-5)


@examples(100)
@given(tasks.filter(lambda task: task.kind == "gaussian"), st.floats(-3, 3), st.booleans())
def test_another_unit_shifts_a_gaussian_by_its_logarithm(task, exponent, from_data):
    c = 10**exponent
    other = copy.copy(task)
    other.f, other.sigma = c * task.f.astype("float64"), c * task.sigma
    other.y = np.where(task.y == task.missing, task.y, c * task.y)
    sigma = None if from_data else "own"
    layers = [build(make_layer({"a": these}, sigma), {"a": these}) for these in (task, other)]
    one, scaled = (
        float(combined_loss(layer, {"a": these}, training=True))
        for layer, these in zip(layers, (task, other), strict=True)
    )
    observed = np.any(task.weights, axis=tuple(range(task.weights.ndim - 1)))
    if np.any(observed):
        shift = task.loss_weight * np.log(c)
        np.testing.assert_allclose(scaled, one + shift, rtol=1e-4, atol=1e-4)
    sigmas = [np.atleast_1d(layer.sigmas()["a"]) for layer in layers]
    known = slice(None) if not from_data else observed if task.per_channel else [np.any(observed)]
    np.testing.assert_allclose(sigmas[1][known], c * sigmas[0][known], rtol=1e-4)
