"""Likelihoods of label tables: quantiles, corrupt labels, counts and ratings."""

import keras
import numpy as np
import pytest
from keras import ops
from scipy import optimize, special, stats

from keras_uncertainty_mtl import (
    Categorical,
    Gaussian,
    Laplace,
    MultiTaskModel,
    NegativeBinomial,
    Ordinal,
    Poisson,
    Quantile,
    StudentT,
    UncertaintyWeighting,
)

SIZE = 4000


def f_and_uniform():
    rng = np.random.default_rng(7)
    return rng.normal(1, 0.7, (SIZE, 1)), rng.random((SIZE, 1))


def draw_quantile(sigma, level=0.2):
    f, u = f_and_uniform()
    scale = sigma * np.sqrt(level * (1 - level)) / np.sqrt(level**2 + (1 - level) ** 2)
    return f, stats.laplace_asymmetric.ppf(u, np.sqrt(level / (1 - level)), f, scale)


def draw_student(sigma):
    f, u = f_and_uniform()
    return f, stats.t.ppf(u, 4, f, sigma / np.sqrt(2))


def draw_poisson(sigma):
    # A negative binomial distribution of this mean and `variance = σ² · mean`.
    f, u = f_and_uniform()
    mean = np.exp(f + 2)
    return f + 2, stats.nbinom.ppf(u, mean / (sigma**2 - 1), 1 / sigma**2)


def draw_negative_binomial(sigma):
    f, u = f_and_uniform()
    return f, stats.nbinom.ppf(u, sigma**-2, 1 / (1 + sigma**2 * np.exp(f)))


def draw_ratings(sigma):
    f, u = f_and_uniform()
    latent = stats.logistic.ppf(u, 2 * f + 1, sigma * np.sqrt(3) / np.pi)
    return 2 * f + 1, np.clip(np.round(latent), 1, 5)


def nll_quantile(y, f, s, level=0.2):
    error = y - f
    pinball = np.where(error > 0, level * error, (level - 1) * error)
    unit = np.exp(s / 2) * level * (1 - level) / np.sqrt(level**2 + (1 - level) ** 2)
    return pinball / unit + np.log(unit)


def nll_student(y, f, s):
    return -stats.t.logpdf(y, 4, f, np.exp(s / 2) / np.sqrt(2))


def nll_poisson(y, f, s):
    return special.kl_div(y, np.exp(f)) * np.exp(-s) + s / 2


def nll_negative_binomial(y, f, s):
    return -stats.nbinom.logpmf(y, np.exp(-s), 1 / (1 + np.exp(s + f)))


def nll_ratings(y, f, s):
    noise = stats.logistic(f, np.exp(s / 2) * np.sqrt(3) / np.pi)
    below = np.where(y == 1, 0, noise.cdf(y - 0.5))
    return -np.log(np.where(y == 5, 1, noise.cdf(y + 0.5)) - below)


# The likelihood, the σ of the data, their draw, and the negative log-likelihood by SciPy.
KINDS = {
    "quantile": (lambda **k: Quantile(0.2, **k), 0.6, draw_quantile, nll_quantile),
    "student-t": (StudentT, 0.6, draw_student, nll_student),
    "poisson": (Poisson, 1.8, draw_poisson, nll_poisson),
    "negative-binomial": (NegativeBinomial, 0.8, draw_negative_binomial, nll_negative_binomial),
    "ordinal": (lambda **k: Ordinal(1, 5, **k), 0.7, draw_ratings, nll_ratings),
}


def model_of(tasks):
    """A network that hands on its inputs, with one trainable shift."""
    inputs = keras.Input((1,))
    shift = keras.layers.Dense(1, kernel_initializer="zeros")(inputs)
    outputs = dict.fromkeys(tasks, keras.layers.Add()([inputs, shift]))
    return MultiTaskModel(inputs, outputs, tasks)


def best_log_variance(nll, y, f):
    # The numbers that the model sees, in double precision.
    y, f = (each.astype("float32").astype("float64") for each in (y, f))
    found = optimize.minimize_scalar(lambda s: nll(y, f, s).mean(), bounds=(-6, 6))
    return found.x


@pytest.mark.parametrize("kind", KINDS)
class TestSigma:
    def test_calibration_gives_the_maximum_of_the_likelihood_near_that_of_the_draw(self, kind):
        make, sigma, draw, nll = KINDS[kind]
        f, y = draw(sigma)
        model = model_of({"task": make()})
        found = model.calibrate(f, y, verbose=0)["task"]
        best = np.exp(best_log_variance(nll, y, f) / 2)
        assert found == pytest.approx(best, rel=1e-4)
        # The deviance of a Poisson distribution is only about its variance over its mean.
        assert found == pytest.approx(sigma, rel=0.1 if kind == "poisson" else 0.04)

    def test_training_ends_there_too(self, kind):
        make, sigma, draw, nll = KINDS[kind]
        f, y = draw(sigma)
        model = model_of({"task": make()})
        model.layers[1].trainable = False
        model.compile(keras.optimizers.Adam(1e-2))
        model.fit(f, y, batch_size=200, epochs=12, verbose=0)
        best = np.exp(best_log_variance(nll, y, f) / 2)
        assert model.weighting.sigmas()["task"] == pytest.approx(best, rel=0.05)

    def test_missing_labels_and_those_of_no_weight_change_nothing(self, kind):
        make, sigma, draw, _ = KINDS[kind]
        f, y = (each[:64] for each in draw(sigma))
        holed, weight = y.copy(), np.ones(len(y))
        holed[::3], weight[1::3] = -9, 0
        models = [model_of({"task": make(missing=missing)}) for missing in (-9, None)]
        shown = np.arange(len(y)) % 3 == 2
        for model in models:
            model.compile(keras.optimizers.SGD(0.1), metrics=["mae"])
        with_all = models[0].fit(f, holed, batch_size=64, sample_weight=weight, verbose=0).history
        with_shown = models[1].fit(f[shown], y[shown], batch_size=64, verbose=0).history
        for name, values in with_all.items():
            assert values == pytest.approx(with_shown[name], rel=1e-4)
        for one, other in zip(*(model.get_weights() for model in models), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)

    def test_a_saved_model_goes_on_as_it_was(self, kind, tmp_path):
        make, sigma, draw, _ = KINDS[kind]
        f, y = (each[:64] for each in draw(sigma))
        model = model_of({"task": make(initial_sigma=2.0)})
        model.compile(keras.optimizers.Adam(1e-2))
        model.fit(f, y, verbose=0)
        model.save(tmp_path / "model.keras")
        loaded = keras.saving.load_model(tmp_path / "model.keras")
        one, other = (each.fit(f, y, shuffle=False, verbose=0).history for each in (model, loaded))
        for name, values in one.items():
            assert values == pytest.approx(other[name], rel=1e-6)

    def test_options_on_sigma_hold(self, kind):
        make, sigma, draw, _ = KINDS[kind]
        f, y = draw(sigma)
        tasks = {
            "held": make(trainable=False, initial_sigma=3.0),
            "floor": make(min_sigma=2.5),
        }
        model = model_of(tasks)
        model.compile(keras.optimizers.Adam(1e-2))
        model.fit(f, dict.fromkeys(tasks, y), batch_size=100, epochs=3, verbose=0)
        assert model.weighting.sigmas() == pytest.approx({"held": 3.0, "floor": 2.5})

    def test_predictions_of_half_precision_have_losses_of_single(self, kind):
        make, sigma, draw, nll = KINDS[kind]
        f, y = (each[:256] for each in draw(sigma))
        half = f.astype("float16")
        losses = []
        for start in (1.5, 0.8):
            layer = UncertaintyWeighting({"task": make(initial_sigma=start)})
            layer.build(f.shape)
            losses.append(float(layer.combined_loss(half, y, training=False)))
        expected = [nll(y, half.astype("float64"), 2 * np.log(s)).mean() for s in (1.5, 0.8)]
        assert losses[0] - losses[1] == pytest.approx(expected[0] - expected[1], rel=1e-3)

    def test_channels_have_a_sigma_each(self, kind):
        make, sigma, draw, nll = KINDS[kind]
        pairs = [draw(sigma), draw(1.3 * sigma)]
        f, y = (np.concatenate(each, axis=1)[:1000] for each in zip(*pairs, strict=True))
        inputs = keras.Input((2,))
        outputs = {"task": keras.layers.Rescaling(1.0)(inputs)}
        model = MultiTaskModel(inputs, outputs, {"task": make(channels=["a", "b"])})
        found = model.calibrate(f, y, verbose=0)["task"]
        for channel, name in enumerate(("a", "b")):
            best = best_log_variance(nll, y[:, channel], f[:, channel])
            assert found[name] == pytest.approx(np.exp(best / 2), rel=1e-3)


# --- Distributions --------------------------------------------------------------------------------


def predicted(likelihood, f, sigma):
    model = model_of({"task": likelihood})
    model.weighting.set_log_variances({"task": 2 * np.log(sigma)})
    outputs = model.predictive_model().predict(f, verbose=0)
    return {name.removeprefix("task_"): value for name, value in outputs.items()}


def test_predicted_parameters_are_those_of_scipy():
    f = np.linspace(-1, 2, 7, dtype="float32")[:, None]
    found = predicted(Quantile(0.2), f, 0.7)
    kappa, scale = np.sqrt(0.2 / 0.8), found["scale"] / np.sqrt(0.2 * 0.8)
    noise = stats.laplace_asymmetric(kappa, found["quantile"], scale)
    np.testing.assert_allclose(noise.cdf(f), 0.2, rtol=1e-5)
    np.testing.assert_allclose(noise.std(), 0.7, rtol=1e-5)

    found = predicted(StudentT(5), f, 0.7)
    noise = stats.t(5, found["location"], found["scale"])
    np.testing.assert_allclose(noise.std(), 0.7, rtol=1e-5)
    np.testing.assert_allclose(noise.mean(), f, rtol=1e-5)

    found = predicted(Poisson(), f, 1.0)
    counts = stats.poisson(np.exp(f))
    np.testing.assert_allclose(found["mean"], counts.mean(), rtol=1e-5)
    np.testing.assert_allclose(found["standard_deviation"], counts.std(), rtol=1e-5)

    found = predicted(NegativeBinomial(), f, 0.7)
    counts = stats.nbinom(0.7**-2, 1 / (1 + 0.49 * np.exp(f)))
    np.testing.assert_allclose(found["mean"], counts.mean(), rtol=1e-5)
    np.testing.assert_allclose(found["standard_deviation"], counts.std(), rtol=1e-5)

    found = predicted(Ordinal(1, 5), f, 0.7)
    noise = stats.logistic(found["location"], found["scale"])
    np.testing.assert_allclose(noise.std(), 0.7, rtol=1e-5)
    ends = noise.cdf(np.array([-np.inf, 1.5, 2.5, 3.5, 4.5, np.inf]))
    assert found["probabilities"].shape == (7, 1, 5)
    np.testing.assert_allclose(found["probabilities"][:, 0], np.diff(ends), rtol=1e-4, atol=1e-7)


def test_ratings_of_three_are_those_of_statsmodels():
    from statsmodels.miscmodels.ordinal_model import OrderedModel

    rng = np.random.default_rng(0)
    x = rng.normal(size=(1500, 1))
    y = np.clip(np.round(2 + 1.2 * x + rng.logistic(scale=0.5, size=x.shape)), 1, 3)
    fit = OrderedModel(y[:, 0].astype("int64"), x, distr="logit").fit(disp=False)
    # Two thresholds of unit noise are a shift and a unit of ours, in which they are 1.5 and 2.5.
    slope = fit.params[0]
    low, high = fit.model.transform_threshold_params(fit.params[1:])[1:3]
    scale = 1 / (high - low)
    f = 1.5 + (slope * x - low) * scale
    model = model_of({"stars": Ordinal(1, 3)})
    assert model.calibrate(f, y, verbose=0)["stars"] == pytest.approx(
        scale * np.pi / np.sqrt(3), rel=1e-3
    )
    model.compile("sgd")
    loss = model.evaluate(f, y, batch_size=1500, return_dict=True, verbose=0)["loss"]
    assert loss == pytest.approx(-fit.llf / len(y), rel=1e-4)


# --- Corrupt labels -------------------------------------------------------------------------------


def fitted(likelihood, y, x):
    inputs = keras.Input((1,))
    model = MultiTaskModel(inputs, {"task": keras.layers.Dense(1)(inputs)}, {"task": likelihood})
    model.compile(keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(0.03, 800)))
    model.fit(x, y, batch_size=100, epochs=40, verbose=0)
    kernel, bias = model.layers[1].get_weights()
    return float(kernel[0, 0]), float(bias[0]), model.weighting.sigmas()["task"]


def test_corrupt_labels_harm_student_t_alone_by_little():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2000, 1))
    y = 2 * x + 1 + 0.3 * rng.normal(size=x.shape)
    y[rng.random(x.shape) < 0.05] = 1e4
    slope, shift, sigma = fitted(StudentT(), y, x)
    assert (slope, shift) == pytest.approx((2, 1), abs=0.05)
    assert 0.25 < sigma < 0.6
    _, shift, sigma = fitted(Gaussian(), y, x)
    assert sigma > 500


def test_one_corrupt_label_moves_student_t_by_a_bounded_part():
    zeros = np.zeros((32, 1), "float32")
    rng = np.random.default_rng(0)
    sigmas = []
    for corrupt in (30.0, 1e4, 1e12):
        layer = UncertaintyWeighting({"task": StudentT()})
        for _ in range(60):
            layer(zeros, rng.normal(size=zeros.shape).astype("float32"), training=True)
        before = layer.sigmas()["task"]
        errors = rng.normal(size=zeros.shape).astype("float32")
        errors[0] = corrupt
        layer(zeros, errors, training=True)
        sigmas.append(layer.sigmas()["task"] / before)
    assert np.all(np.array(sigmas) < 1.05)


@pytest.mark.parametrize("unit", [1e-3, 1.0, 1e4])
def test_student_t_finds_any_unit_within_200_batches(unit):
    f, y = draw_student(0.6)
    layer = UncertaintyWeighting({"task": StudentT()})
    for at in range(0, SIZE, 20):
        part = slice(at, at + 20)
        predictions, targets = (unit * each[part].astype("float32") for each in (f, y))
        layer(predictions, targets, training=True)
    best = np.exp(best_log_variance(nll_student, y, f) / 2)
    assert layer.sigmas()["task"] / unit == pytest.approx(best, rel=0.1)


# --- The rest of the package ----------------------------------------------------------------------


def test_metrics_see_rates_and_ratings_in_range():
    f = np.array([[-1.0], [0.0], [3.0], [9.0]])
    y = np.array([[0.0], [2.0], [4.0], [5.0]])
    tasks = {"visits": Poisson(), "reads": NegativeBinomial(), "stars": Ordinal(0, 5)}
    model = model_of(tasks)
    model.compile("sgd", metrics={task: ["mae"] for task in [*tasks]})
    logs = model.evaluate(f, dict.fromkeys(tasks, y), return_dict=True, verbose=0)
    rates = np.mean(np.abs(np.exp(f) - y))
    assert logs["visits_mae"] == pytest.approx(rates, rel=1e-5)
    assert logs["reads_mae"] == pytest.approx(rates, rel=1e-5)
    assert logs["stars_mae"] == pytest.approx(np.mean(np.abs(np.clip(f, 0, 5) - y)), rel=1e-5)


def test_tasks_of_one_likelihood_are_computed_together():
    one = {"initial_sigma": 2.0}
    tasks = {
        **{f"{letter}_stars": Ordinal(1, 5, **one) for letter in "ab"},
        **{
            f"{letter}_level": Quantile(level)
            for letter, level in zip("cd", (0.1, 0.9), strict=True)
        },
        **{f"{letter}_count": Poisson() for letter in "ef"},
    }
    layer = UncertaintyWeighting(tasks)
    layer.build(dict.fromkeys(tasks, (None, 1)))
    groups = sorted(sorted(group.tasks) for group in layer.groups)
    assert groups == [["a_stars", "b_stars"], ["c_level"], ["d_level"], ["e_count", "f_count"]]


@pytest.mark.parametrize("distance", [-8, -2, -0.1, 0, 0.5, 8])
@pytest.mark.parametrize("count", [0, 1, 100, 1e7])
def test_counts_of_any_size_leave_the_dispersion_its_digits(count, distance):
    f = np.float32(np.log(max(count, 1)) + distance)

    def difference(nll):
        return [nll(s) - nll(0.0) for s in (-12.0, -2.0, 6.0)]

    def found(s):
        tensors = (ops.convert_to_tensor(np.array([[x]], "float32")) for x in (count, f, s))
        return float(NegativeBinomial().negative_log_likelihood(*tensors)[0, 0])

    expected = difference(lambda s: nll_negative_binomial(count, np.float64(f), s))
    np.testing.assert_allclose(difference(found), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("sigma", [0.1, 0.5, 2.0, 1e2, 1e5, 1e10])
def test_a_rating_leaves_a_sigma_of_any_size_its_digits(value_and_gradients, sigma):
    f = np.linspace(1, 5, 9, dtype="float32")[:, None]
    s = keras.Variable(2 * np.log(sigma), dtype="float32")

    def found():
        y, predictions = ops.full_like(f, 3.0), ops.convert_to_tensor(f)
        return ops.sum(Ordinal(1, 5).negative_log_likelihood(y, predictions, s.value))

    def expected(s):
        scale = np.exp(s / 2) * np.sqrt(3) / np.pi
        low, high = (2.5 - f.astype("float64")) / scale, (3.5 - f.astype("float64")) / scale
        inside = np.log(-np.expm1(-1 / scale))
        return -np.sum(special.log_expit(high) + special.log_expit(-low) + inside)

    loss, (gradient,) = value_and_gradients(found, [s])
    at = 2 * np.log(sigma)
    assert float(loss) == pytest.approx(expected(at), rel=1e-5)
    slope = (expected(at + 1e-4) - expected(at - 1e-4)) / 2e-4
    assert float(gradient) == pytest.approx(slope, rel=1e-4)


def test_large_counts_have_no_deviance_below_zero():
    y = np.random.default_rng(0).integers(1, 10**6, (256, 1)).astype("float32")
    losses = Poisson().loss(keras.ops.convert_to_tensor(y), keras.ops.log(y))
    assert np.all(keras.ops.convert_to_numpy(losses) >= 0)
    np.testing.assert_allclose(losses, 0, atol=1e-3)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: Quantile(0.0), r"`level` must be .*Received: level=0.0"),
        (lambda: Quantile([0.1, 0.9]), r"`level` must be .*Received: level=\[0.1"),
        (lambda: StudentT(2), r"`df` must be .*Received: df=2"),
        (lambda: Ordinal(5, 1), r"two whole numbers.*Received: lowest=5"),
        (lambda: Ordinal("1", 5), r"two whole numbers.*Received: lowest='1'"),
        (lambda: Gaussian(heteroscedastic=True, beta=2), r"`beta` must be .*Received: beta=2"),
    ],
)
def test_a_wrong_argument_is_refused(make, match):
    with pytest.raises(ValueError, match=match):
        make()


# --- β-NLL ----------------------------------------------------------------------------------------


def gradients(value_and_gradients, likelihood, f, y, weight=None):
    predictions = keras.Variable(f, dtype="float32")
    layer = UncertaintyWeighting({"task": likelihood})
    layer.build(f.shape)
    loss, (gradient,) = value_and_gradients(
        lambda: layer.combined_loss(predictions.value, y, weight, training=False), [predictions]
    )
    return loss, gradient


@pytest.mark.parametrize(("make", "power"), [(Gaussian, 1.0), (Laplace, 0.5), (StudentT, 1.0)])
@pytest.mark.parametrize("beta", [0.5, 1.0])
def test_beta_shares_out_the_gradient_of_the_estimates_alone(
    value_and_gradients, make, power, beta
):
    rng = np.random.default_rng(0)
    f, y = rng.normal(size=(12, 4)).astype("float32"), rng.normal(size=(12, 2)).astype("float32")
    weight = rng.exponential(size=12).astype("float32")
    y[3] = -9.0
    options = {"heteroscedastic": True, "initial_sigma": 1.3, "missing": -9.0}
    plain, balanced = (
        gradients(value_and_gradients, make(**options, beta=each), f, y, weight)
        for each in (0.0, beta)
    )
    assert balanced[0] == pytest.approx(plain[0], rel=1e-6)
    np.testing.assert_allclose(balanced[1][:, 2:], plain[1][:, 2:], rtol=1e-5, atol=1e-7)
    factors = np.exp(beta * power * f[:, 2:])
    weights = np.where(y == -9.0, 0, weight[:, None])
    factors /= np.sum(weights * factors) / np.sum(weights)
    np.testing.assert_allclose(balanced[1][:, :2], plain[1][:, :2] * factors, rtol=1e-4, atol=1e-7)


def test_with_beta_one_estimates_train_as_with_one_sigma(value_and_gradients):
    rng = np.random.default_rng(0)
    f, y = rng.normal(size=(12, 4)).astype("float32"), rng.normal(size=(12, 2)).astype("float32")
    own = Gaussian(heteroscedastic=True, beta=1.0)
    gradient = gradients(value_and_gradients, own, f, y)[1][:, :2]
    plain = gradients(value_and_gradients, Gaussian(), f[:, :2], y)[1]
    ratios = gradient / plain
    np.testing.assert_allclose(ratios, ratios.mean(), rtol=1e-5)


def test_groups_of_other_likelihoods_train_beside_them():
    f, y = draw_ratings(0.7)
    tasks = {"stars": Ordinal(1, 5), "value": Gaussian(), "class": Categorical()}
    inputs = keras.Input((1,))
    units = {"stars": 1, "value": 1, "class": 6}
    outputs = {task: keras.layers.Dense(units[task])(inputs) for task in tasks}
    model = MultiTaskModel(inputs, outputs, tasks)
    model.compile(keras.optimizers.Adam(0.02))
    history = model.fit(f, dict.fromkeys(tasks, y), batch_size=100, epochs=5, verbose=0).history
    assert history["loss"][-1] < history["loss"][0]
    assert model.evaluate(f, dict.fromkeys(tasks, y), return_dict=True, verbose=0)["stars_loss"] < 1
