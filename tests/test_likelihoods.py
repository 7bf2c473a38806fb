"""Likelihoods agree with SciPy, with the losses of Keras and with finite differences."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops
from scipy import optimize, special, stats

from keras_uncertainty_mtl import (
    Bernoulli,
    Categorical,
    Gaussian,
    Gibbs,
    Laplace,
    Likelihood,
    NegativeBinomial,
    Ordinal,
    Poisson,
    Quantile,
    StudentT,
    UncertaintyWeighting,
    likelihoods,
)

pytestmark = pytest.mark.backends(
    "tensorflow", reason="uses TensorFlow's tapes; see test_properties.py"
)

NAN = float("nan")


@keras.saving.register_keras_serializable(package="test_likelihoods")
class Quartic(Likelihood):
    """A user's likelihood of the standard form, with its own scale and power."""

    scale, power = 0.25, 2.0

    def loss(self, targets, predictions):
        return (targets - predictions) ** 4


@keras.saving.register_keras_serializable(package="test_likelihoods")
class Student(Likelihood):
    """A user's likelihood of another form, with an argument to be saved."""

    def __init__(self, degrees_of_freedom, **kwargs):
        super().__init__(**kwargs)
        self.degrees_of_freedom = degrees_of_freedom

    def loss(self, targets, predictions):
        return ops.square(targets - predictions)

    def negative_log_likelihood(self, targets, predictions, log_variance):
        # The variance is the squared scale times n / (n - 2), for n degrees of freedom.
        excess = self.degrees_of_freedom - 2
        squared = ops.square(targets - predictions) * ops.exp(-log_variance) / excess
        return 0.5 * (self.degrees_of_freedom + 1) * ops.log1p(squared) + 0.5 * log_variance

    def get_config(self):
        return {"degrees_of_freedom": self.degrees_of_freedom, **super().get_config()}


@keras.saving.register_keras_serializable(package="test_likelihoods")
class RelativeError(keras.losses.Loss):
    """A user's Keras loss, with an argument to be saved."""

    def __init__(self, offset=1.0, name="relative_error", **kwargs):
        super().__init__(name=name, **kwargs)
        self.offset = offset

    def call(self, y_true, y_pred):
        return ops.mean(ops.abs(y_true - y_pred) / (ops.abs(y_true) + self.offset), axis=-1)

    def get_config(self):
        return {"offset": self.offset, **super().get_config()}


@keras.saving.register_keras_serializable(package="test_likelihoods")
class CoarseHuber(keras.losses.Huber):
    """A user's version of a stock loss, with one of its arguments fixed."""

    def __init__(self, name="coarse_huber", reduction="sum_over_batch_size"):
        super().__init__(delta=2.0, name=name, reduction=reduction)

    def get_config(self):
        # In Keras 3.16, that of Huber has a delta, which this constructor does not take.
        return {"name": self.name, "reduction": self.reduction}

    @classmethod
    def from_config(cls, config):
        return cls(**config)


@keras.saving.register_keras_serializable(package="test_likelihoods")
def cubic_error(y_true, y_pred):
    return ops.mean(ops.abs(y_true - y_pred) ** 3, axis=-1)


# --- Reference values -----------------------------------------------------------------------------


def normal(targets, predictions, sigma):
    constant = 0.5 * np.log(2 * np.pi)
    return -stats.norm.logpdf(targets, predictions, sigma) - constant


def laplace(targets, predictions, sigma):
    # The standard deviation is √2 times the scale, and log(2 · scale) = ½ · log(2) + log(σ).
    constant = 0.5 * np.log(2)
    return -stats.laplace.logpdf(targets, predictions, sigma / np.sqrt(2)) - constant


def student(targets, predictions, sigma):
    scale = sigma * np.sqrt(3 / 5)
    constant = stats.t.logpdf(0, 5) - 0.5 * np.log(3 / 5)
    return -stats.t.logpdf(targets, 5, predictions, scale) + constant


def with_a_sigma_each(nll: Callable) -> Callable:
    """Values of a heteroscedastic likelihood, whose predictions end in log-variances."""

    def values(targets, predictions, sigma):
        estimates, log_variances = np.split(predictions, 2, axis=-1)
        return nll(targets, estimates, sigma * np.exp(0.5 * log_variances))

    return values


def pinball(targets, predictions, sigma, level=0.2):
    # In SciPy's form the scale is that of both sides, and κ² the ratio of their slopes.
    kappa, unit = np.sqrt(level / (1 - level)), sigma * level * (1 - level)
    unit = unit / np.sqrt(level**2 + (1 - level) ** 2)
    scale = unit / np.sqrt(level * (1 - level))
    constant = np.log(unit / sigma / (level * (1 - level)))
    return -stats.laplace_asymmetric.logpdf(targets, kappa, predictions, scale) - constant


def deviance(targets, predictions, sigma):
    return special.kl_div(targets, np.exp(predictions)) / sigma**2 + np.log(sigma)


def negative_binomial(targets, predictions, sigma):
    successes, probability = sigma**-2, 1 / (1 + sigma**2 * np.exp(predictions))
    logpmf = stats.nbinom.logpmf(targets, successes, probability)
    constant = special.gammaln(targets + 1) - special.xlogy(targets, targets) + targets
    return -logpmf - constant


def rounded_logistic(targets, predictions, sigma):
    noise = stats.logistic(predictions, sigma * np.sqrt(3) / np.pi)
    upper = np.where(targets == 5, np.inf, targets + 0.5)
    lower = np.where(targets == 1, -np.inf, targets - 0.5)
    # The upper tail has more digits where both ends are above the middle.
    mass = noise.cdf(upper) - noise.cdf(lower), noise.sf(lower) - noise.sf(upper)
    return -np.log(np.where(lower > predictions, mass[1], mass[0]))


def quartic(targets, predictions, sigma):
    # ∫ exp(-r⁴ / 4σ⁴) dr = 2 · Γ(5/4) · √2 · σ: `gennorm` with the shape 4 and the scale √2 · σ.
    constant = np.log(2 * special.gamma(1.25) * np.sqrt(2))
    return -stats.gennorm.logpdf(targets, 4, predictions, np.sqrt(2) * sigma) - constant


def softmax_of_ids(targets, predictions, sigma=1.0):
    log_probabilities = special.log_softmax(predictions / sigma**2, axis=-1)
    return -np.take_along_axis(log_probabilities, targets[..., None], axis=-1)[..., 0]


def softmax_of_one_hot(targets, predictions, sigma=1.0):
    probabilities = special.softmax(predictions / sigma**2, axis=-1)
    return -stats.multinomial.logpmf(targets, 1, probabilities)


def softmax_of_distributions(targets, predictions, sigma=1.0):
    log_probabilities = special.log_softmax(predictions / sigma**2, axis=-1)
    return np.sum(special.rel_entr(targets, np.exp(log_probabilities)), axis=-1) + stats.entropy(
        targets, axis=-1
    )


def multinomial_of_one_hot(targets, predictions):
    # Keras normalises probabilities too, and finite differences have to agree with its gradients.
    probabilities = predictions / predictions.sum(axis=-1, keepdims=True)
    return -stats.multinomial.logpmf(targets, 1, probabilities)


def multinomial_of_ids(targets, predictions):
    return multinomial_of_one_hot(np.eye(predictions.shape[-1])[targets], predictions)


def sigmoid(targets, predictions, sigma=1.0):
    return -stats.bernoulli.logpmf(targets, special.expit(predictions / sigma**2))


def coin(targets, predictions):
    return -stats.bernoulli.logpmf(targets, predictions)


def approximate(loss: Callable) -> Callable:
    """Eq. 10 of the paper for a raw loss."""
    return lambda targets, predictions, sigma: loss(targets, predictions) / sigma**2 + np.log(sigma)


def stock(loss: type[keras.losses.Loss], elementwise: bool = False, **options) -> Callable:
    """Eq. 10 of the paper for an unreduced loss of Keras, in float64."""
    unreduced = loss(reduction=None, dtype="float64", **options)

    def values(*batch):
        if elementwise:
            batch = [each[..., np.newaxis] for each in batch]
        return ops.convert_to_numpy(unreduced(*batch))

    return approximate(values)


# --- Data -----------------------------------------------------------------------------------------


def reals(rng, shape):
    return rng.normal(3, 2, shape), rng.normal(2, 3, shape)


def reals_and_log_variances(rng, shape):
    targets, predictions = reals(rng, shape)
    return targets, np.concatenate([predictions, rng.normal(size=shape)], axis=-1)


def counts_and_log_rates(rng, shape):
    return rng.poisson(4, shape).astype("float64"), rng.normal(1, 1, shape)


def ratings(rng, shape):
    return rng.integers(1, 6, shape).astype("float64"), rng.normal(3, 2, shape)


def class_ids(rng, shape):
    return rng.integers(shape[-1], size=shape[:-1]), rng.normal(0, 2, shape)


def one_hot(rng, shape):
    ids, logits = class_ids(rng, shape)
    return np.eye(shape[-1])[ids], logits


def distributions(rng, shape):
    return special.softmax(rng.normal(size=shape), axis=-1), rng.normal(0, 2, shape)


def class_ids_and_probabilities(rng, shape):
    ids, logits = class_ids(rng, shape)
    return ids, special.softmax(logits, axis=-1)


def one_hot_and_probabilities(rng, shape):
    targets, logits = one_hot(rng, shape)
    return targets, special.softmax(logits, axis=-1)


def bits(rng, shape):
    return rng.integers(2, size=shape).astype("float64"), rng.normal(0, 2, shape)


def bits_and_probabilities(rng, shape):
    targets, logits = bits(rng, shape)
    return targets, special.expit(logits)


@dataclass(frozen=True)
class Case:
    """A likelihood, its data, and its negative log-likelihood by another library."""

    make: Callable[..., Likelihood]
    draw: Callable
    shape: tuple[int, ...]
    nll: Callable
    options: dict[str, Any]
    missing: float = NAN
    sigma: Any = 1.7

    def likelihood(self, **kwargs) -> Likelihood:
        return self.make(**self.options, **kwargs)

    def batch(self) -> tuple[np.ndarray, np.ndarray]:
        return self.draw(np.random.default_rng(1), self.shape)


def case(make, draw, shape, nll, missing=NAN, sigma=1.7, **options):
    return Case(make, draw, shape, nll, options, missing, sigma)


HUBER = keras.losses.Huber(delta=1.5)
DICE = keras.losses.Dice(axis=(1, 2))
FOCAL = keras.losses.CategoricalFocalCrossentropy(alpha=0.4, gamma=1.5)
LOG_COSH = keras.losses.LogCosh()

huber = stock(keras.losses.Huber, elementwise=True, delta=1.5)
dice = stock(keras.losses.Dice, axis=(1, 2))
focal = stock(keras.losses.CategoricalFocalCrossentropy, alpha=0.4, gamma=1.5)
log_cosh = stock(keras.losses.LogCosh, elementwise=True)

CASES = {
    "gaussian": case(Gaussian, reals, (5,), normal),
    "gaussian-images": case(Gaussian, reals, (3, 4, 5, 2), normal),
    "gaussian-channels": case(
        Gaussian, reals, (6, 3), normal, sigma=np.array([0.4, 1.0, 30.0]), per_channel=True
    ),
    "laplace": case(Laplace, reals, (5, 1), laplace),
    "laplace-images": case(Laplace, reals, (3, 4, 5, 2), laplace),
    "laplace-channels": case(
        Laplace, reals, (3, 2, 2), laplace, sigma=np.array([0.4, 30.0]), per_channel=True
    ),
    **{
        f"{name}-heteroscedastic{suffix}": case(
            functools.partial(make, heteroscedastic=True, beta=0.0),
            reals_and_log_variances,
            shape,
            with_a_sigma_each(nll),
        )
        for name, make, nll in (
            ("gaussian", Gaussian, normal),
            ("laplace", Laplace, laplace),
            ("student-t", functools.partial(StudentT, 5), student),
        )
        for suffix, shape in (("", (5, 1)), ("-images", (3, 4, 5, 2)))
    },
    "quantile": case(Quantile, reals, (5, 2), pinball, level=0.2),
    "student-t": case(StudentT, reals, (5, 2), student, df=5),
    "poisson": case(Poisson, counts_and_log_rates, (5, 2), deviance),
    "poisson-channels": case(
        Poisson,
        counts_and_log_rates,
        (6, 3),
        deviance,
        sigma=np.array([0.4, 1.0, 3.0]),
        per_channel=True,
    ),
    "negative-binomial": case(
        NegativeBinomial, counts_and_log_rates, (5, 2), negative_binomial, missing=-1
    ),
    "ordinal": case(Ordinal, ratings, (5, 2), rounded_logistic, lowest=1, highest=5),
    "categorical": case(Categorical, class_ids, (5, 3), softmax_of_ids, missing=-1),
    "categorical-tokens": case(Categorical, class_ids, (3, 4, 3), softmax_of_ids, missing=-1),
    "categorical-pixels": case(Categorical, class_ids, (2, 3, 4, 3), softmax_of_ids, missing=255),
    "categorical-one-hot": case(Categorical, one_hot, (3, 4, 3), softmax_of_one_hot, sparse=False),
    "categorical-soft": case(
        Categorical, distributions, (5, 3), softmax_of_distributions, sparse=False
    ),
    "categorical-approximate": case(
        Categorical, class_ids, (3, 4, 3), approximate(softmax_of_ids), -1, approximate=True
    ),
    "categorical-probabilities": case(
        Categorical,
        class_ids_and_probabilities,
        (3, 4, 3),
        approximate(multinomial_of_ids),
        missing=-1,
        from_logits=False,
        approximate=True,
    ),
    "categorical-one-hot-probabilities": case(
        Categorical,
        one_hot_and_probabilities,
        (5, 3),
        approximate(multinomial_of_one_hot),
        sparse=False,
        from_logits=False,
        approximate=True,
    ),
    "bernoulli": case(Bernoulli, bits, (5, 1), sigmoid, missing=-1),
    "bernoulli-maps": case(Bernoulli, bits, (2, 3, 4), sigmoid),
    "bernoulli-approximate": case(Bernoulli, bits, (5, 3), approximate(sigmoid), approximate=True),
    "bernoulli-probabilities": case(
        Bernoulli,
        bits_and_probabilities,
        (5, 3),
        approximate(coin),
        from_logits=False,
        approximate=True,
    ),
    "gibbs-huber": case(Gibbs, reals, (5, 3), huber, loss=HUBER),
    "gibbs-log-cosh": case(Gibbs, reals, (3, 4, 2), log_cosh, loss=LOG_COSH),
    "gibbs-dice": case(Gibbs, bits_and_probabilities, (4, 3, 5), dice, loss=DICE),
    "gibbs-focal": case(Gibbs, one_hot_and_probabilities, (5, 3), focal, loss=FOCAL),
    "user-quartic": case(Quartic, reals, (5, 2), quartic),
    "user-student": case(Student, reals, (5, 2), student, degrees_of_freedom=5),
}
# Their σ has no closed form and starts at 1.
EXACT = {
    *("categorical", "categorical-tokens", "categorical-pixels"),
    *("categorical-one-hot", "categorical-soft", "bernoulli", "bernoulli-maps", "user-student"),
    "negative-binomial",
}
# Their σ follows another loss, and is optimal after some batches: see test_tabular_likelihoods.py.
FOLLOWING = {name for name in CASES if name.startswith(("student-t", "ordinal"))}
STARTING = sorted(CASES.keys() - EXACT - FOLLOWING)
# The area of a Dice loss has several targets.
MISSING = sorted(CASES.keys() - {"gibbs-dice"})


def by_case(names=CASES):
    return pytest.mark.parametrize("case", [pytest.param(CASES[name], id=name) for name in names])


# --- A layer with one likelihood ------------------------------------------------------------------


def weighting_of(likelihood: Any, dtype: str = "float64") -> UncertaintyWeighting:
    return UncertaintyWeighting({"task": likelihood}, dtype=dtype)


def loss_of(
    weighting: UncertaintyWeighting,
    targets: Any,
    predictions: Any,
    sample_weight: Any = None,
    training: bool = False,
) -> float:
    # Keras would cast arrays to the dtype of the layer, but not tensors.
    weighting(
        tf.convert_to_tensor(predictions),
        tf.convert_to_tensor(targets),
        None if sample_weight is None else tf.convert_to_tensor(sample_weight),
        training=training,
    )
    (loss,) = weighting.losses
    return float(loss)


def as_list(sigma: Any) -> Any:
    return sigma.tolist() if isinstance(sigma, np.ndarray) else sigma


# --- Values ---------------------------------------------------------------------------------------


@by_case()
@pytest.mark.parametrize("factor", [0.3, 1.0, 40.0])
def test_negative_log_likelihoods_are_those_of_scipy(case, factor):
    targets, predictions = case.batch()
    sigma = case.sigma * factor
    values = case.likelihood().negative_log_likelihood(
        tf.convert_to_tensor(targets), tf.convert_to_tensor(predictions), 2 * np.log(sigma)
    )
    expected = case.nll(targets, predictions, sigma)
    assert values.shape == expected.shape
    np.testing.assert_allclose(values, expected, rtol=1e-9, atol=1e-9)


@by_case()
@pytest.mark.parametrize(("dtype", "rtol"), [("float32", 1e-5), ("float64", 1e-10)])
def test_the_layer_adds_the_mean_over_elements(case, dtype, rtol):
    targets, predictions = case.batch()
    weighting = weighting_of(case.likelihood(initial_sigma=as_list(case.sigma)), dtype)
    loss = loss_of(weighting, targets, predictions.astype(dtype))
    np.testing.assert_allclose(loss, case.nll(targets, predictions, case.sigma).mean(), rtol=rtol)


@by_case()
def test_sample_weights_make_the_loss_a_weighted_mean(case):
    targets, predictions = case.batch()
    weight = np.random.default_rng(2).exponential(100, len(targets))
    weighting = weighting_of(case.likelihood(initial_sigma=as_list(case.sigma)))
    loss = loss_of(weighting, targets, predictions, weight)
    per_sample = [
        case.nll(y[None], f[None], case.sigma).mean()
        for y, f in zip(targets, predictions, strict=True)
    ]
    np.testing.assert_allclose(loss, np.average(per_sample, weights=weight), rtol=1e-9)


# --- Gradients ------------------------------------------------------------------------------------


def central_differences(function: Callable, point: np.ndarray, step: float = 1e-5) -> np.ndarray:
    gradient = np.empty(point.shape)
    for index in np.ndindex(point.shape):
        moved = np.zeros(point.shape)
        moved[index] = step
        gradient[index] = (function(point + moved) - function(point - moved)) / (2 * step)
    return gradient


def assert_differences_agree(gradient: Any, differences: np.ndarray) -> None:
    # For a loss of order 1 and a step of 1e-5, rounding errors are about 1e-11. The third
    # derivative adds errors of about 1e-10.
    np.testing.assert_allclose(gradient, differences, rtol=1e-6, atol=1e-8)


def gradient_in_predictions(weighting: UncertaintyWeighting, targets: Any, predictions: Any) -> Any:
    predictions = tf.constant(predictions)
    with tf.GradientTape() as tape:
        tape.watch(predictions)
        weighting(predictions, targets)
        (loss,) = weighting.losses
    return tape.gradient(loss, predictions)


@by_case()
def test_gradients_in_predictions_are_finite_differences(case):
    targets, predictions = case.batch()
    weighting = weighting_of(case.likelihood(initial_sigma=as_list(case.sigma)))
    assert_differences_agree(
        gradient_in_predictions(weighting, tf.constant(targets), predictions),
        central_differences(lambda f: case.nll(targets, f, case.sigma).mean(), predictions),
    )


@by_case()
def test_gradients_in_log_variances_are_finite_differences(case):
    targets, predictions = case.batch()
    log_variance = tf.constant(2 * np.log(case.sigma), "float64")
    with tf.GradientTape() as tape:
        tape.watch(log_variance)
        values = case.likelihood().negative_log_likelihood(
            tf.constant(targets), tf.constant(predictions), log_variance
        )
        loss = tf.reduce_mean(values)
    assert_differences_agree(
        tape.gradient(loss, log_variance),
        central_differences(
            lambda s: case.nll(targets, predictions, np.exp(0.5 * s)).mean(), log_variance.numpy()
        ),
    )


# --- The σ that training starts from --------------------------------------------------------------


def best_sigma(nll: Callable, unit: float = 1.0) -> float:
    """The minimum over `s = log σ²` of a mean negative log-likelihood, by search."""
    # Beyond these bounds `laplace.logpdf` underflows.
    found = optimize.minimize_scalar(
        lambda s: nll(np.exp(0.5 * s)).mean(),
        bounds=2 * np.log(unit) + np.array([-6, 8]),
        options={"xatol": 1e-10},
    )
    return np.exp(0.5 * found.x)


@pytest.mark.parametrize(
    ("case", "unit"),
    [
        pytest.param(CASES[name], unit, id=f"{name}-{unit}")
        for name in STARTING
        # Only regressions have a unit.
        for unit in ([1e-3, 1, 1e3] if CASES[name].draw is reals else [1])
    ],
)
def test_the_first_batch_gives_the_optimal_sigma(case, unit):
    targets, predictions = (unit * values for values in case.batch())
    if case.options.get("per_channel"):
        expected = [
            best_sigma(
                lambda sigma, c=channel: case.nll(targets[..., c], predictions[..., c], sigma),
                unit,
            )
            for channel in range(case.shape[-1])
        ]
    else:
        expected = best_sigma(lambda sigma: case.nll(targets, predictions, sigma), unit)
    weighting = weighting_of(case.likelihood())
    loss_of(weighting, targets, predictions, training=True)
    # A search finds a minimum to about the root of the machine's precision.
    np.testing.assert_allclose(weighting.sigmas()["task"], expected, rtol=1e-6)
    # The same batch again changes nothing.
    loss_of(weighting, targets, predictions, training=True)
    np.testing.assert_allclose(weighting.sigmas()["task"], expected, rtol=1e-6)


@by_case(sorted(EXACT))
def test_likelihoods_without_a_closed_form_start_at_one(case):
    targets, predictions = case.batch()
    weighting = weighting_of(case.likelihood())
    loss_of(weighting, targets, predictions, training=True)
    assert weighting.sigmas()["task"] == 1


@pytest.mark.parametrize("sigma", [3.0, None])
def test_evaluation_moves_no_sigma(sigma):
    weighting = weighting_of(Gaussian(initial_sigma=sigma))
    loss_of(weighting, *CASES["gaussian"].batch(), training=False)
    np.testing.assert_allclose(weighting.sigmas()["task"], sigma or 1.0, rtol=1e-12)


# --- Missing targets ------------------------------------------------------------------------------


@by_case(MISSING)
def test_missing_targets_count_for_nothing(case):
    targets, predictions = case.batch()
    elements = case.nll(targets, predictions, case.sigma).shape
    visible = np.random.default_rng(3).random(elements) < 0.6
    assert 0 < visible.sum() < visible.size

    def nll(f):
        return case.nll(targets, f, case.sigma)[visible].mean()

    holed = targets.copy()
    holed[~visible] = case.missing
    likelihood = case.likelihood(initial_sigma=as_list(case.sigma), missing=case.missing)
    weighting = weighting_of(likelihood)
    np.testing.assert_allclose(loss_of(weighting, holed, predictions), nll(predictions), rtol=1e-9)
    gradient = gradient_in_predictions(weighting, tf.constant(holed), predictions)
    assert_differences_agree(gradient, central_differences(nll, predictions))


@by_case(sorted(set(MISSING) - FOLLOWING))
def test_sigma_starts_from_the_visible_targets(case):
    targets, predictions = case.batch()
    elements = case.nll(targets, predictions, case.sigma).shape
    visible = np.random.default_rng(3).random(elements) < 0.6
    holed = targets.copy()
    holed[~visible] = case.missing
    weighting = weighting_of(case.likelihood(missing=case.missing))
    loss_of(weighting, holed, predictions, training=True)

    def optimum(channel):
        shown = visible[channel]
        return best_sigma(lambda s: case.nll(targets[channel], predictions[channel], s)[shown])

    if case.options.get("per_channel"):
        expected = [optimum((..., channel)) for channel in range(case.shape[-1])]
    elif case.likelihood().has_closed_form:
        expected = optimum(...)
    else:
        expected = 1.0
    np.testing.assert_allclose(weighting.sigmas()["task"], expected, rtol=1e-6)


@by_case(MISSING)
def test_a_batch_without_labels_has_no_loss_and_starts_no_sigma(case):
    targets, predictions = case.batch()
    holed = np.full_like(targets, case.missing)
    weighting = weighting_of(case.likelihood(missing=case.missing))
    weighting.build(predictions.shape)
    with tf.GradientTape() as tape:
        weighting(tf.constant(predictions), tf.constant(holed), training=True)
        (loss,) = weighting.losses
    assert loss == 0
    np.testing.assert_array_equal(tape.gradient(loss, weighting.trainable_variables[0].value), 0)
    np.testing.assert_array_equal(weighting.sigmas()["task"], 1)
    # The first batch with a label then starts σ, as in a new layer.
    another = weighting_of(case.likelihood())
    for layer in (weighting, another):
        loss_of(layer, targets, predictions, training=True)
    np.testing.assert_array_equal(weighting.sigmas()["task"], another.sigmas()["task"])


def test_nothing_is_missing_by_default():
    targets, predictions = CASES["gaussian"].batch()
    targets[2] = NAN
    assert np.isnan(loss_of(weighting_of(Gaussian()), targets, predictions))


@pytest.mark.parametrize(
    ("missing", "dtype"),
    [(255, "uint8"), (-1, "int8"), (-1, "int64"), (255, "float32"), (-1, "float64"), (7, "int16")],
)
def test_a_missing_class_is_left_out_in_every_dtype(missing, dtype):
    ids, logits = CASES["categorical"].batch()
    expected = softmax_of_ids(ids[1:], logits[1:]).mean()
    ids[0] = missing
    loss = loss_of(weighting_of(Categorical(missing=missing)), ids.astype(dtype), logits)
    np.testing.assert_allclose(loss, expected, rtol=1e-10)


@pytest.mark.parametrize("missing", [-9999.9, 1e-3, 0, float("inf"), 2**24])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_missing_number_is_left_out_in_either_precision(missing, dtype):
    targets, predictions = CASES["gaussian"].batch()
    expected = 0.5 * np.mean((targets[1:] - predictions[1:]) ** 2)
    targets[0] = missing
    loss = loss_of(
        weighting_of(Gaussian(missing=missing), "float32"), targets.astype(dtype), predictions
    )
    np.testing.assert_allclose(loss, expected, rtol=1e-6)


def test_an_area_is_missing_if_all_of_its_targets_are():
    targets, predictions = CASES["gibbs-dice"].batch()
    expected = dice(targets[1:], predictions[1:], 1.0).mean()
    targets[0] = NAN
    weighting = weighting_of(Gibbs(DICE, missing=NAN, initial_sigma=1.0))
    np.testing.assert_allclose(loss_of(weighting, targets, predictions), expected, rtol=1e-9)


# --- A log-variance for each element --------------------------------------------------------------

HETEROSCEDASTIC = {Gaussian: normal, Laplace: laplace}


@pytest.mark.parametrize("make", HETEROSCEDASTIC)
@pytest.mark.parametrize("constant", [-1.5, 0.0, 2.0])
def test_a_constant_log_variance_is_the_homoscedastic_form(make, constant):
    targets, predictions = reals(np.random.default_rng(1), (6, 3))
    outputs = np.concatenate([predictions, np.full((6, 3), constant)], axis=-1)
    sigma = 0.7
    plain = weighting_of(make(initial_sigma=sigma * np.exp(0.5 * constant)))
    weighting = weighting_of(make(initial_sigma=sigma, heteroscedastic=True))
    np.testing.assert_allclose(
        loss_of(weighting, targets, outputs), loss_of(plain, targets, predictions), rtol=1e-12
    )
    np.testing.assert_allclose(
        gradient_in_predictions(weighting, tf.constant(targets), outputs)[:, :3],
        gradient_in_predictions(plain, tf.constant(targets), predictions),
        rtol=1e-12,
    )


@pytest.mark.parametrize("make", HETEROSCEDASTIC)
def test_sigmas_of_channels_and_log_variances_of_elements_add_up(make):
    targets, outputs = reals_and_log_variances(np.random.default_rng(1), (50, 3))
    targets *= [0.3, 1, 3]
    weighting = weighting_of(make(per_channel=True, heteroscedastic=True))
    loss = loss_of(weighting, targets, outputs, training=True)
    nll = with_a_sigma_each(HETEROSCEDASTIC[make])
    best = [
        best_sigma(lambda s, c=c: nll(targets[:, [c]], outputs[:, [c, c + 3]], s)) for c in range(3)
    ]
    np.testing.assert_allclose(weighting.sigmas()["task"], best, rtol=1e-6)
    np.testing.assert_allclose(loss, nll(targets, outputs, np.array(best)).mean(), rtol=1e-9)


@pytest.mark.parametrize("make", HETEROSCEDASTIC)
def test_the_reported_loss_is_that_of_the_estimates_alone(make):
    targets, outputs = reals_and_log_variances(np.random.default_rng(1), (6, 3))
    stock = LOSSES.MeanSquaredError() if make is Gaussian else LOSSES.MeanAbsoluteError()
    weighting = weighting_of(make(heteroscedastic=True))
    loss_of(weighting, targets, outputs)
    (statistics,) = weighting.metrics
    expected = stock(tf.constant(targets), tf.constant(outputs[:, :3]))
    np.testing.assert_allclose(statistics.result()["task_loss"], expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("make", "extreme", "expected"),
    [
        # By hand, because `laplace.logpdf` underflows here.
        (Gaussian, -80.0, 0.5 * np.exp(80) * 2**2 - 40),
        (Gaussian, 80.0, 0.5 * np.exp(-80) * 2**2 + 40),
        (Laplace, -80.0, np.sqrt(2) * np.exp(40) * 2 - 40),
        (Laplace, 80.0, np.sqrt(2) * np.exp(-40) * 2 + 40),
    ],
)
def test_extreme_log_variances_are_finite_in_single_precision(make, extreme, expected):
    targets, outputs = np.float32([[3.0]]), tf.constant([[1.0, extreme]])
    weighting = weighting_of(make(heteroscedastic=True, initial_sigma=1.0), "float32")
    loss = loss_of(weighting, targets, outputs)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    assert np.all(np.isfinite(gradient_in_predictions(weighting, targets, outputs)))


@pytest.mark.parametrize("make", HETEROSCEDASTIC)
@pytest.mark.parametrize("shape", [(4, 3), (4, 1), (4, None), (4,)])
def test_a_log_variance_for_each_element_needs_an_even_last_axis(make, shape):
    weighting = UncertaintyWeighting({"depth": make(heteroscedastic=True)})
    with pytest.raises(ValueError, match=r"'depth': \w+\(heteroscedastic=True\).*even.*Received"):
        weighting.build(shape)


def test_heteroscedastic_targets_have_the_shape_of_the_estimates():
    weighting = UncertaintyWeighting({"depth": Gaussian(heteroscedastic=True)})
    assert weighting.target_inputs(keras.Input((8, 8, 6)))["depth"].shape == (None, 8, 8, 3)
    with pytest.raises(ValueError, match=r"(?s)'depth'.*of shape \(4, 1\) for .*\(4, 2\)"):
        weighting(np.ones((4, 2)), np.ones((4, 2)))


# --- Large integers, and classes out of range -----------------------------------------------------


@pytest.mark.parametrize("dtype", ["uint8", "int32", "uint32", "int64"])
def test_integer_targets_of_a_regression_keep_their_value(dtype):
    targets = np.array([0, np.iinfo(dtype).max // 2, np.iinfo(dtype).max], dtype)
    predictions = np.ones(3)
    expected = 0.5 * np.mean((targets.astype("float64") - predictions) ** 2)
    loss = loss_of(weighting_of(Gaussian(initial_sigma=1.0)), targets, predictions)
    np.testing.assert_allclose(loss, expected, rtol=1e-12)


MODES = {
    "eager": lambda function: function,
    "graph": tf.function,
    "compiled": lambda function: tf.function(function, jit_compile=True),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("form", "wrong", "dtype"),
    [
        *(
            (form, wrong, "int32")
            for form in ("exact", "approximate", "probabilities")
            for wrong in (-1, 3, 255)
        ),
        *(("exact", 255, "uint8"), ("exact", -1, "int8"), ("exact", 2**32 - 1, "uint32")),
        *(("exact", -1, "float32"), ("exact", 3, "float32"), ("exact", NAN, "float32")),
        # The last 32 bits of these are 1.
        *(("exact", 2**32 + 1, dtype) for dtype in ("int64", "uint64", "float64")),
    ],
)
def test_a_class_out_of_range_is_an_error_or_nan(form, wrong, dtype, mode):
    ids, logits = CASES["categorical"].batch()
    likelihood = Categorical(from_logits=form != "probabilities", approximate=form != "exact")
    weighting = weighting_of(likelihood)
    weighting.build(logits.shape)
    outputs = special.softmax(logits, axis=-1) if form == "probabilities" else logits

    @MODES[mode]
    def loss(targets):
        return weighting.combined_loss(tf.constant(outputs), targets, training=False)

    expected = softmax_of_ids(ids, logits).mean()
    np.testing.assert_allclose(loss(tf.constant(ids, dtype)), expected, rtol=1e-6)
    wrong_ids = ids.astype(dtype)
    wrong_ids[2] = wrong
    try:
        value = loss(tf.constant(wrong_ids))
    except tf.errors.InvalidArgumentError:
        return
    assert np.isnan(value)


def test_a_missing_class_does_not_hide_one_out_of_range():
    ids, logits = CASES["categorical"].batch()
    ids[0], ids[1] = 255, 3
    with pytest.raises((tf.errors.InvalidArgumentError, AssertionError)):
        assert not np.isnan(loss_of(weighting_of(Categorical(missing=255)), ids, logits))


# --- Keras losses as likelihoods ------------------------------------------------------------------

CLASSES = ("from_logits", "approximate", "missing")
LOSSES = keras.losses
IDENTIFIERS = {
    Gaussian: [
        *("mse", "MSE", "mean_squared_error", "MeanSquaredError"),
        *(LOSSES.MeanSquaredError(), LOSSES.mean_squared_error, LOSSES.get("mse")),
    ],
    Laplace: [
        *("mae", "MAE", "mean_absolute_error", "MeanAbsoluteError"),
        *(LOSSES.MeanAbsoluteError(), LOSSES.mean_absolute_error, LOSSES.get("mae")),
    ],
    Categorical: [
        *("sparse_categorical_crossentropy", "SparseCategoricalCrossentropy"),
        *("categorical_crossentropy", "CategoricalCrossentropy"),
        *(LOSSES.SparseCategoricalCrossentropy(), LOSSES.sparse_categorical_crossentropy),
        *(LOSSES.CategoricalCrossentropy(from_logits=True), LOSSES.categorical_crossentropy),
    ],
    Bernoulli: [
        *("bce", "BCE", "binary_crossentropy", "BinaryCrossentropy"),
        *(LOSSES.BinaryCrossentropy(from_logits=True), LOSSES.binary_crossentropy),
    ],
    Gibbs: [
        *("huber", "Huber", "log_cosh", "poisson", "kl_divergence", "mape", "cosine_similarity"),
        *(HUBER, DICE, FOCAL, LOSSES.Tversky(), LOSSES.huber, RelativeError(), cubic_error),
        LOSSES.BinaryCrossentropy(label_smoothing=0.1),
        LOSSES.CategoricalCrossentropy(label_smoothing=0.1),
        LOSSES.CategoricalCrossentropy(axis=1),
        lambda y_true, y_pred: ops.mean(y_true - y_pred, axis=-1),
    ],
}


@pytest.mark.parametrize(
    ("kind", "identifier"),
    [
        pytest.param(kind, identifier, id=f"{kind.__name__}-{position}")
        for kind, identifiers in IDENTIFIERS.items()
        for position, identifier in enumerate(identifiers)
    ],
)
def test_a_keras_loss_becomes_the_matching_likelihood(kind, identifier):
    assert type(likelihoods.get(identifier)) is kind
    assert type(UncertaintyWeighting({"task": identifier}).tasks["task"]) is kind


@pytest.mark.parametrize("from_logits", [True, False])
@pytest.mark.parametrize(
    ("loss", "targets"),
    [
        (LOSSES.SparseCategoricalCrossentropy, class_ids),
        (LOSSES.CategoricalCrossentropy, one_hot),
        (LOSSES.BinaryCrossentropy, bits),
    ],
)
def test_a_cross_entropy_keeps_its_logits(loss, targets, from_logits):
    likelihood = likelihoods.get(loss(from_logits=from_logits))
    # The exact form needs logits, so probabilities have the approximate one.
    assert (likelihood.from_logits, likelihood.approximate) == (from_logits, not from_logits)
    assert getattr(likelihood, "sparse", None) == {class_ids: True, one_hot: False}.get(targets)


# Losses of Keras, and data for each.
RAW_LOSSES = {
    "mse": (LOSSES.MeanSquaredError(), reals, (6, 4)),
    "mse-images": (LOSSES.MeanSquaredError(), reals, (3, 4, 5, 2)),
    "mae": (LOSSES.MeanAbsoluteError(), reals, (6, 4)),
    "bce-logits": (LOSSES.BinaryCrossentropy(from_logits=True), bits, (6, 4)),
    "bce-probabilities": (LOSSES.BinaryCrossentropy(), bits_and_probabilities, (6, 4)),
    "bce-smoothed": (
        LOSSES.BinaryCrossentropy(from_logits=True, label_smoothing=0.2),
        bits,
        (6, 4),
    ),
    "bce-axis": (LOSSES.BinaryCrossentropy(from_logits=True, axis=1), bits, (6, 4, 3)),
    "cce-logits": (LOSSES.CategoricalCrossentropy(from_logits=True), one_hot, (6, 4)),
    "cce-probabilities": (LOSSES.CategoricalCrossentropy(), one_hot_and_probabilities, (6, 4)),
    "cce-smoothed": (
        LOSSES.CategoricalCrossentropy(from_logits=True, label_smoothing=0.2),
        one_hot,
        (6, 4),
    ),
    "cce-axis": (LOSSES.CategoricalCrossentropy(from_logits=True, axis=1), one_hot, (5, 4, 4)),
    "scce-logits": (LOSSES.SparseCategoricalCrossentropy(from_logits=True), class_ids, (6, 5, 4)),
    "scce-probabilities": (
        LOSSES.SparseCategoricalCrossentropy(),
        class_ids_and_probabilities,
        (6, 5, 4),
    ),
    "scce-ignored": (
        LOSSES.SparseCategoricalCrossentropy(from_logits=True, ignore_class=2),
        class_ids,
        (6, 5, 4),
    ),
    "huber": (HUBER, reals, (6, 4)),
    "dice": (DICE, bits_and_probabilities, (6, 4, 5)),
    "dice-of-all": (LOSSES.Dice(), bits_and_probabilities, (6, 4, 5)),
    "tversky": (LOSSES.Tversky(axis=(1, 2)), bits_and_probabilities, (6, 4, 5)),
    "focal": (FOCAL, one_hot_and_probabilities, (6, 4)),
    "binary-focal": (LOSSES.BinaryFocalCrossentropy(), bits_and_probabilities, (6, 4)),
    "log-cosh": (LOG_COSH, reals, (6, 4)),
    "msle": (LOSSES.MeanSquaredLogarithmicError(), bits_and_probabilities, (6, 4)),
    "hinge": (LOSSES.Hinge(), bits, (6, 4)),
    "user": (RelativeError(offset=0.5), reals, (6, 4)),
}


@pytest.mark.parametrize("name", RAW_LOSSES)
def test_the_raw_loss_is_the_one_that_keras_reports(name):
    loss, draw, shape = RAW_LOSSES[name]
    targets, predictions = draw(np.random.default_rng(4), shape)
    weighting = weighting_of(loss, "float32")
    combined = loss_of(weighting, targets, predictions.astype("float32"))
    # Before training starts σ is 1, so its term is 0.
    np.testing.assert_allclose(
        combined / weighting.task_weights()["task"],
        loss(tf.constant(targets), tf.constant(predictions)),
        rtol=1e-5,
    )


def test_another_axis_of_a_sparse_cross_entropy_is_refused():
    # On TensorFlow, the sparse cross-entropy of Keras is over the last axis alone.
    loss = LOSSES.SparseCategoricalCrossentropy(from_logits=True, axis=1)
    with pytest.raises(ValueError, match=r"axis"):
        loss_of(weighting_of(loss), *class_ids(np.random.default_rng(4), (6, 4, 4)))


@pytest.mark.parametrize(
    ("loss", "targets", "predictions"),
    [
        (LOSSES.Circle(), (6,), (6, 4)),
        (LOSSES.CTC(), (6, 2), (6, 5, 4)),
    ],
)
def test_targets_of_a_keras_loss_may_have_another_shape(loss, targets, predictions):
    rng = np.random.default_rng(4)
    ids, outputs = rng.integers(1, 4, targets), rng.normal(size=predictions)
    weighting = weighting_of(loss, "float32")
    combined = loss_of(weighting, ids, outputs.astype("float32"))
    np.testing.assert_allclose(combined, loss(tf.constant(ids), tf.constant(outputs)), rtol=1e-5)


CONFIGS = {
    "loss": lambda: keras.losses.serialize(FOCAL),
    # The form in the documentation of `keras.losses.get`.
    "loss-without-module": lambda: {
        "class_name": "CategoricalFocalCrossentropy",
        "config": {"alpha": 0.4, "gamma": 1.5},
    },
    "likelihood": lambda: keras.saving.serialize_keras_object(Gibbs(FOCAL)),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_becomes_its_likelihood(name):
    targets, predictions = CASES["gibbs-focal"].batch()
    np.testing.assert_allclose(
        loss_of(weighting_of(CONFIGS[name]()), targets, predictions),
        focal(targets, predictions, 1.0).mean(),
        rtol=1e-9,
    )


def test_a_config_of_a_cross_entropy_keeps_its_logits():
    config = {"class_name": "CategoricalCrossentropy", "config": {"from_logits": True}}
    assert keras.losses.get(config).from_logits
    likelihood = likelihoods.get(config)
    assert type(likelihood) is Categorical
    assert (likelihood.sparse, likelihood.approximate) == (False, False)


def test_a_likelihood_is_taken_as_it_is():
    likelihood = Laplace(initial_sigma=2.0)
    assert likelihoods.get(likelihood) is likelihood


# --- Saving ---------------------------------------------------------------------------------------

SAVED = {
    "gaussian": (lambda: Gaussian(initial_sigma=2, missing=NAN), reals, (5, 3)),
    "gaussian-channels": (
        lambda: Gaussian(per_channel=True, initial_sigma=np.array([1.0, 2.0, 3.0])),
        reals,
        (5, 3),
    ),
    "laplace": (lambda: Laplace(initial_sigma=np.float32(0.5), missing=-1), reals, (5, 3)),
    "categorical": (lambda: Categorical(missing=1, initial_sigma=2), class_ids, (5, 3)),
    "categorical-one-hot": (
        lambda: Categorical(sparse=False, from_logits=False, approximate=True),
        one_hot_and_probabilities,
        (5, 3),
    ),
    "bernoulli": (lambda: Bernoulli(from_logits=False, approximate=True), bits, (5, 3)),
    "huber": (lambda: Gibbs(HUBER, initial_sigma=2.0), reals, (5, 3)),
    "name": (lambda: Gibbs("log_cosh"), reals, (5, 3)),
    "stock-function": (lambda: Gibbs(keras.losses.huber), reals, (5, 3)),
    "dice": (lambda: Gibbs(DICE), bits_and_probabilities, (3, 4, 5)),
    "focal": (lambda: Gibbs(FOCAL), one_hot_and_probabilities, (5, 3)),
    "tversky": (
        lambda: Gibbs(LOSSES.Tversky(alpha=0.3, beta=0.6, axis=(1, 2))),
        bits_and_probabilities,
        (3, 4, 5),
    ),
    "cosine-axis": (lambda: Gibbs(LOSSES.CosineSimilarity(axis=1)), reals, (5, 3, 3)),
    "cross-entropy-axis": (
        lambda: likelihoods.get(LOSSES.CategoricalCrossentropy(from_logits=True, axis=1)),
        one_hot,
        (5, 3, 3),
    ),
    "user-loss": (lambda: Gibbs(RelativeError(offset=0.3), missing=NAN), reals, (5, 3)),
    "user-stock-loss": (lambda: Gibbs(CoarseHuber()), reals, (5, 3)),
    "user-function": (lambda: Gibbs(cubic_error), reals, (5, 3)),
    "user-quartic": (lambda: Quartic(initial_sigma=0.3), reals, (5, 3)),
    "user-student": (lambda: Student(degrees_of_freedom=7, missing=NAN), reals, (5, 3)),
}


def restored_from_config(likelihood):
    return type(likelihood).from_config(likelihood.get_config())


def restored_from_json(likelihood):
    written = json.dumps(keras.saving.serialize_keras_object(likelihood))
    return keras.saving.deserialize_keras_object(json.loads(written), safe_mode=True)


@pytest.mark.parametrize("restored", [restored_from_config, restored_from_json])
@pytest.mark.parametrize("name", SAVED)
def test_a_likelihood_survives_saving(name, restored):
    make, draw, shape = SAVED[name]
    likelihood = make()
    again = restored(likelihood)
    assert type(again) is type(likelihood)
    assert json.dumps(again.get_config()) == json.dumps(likelihood.get_config())
    batch = draw(np.random.default_rng(5), shape)
    assert loss_of(weighting_of(again), *batch) == loss_of(weighting_of(likelihood), *batch)


# Arguments of every likelihood, and of those of classes, that differ from the defaults.
ARGUMENTS = {
    "initial_sigma": 3.0,
    "min_sigma": 0.5,
    "trainable": False,
    "target": 1.0,
    "missing": 9.0,
    "per_channel": True,
    "channels": ["a", "b"],
}
REAL_ARGUMENTS = ARGUMENTS | {"heteroscedastic": True, "beta": 0.25}
CLASS_ARGUMENTS = ARGUMENTS | {"from_logits": False, "approximate": True}


@pytest.mark.parametrize(
    ("likelihood", "changed"),
    [
        (Gaussian(), REAL_ARGUMENTS | {"initial_sigma": [1.0, 2.0]}),
        (Laplace(), REAL_ARGUMENTS),
        (Quantile(), REAL_ARGUMENTS | {"level": 0.1}),
        (StudentT(), REAL_ARGUMENTS | {"df": 7.0}),
        (Poisson(), REAL_ARGUMENTS),
        (NegativeBinomial(), REAL_ARGUMENTS),
        (Ordinal(1, 5), REAL_ARGUMENTS | {"lowest": 0, "highest": 9}),
        (Categorical(), CLASS_ARGUMENTS | {"sparse": False, "class_weight": {0: 2.0}}),
        (Bernoulli(), CLASS_ARGUMENTS | {"pos_weight": [1.0, 2.0]}),
    ],
)
def test_a_config_holds_every_argument(likelihood, changed):
    config = likelihood.get_config()
    assert config.keys() == changed.keys()
    assert all(config[argument] != value for argument, value in changed.items())
    assert type(likelihood).from_config(changed).get_config() == changed


# --- Bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [Gaussian, Laplace, Categorical, Bernoulli, Quartic])
@pytest.mark.parametrize("sigma", [0, -1.0, NAN, float("inf"), "large", {}, 1j])
def test_sigma_must_be_positive_and_finite(make, sigma):
    with pytest.raises(ValueError, match=r"must be positive and finite.*Received: initial_sigma="):
        make(initial_sigma=sigma)


@pytest.mark.parametrize("sigmas", [[1.0, 0.0], [1.0, NAN], [-1.0], [1.0, [2.0, 3.0]]])
def test_sigma_of_each_channel_must_be_positive_and_finite(sigmas):
    with pytest.raises(ValueError, match=r"must be positive and finite.*Received: initial_sigma="):
        Gaussian(per_channel=True, initial_sigma=sigmas)


@pytest.mark.parametrize("make", [Gaussian, Laplace, Categorical, Bernoulli])
def test_several_sigmas_need_several_channels(make):
    with pytest.raises(ValueError, match=r"one number.*per_channel.*Received.*\[1.0, 2.0\]"):
        make(initial_sigma=[1.0, 2.0])


def test_number_of_sigmas_must_be_that_of_channels():
    weighting = UncertaintyWeighting(
        {"position": Gaussian(per_channel=True, initial_sigma=[1.0, 2.0])}
    )
    with pytest.raises(ValueError, match=r"'position'.*`initial_sigma`.* 3 .*Received: .*2\.0"):
        weighting.build((None, 3))


@pytest.mark.parametrize("shape", [(None, None), (None,), (4,)])
def test_channels_need_an_axis_of_known_size(shape):
    # The only axis of a vector of predictions is the batch.
    weighting = UncertaintyWeighting({"position": Gaussian(per_channel=True)})
    with pytest.raises(ValueError, match=r"'position'.*per_channel.*Received"):
        weighting.build(shape)


@pytest.mark.parametrize("make", [Gaussian, Categorical])
@pytest.mark.parametrize("missing", ["none", [1, 2], 1j])
def test_missing_must_be_a_number(make, missing):
    with pytest.raises(ValueError, match=r"`missing` must be the number.*Received: missing="):
        make(missing=missing)


@pytest.mark.parametrize("make", [Categorical, Bernoulli])
def test_the_exact_form_needs_logits(make):
    with pytest.raises(
        ValueError, match=r"expects logits.*Received: from_logits=False.*approximat"
    ):
        make(from_logits=False)


@pytest.mark.parametrize(
    "identifier",
    [
        *(None, 3, "no_such_loss", [], {}, {"class_name": "NoSuchLoss", "config": {}}),
        *(Gaussian, {"loss": "mse"}),
    ],
    ids=repr,
)
def test_other_objects_are_no_likelihoods(identifier):
    with pytest.raises(ValueError, match=r"'depth'.*Expected a likelihood.*Received: "):
        UncertaintyWeighting({"depth": identifier})


@pytest.mark.parametrize("loss", [None, 3, "no_such_loss", Gaussian()])
def test_gibbs_needs_a_loss(loss):
    with pytest.raises(ValueError, match=r"Gibbs expects a Keras loss.*Received: loss="):
        Gibbs(loss)


SHAPE_ERRORS = {
    "regression-broadcast": (Gaussian(), (4, 1), (4, 3), "Reshape"),
    "regression-broadcast-back": (Gaussian(), (4, 3), (4, 1), "Reshape"),
    "regression-vector": (Laplace(), (4, 3), (4,), "Reshape"),
    "regression-square": (Gaussian(), (3, 3), (3,), "Reshape"),
    "image-without-channels": (Gaussian(), (4, 5, 5, 3), (4, 5, 5), "Reshape"),
    "batch": (Gaussian(), (4,), (1,), "Reshape"),
    "binary": (Bernoulli(), (4, 3), (4, 1), "Reshape"),
    "gibbs": (Gibbs("huber"), (4, 3), (4,), "Reshape"),
    "ids-for-one-hot": (Categorical(sparse=False), (4, 3), (4,), "sparse=True"),
    "id-column-for-one-hot": (Categorical(sparse=False), (4, 3), (4, 1), "sparse=True"),
    "one-hot-for-ids": (Categorical(), (4, 3), (4, 3), "sparse=False"),
    "one-hot-pixels-for-ids": (Categorical(), (4, 5, 5, 3), (4, 5, 5, 3), "sparse=False"),
    "pixels-for-a-class": (Categorical(), (4, 3), (4, 5), "sparse=False"),
}


@pytest.mark.parametrize(
    ("name", "batch_size"),
    [
        *((name, "known") for name in SHAPE_ERRORS),
        *((name, None) for name in SHAPE_ERRORS if name != "batch"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(name, batch_size):
    likelihood, *shapes, advice = SHAPE_ERRORS[name]
    if batch_size is None:
        shapes = [(None, *shape[1:]) for shape in shapes]
        predictions, targets = (keras.Input(batch_shape=shape) for shape in shapes)
    else:
        predictions, targets = (np.ones(shape, "float32") for shape in shapes)
    received = "predictions of shape {}. Received: targets of shape {}. ".format(*shapes)
    message = rf"(?s)Task 'depth': \w* expects .*{re.escape(received)}.*{advice}"
    with pytest.raises(ValueError, match=message):
        UncertaintyWeighting({"depth": likelihood})(predictions, targets)


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("sizes", [(1, 3), (3, 1)])
def test_shapes_that_turn_out_not_to_fit_are_refused(sizes, known):
    # A generator may not know the shapes of its batches.
    predictions, targets = (None, sizes[0] if known else None), (None, None)
    weighting = weighting_of(Gaussian())
    weighting.build((None, 1))
    signature = [tf.TensorSpec(shape, "float64") for shape in (predictions, targets)]
    function = functools.partial(weighting.combined_loss, training=False)
    loss = tf.function(function, input_signature=signature)
    batch = [np.ones((4, size)) for size in sizes]
    with pytest.raises((ValueError, tf.errors.InvalidArgumentError)):
        loss(*batch)


@pytest.mark.parametrize("approximate", [False, True])
def test_more_class_ids_than_logits_are_refused(approximate):
    likelihood = Categorical(approximate=approximate)
    signature = [tf.TensorSpec((None,), "int32"), tf.TensorSpec((None, 3))]
    loss = tf.function(likelihood.loss, input_signature=signature)
    with pytest.raises(tf.errors.InvalidArgumentError):
        loss(np.zeros(4, "int32"), np.zeros((1, 3), "float32"))


@pytest.mark.parametrize("shape", [(4, 1), (4,), (4, 5, 1)])
@pytest.mark.parametrize("sparse", [True, False])
def test_one_output_channel_is_not_classes(shape, sparse):
    weighting = UncertaintyWeighting({"kind": Categorical(sparse=sparse)})
    with pytest.raises(ValueError, match=r"'kind'.*2 classes.*Received.*\(4.*Bernoulli"):
        weighting.build(shape)
    with pytest.raises(ValueError, match=r"(?s)'kind'.*2 classes.*Received.*Bernoulli"):
        weighting.target_inputs(keras.Input(shape[1:]))


@pytest.mark.parametrize("make", [Gaussian, Laplace, Bernoulli])
@pytest.mark.parametrize("rank", [0, 1, 2])
@pytest.mark.parametrize("longer", ["targets", "predictions"])
def test_a_trailing_axis_of_one_is_aligned(make, rank, longer):
    shape = (4, 3, 2)[: rank + 1]
    rng = np.random.default_rng(6)
    targets, predictions = rng.integers(2, size=shape).astype("float64"), rng.normal(size=shape)
    expected = loss_of(weighting_of(make()), targets, predictions)
    if longer == "targets":
        targets = targets[..., None]
    else:
        predictions = predictions[..., None]
    loss = loss_of(weighting_of(make()), targets, predictions)
    np.testing.assert_allclose(loss, expected, rtol=1e-12)


def test_a_column_of_class_ids_is_aligned():
    ids, logits = CASES["categorical-tokens"].batch()
    loss = loss_of(weighting_of(Categorical()), ids[..., None], logits)
    np.testing.assert_allclose(loss, softmax_of_ids(ids, logits).mean(), rtol=1e-9)


def test_the_exact_form_trains_an_overridden_loss():
    class Doubled(Categorical):
        def loss(self, targets, predictions):
            return 2 * super().loss(targets, predictions)

    ids, logits = CASES["categorical"].batch()
    expected = 2 * softmax_of_ids(ids, logits / 1.5).mean()
    loss = loss_of(weighting_of(Doubled(initial_sigma=np.sqrt(1.5))), ids, logits)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
