"""Conformal intervals and sets, against the published formula in NumPy and against new targets."""

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy import special

from keras_uncertainty_mtl import (
    Bernoulli,
    Categorical,
    Gaussian,
    Gibbs,
    Laplace,
    Likelihood,
    MultiTaskModel,
    Poisson,
)

NAN = float("nan")
SAMPLES, LEVEL = 301, 0.9


@keras.saving.register_keras_serializable(package="test_conformal")
class Bound(Likelihood):
    """A user's likelihood with an interval that is open below, whose scores have any sign."""

    def loss(self, targets, predictions):
        return keras.ops.abs(targets - predictions)

    def nonconformity(self, targets, predictions, sigma):
        return targets - predictions

    def prediction_region(self, predictions, sigma, quantile):
        return {"upper": predictions + quantile}


def make_model(tasks, sizes, activations=()):
    """A model whose predictions are its inputs, or an activation of them."""
    inputs = {task: keras.Input(np.atleast_1d(sizes.get(task, 1)), name=task) for task in tasks}
    outputs = {
        task: keras.layers.Activation(dict(activations).get(task, "linear"))(x)
        for task, x in inputs.items()
    }
    return MultiTaskModel(inputs, outputs, tasks)


def predicted(model, x):
    return model.predictive_model().predict(x, batch_size=2000, verbose=0)


def quantile(scores, weights=None, level=LEVEL):
    """The smallest score with enough weight up to it, a new element as heavy as the heaviest."""
    scores = np.ravel(scores)
    weights = np.ones(scores.shape) if weights is None else np.ravel(weights)
    order = np.argsort(scores)
    enough = np.cumsum(weights[order]) >= level * (weights.sum() + weights.max()) - 1e-9
    return scores[order][enough][0] if enough.any() else np.inf


TASKS = {
    "mean": Gaussian(),
    "median": Laplace(missing=NAN),
    "channels": Gaussian(per_channel=True),
    "noisy": Laplace(heteroscedastic=True),
    "noisy_mean": Gaussian(heteroscedastic=True),
    "kind": Categorical(missing=-1),
    "columns": Categorical(per_channel=True),
    "kind_approximate": Categorical(approximate=True),
    "kind_of_probabilities": Categorical(from_logits=False, approximate=True),
    "flags": Bernoulli(),
    "flag_of_probabilities": Bernoulli(from_logits=False, approximate=True),
    "bound": Bound(),
}
SIZES = {"channels": 3, "noisy": 4, "noisy_mean": 2, "kind": 3, "columns": (2, 3), "flags": 2}
SIZES |= {"kind_approximate": 3, "kind_of_probabilities": 3}
ACTIVATIONS = {"kind_of_probabilities": "softmax", "flag_of_probabilities": "sigmoid"}


def data(samples=SAMPLES, seed=0):
    rng = np.random.default_rng(seed)
    shapes = {task: np.atleast_1d(SIZES.get(task, 1)) for task in TASKS}
    x = {task: rng.normal(size=(samples, *shapes[task])) for task in TASKS}
    kinds = {
        task: np.argmax(x[task] + rng.gumbel(size=x[task].shape), axis=-1)
        for task in ("kind", "columns", "kind_approximate", "kind_of_probabilities")
    }
    flags = {
        task: (x[task] + rng.logistic(size=x[task].shape) > 0).astype("float32")
        for task in ("flags", "flag_of_probabilities")
    }
    y = {
        "mean": 1e-3 * rng.normal(size=(samples, 1)),
        "median": 1e3 * rng.laplace(size=(samples, 1)),
        "channels": x["channels"] + rng.normal(size=(samples, 3)) * [0.1, 1, 10],
        "noisy": x["noisy"][:, :2] + rng.laplace(size=(samples, 2)),
        "noisy_mean": x["noisy_mean"][:, :1] + rng.normal(size=(samples, 1)),
        "bound": x["bound"] - 5 + rng.normal(size=(samples, 1)),
    }
    y["median"][::3] = NAN
    kinds["kind"][::4] = -1
    x, y = ({task: a[task].astype("float32") for task in a} for a in (x, y))
    return x, y | {task: kind.astype("int32") for task, kind in kinds.items()} | flags


def log_probabilities(task, x):
    logits = x[task].astype("float64")
    if "flag" in task:
        return special.log_expit(np.stack([-logits, logits], axis=-1))
    return special.log_softmax(logits, axis=-1)


def scores(task, x, y):
    """The score of each element in double precision, NaN where there is no label."""
    f = x[task].astype("float64")
    if "kind" in task or "flag" in task or task == "columns":
        labels = np.maximum(y[task], 0).astype(int)[..., None]
        log_p = np.take_along_axis(log_probabilities(task, x), labels, axis=-1)[..., 0]
        return np.where(y[task] < 0, NAN, -log_p)
    if task == "bound":
        return y[task] - f
    if task.startswith("noisy"):
        estimates, log_variances = np.split(f, 2, axis=-1)
        return np.abs(y[task] - estimates) * np.exp(-0.5 * log_variances)
    return np.abs(y[task] - f)


def expected_regions(task, x, q):
    f = x[task].astype("float64")
    if "kind" in task or "flag" in task or task == "columns":
        q = q[:, None] if task == "columns" else q
        return {"set": log_probabilities(task, x) >= -q}
    if task == "bound":
        return {"upper": f + q}
    if task.startswith("noisy"):
        f, log_variances = np.split(f, 2, axis=-1)
        q = q * np.exp(0.5 * log_variances)
    return {"lower": f - q, "upper": f + q}


def assert_regions(answers, x, y, weights=None):
    for task in TASKS:
        all_scores, is_label = scores(task, x, y), ~np.isnan(scores(task, x, y))
        each = np.ones(len(all_scores)) if weights is None else weights[task]
        each = np.broadcast_to(each.reshape(-1, *[1] * (all_scores.ndim - 1)), all_scores.shape)
        if task in ("channels", "columns"):
            columns = range(all_scores.shape[-1])
            q = np.array([quantile(all_scores[:, c], each[:, c]) for c in columns])
        else:
            q = quantile(all_scores[is_label], each[is_label])
        for name, expected in expected_regions(task, x, q).items():
            answer = answers[f"{task}_{name}"]
            assert answer.shape == expected.shape, task
            if name == "set":
                # The probability of a class at the threshold is rounded.
                assert np.mean(answer != expected) < 2 / answer.size, task
            else:
                np.testing.assert_allclose(answer, expected, 2e-5, 2e-5 * np.max(np.abs(q)), task)


@pytest.fixture(scope="module")
def model():
    return make_model(TASKS, SIZES, ACTIVATIONS)


def test_quantiles_are_those_of_the_published_formula(model):
    x, y = data()
    for source in (
        {"x": x, "y": y, "batch_size": SAMPLES},
        {"x": tf.data.Dataset.from_tensor_slices((x, y)).shuffle(SAMPLES).batch(64)},
    ):
        model.calibrate(**source, intervals=LEVEL, verbose=0)
        assert_regions(predicted(model, x), x, y)
        # Logits of the exact forms stay at the temperature from before in these sets.
        model.weighting.set_log_variances({"kind": 0.0, "columns": [0.0, 0.0], "flags": 0.0})
        model._calibration.log_temperatures.clear()
    # NumPy's own quantile of `⌈level · (n + 1)⌉ / n`.
    errors = np.abs(y["mean"] - x["mean"])
    share = np.ceil(LEVEL * (SAMPLES + 1)) / SAMPLES
    half = predicted(model, x)["mean_upper"] - x["mean"]
    expected = np.quantile(errors, share, method="inverted_cdf")
    np.testing.assert_allclose(half, np.full_like(half, expected), rtol=1e-4)


def test_weights_count_and_their_scale_does_not():
    x, y = data()
    weights = {
        task: np.random.default_rng(1).integers(0, 5, SAMPLES).astype("float32") for task in TASKS
    }
    for factor in (1.0, 0.25):
        model = make_model(TASKS, SIZES, ACTIVATIONS)
        scaled = {task: factor * weight for task, weight in weights.items()}
        model.calibrate(x, y, sample_weight=scaled, batch_size=100, intervals=LEVEL, verbose=0)
        assert_regions(predicted(model, x), x, y, weights)


@pytest.mark.parametrize("weight", [0.1, 0.3])
def test_millions_of_elements_of_one_weight_count_as_without_weights(weight):
    rng = np.random.default_rng(0)
    x = {"depth": rng.normal(size=(32, 256, 256, 1)).astype("float32")}
    y = {"depth": rng.normal(size=(32, 256, 256, 1)).astype("float32")}
    model = make_model({"depth": Gaussian(initial_sigma=1.0)}, {"depth": (256, 256, 1)})
    weights = np.full(32, weight, "float32")
    model.calibrate(x, y, sample_weight=weights, intervals=0.95, verbose=0)
    answers = model.predictive_model().predict({"depth": x["depth"][:1]}, verbose=0)
    widths = (answers["depth_upper"] - answers["depth_mean"]).mean()
    errors = np.sort(np.abs(y["depth"] - x["depth"]), axis=None)
    rank = int(np.ceil(0.95 * (errors.size + 1)))
    # Of ranks within 1e-5 of all.
    assert errors[rank - 60] <= widths <= errors[rank + 60]


def test_class_weights_do_not_count():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(200, 3)).astype("float32"), rng.integers(3, size=200)
    sets = []
    for class_weight in (None, {0: 9.0}):
        model = make_model({"a": Categorical(class_weight=class_weight)}, {"a": 3})
        model.calibrate({"a": x}, y, intervals=LEVEL, verbose=0)
        sets.append(predicted(model, {"a": x})["a_set"])
    np.testing.assert_array_equal(*sets)


def test_masked_steps_do_not_count():
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 4, size=(40, 5))
    inputs = keras.Input((5,), dtype="int32")
    outputs = keras.layers.Dense(1)(keras.layers.Embedding(4, 3, mask_zero=True)(inputs))
    model = MultiTaskModel(inputs, outputs, {"a": Gaussian()})
    y = np.where(tokens, rng.normal(size=(40, 5)), 1e6).astype("float32")[..., None]
    model.calibrate(tokens, y, intervals=LEVEL, verbose=0)
    answers = predicted(model, tokens)
    q = quantile(np.abs(y - answers["a_mean"])[tokens > 0])
    np.testing.assert_allclose(answers["a_upper"] - answers["a_mean"], q, rtol=1e-4)


@pytest.mark.parametrize("exponent", [-30, -3, 0, 3, 30])
def test_a_quantile_is_exact_at_any_scale_and_sign(exponent):
    rng = np.random.default_rng(0)
    errors = (10.0**exponent * rng.normal(size=(2500, 1))).astype("float32")
    for shift in (-3, 0, 3):
        shifted = (errors + np.float32(shift * 10.0**exponent)).astype("float32")
        model = make_model({"bound": Bound()}, {})
        x = np.zeros_like(errors)
        model.calibrate({"bound": x}, shifted, batch_size=1000, intervals=0.5, verbose=0)
        found = model._calibration.quantiles["bound"]
        assert np.float32(found) == np.sort(shifted, axis=None)[np.ceil(0.5 * 2501).astype(int) - 1]


class TestCoverage:
    """One draw of calibration data for each of many columns, and new targets of the same law."""

    COLUMNS, LABELS = 1500, 24

    def test_of_intervals_is_the_published_one(self):
        rng = np.random.default_rng(0)
        y = rng.standard_t(3, size=(self.LABELS + 400, self.COLUMNS)).astype("float32")
        x = np.zeros_like(y)
        model = make_model({"a": Gaussian(per_channel=True)}, {"a": self.COLUMNS})
        calibration = slice(self.LABELS)
        model.calibrate({"a": x[calibration]}, y[calibration], intervals=LEVEL, verbose=0)
        new = slice(self.LABELS, None)
        answers = predicted(model, {"a": x[new]})
        inside = (answers["a_lower"] <= y[new]) & (y[new] <= answers["a_upper"])
        # The standard error is 0.0014.
        assert np.mean(inside) == pytest.approx(np.ceil(LEVEL * 25) / 25, abs=0.006)

    @pytest.mark.parametrize("approximate", [False, True])
    def test_of_sets_is_the_published_one_though_the_temperature_moves(self, approximate):
        rng = np.random.default_rng(0)
        logits = rng.normal(size=(self.LABELS + 400, self.COLUMNS, 3)).astype("float32")
        y = np.argmax(logits + rng.gumbel(size=logits.shape), axis=-1)
        tasks = {"a": Categorical(per_channel=True, approximate=approximate)}
        model = make_model(tasks, {"a": (self.COLUMNS, 3)})
        calibration, new = slice(self.LABELS), slice(self.LABELS, None)
        model.calibrate({"a": 5 * logits[calibration]}, y[calibration], intervals=LEVEL, verbose=0)
        answers = predicted(model, {"a": 5 * logits[new]})
        assert np.std(answers["a_probabilities"] - special.softmax(5 * logits[new], axis=-1)) > 0.1
        inside = np.take_along_axis(answers["a_set"], y[new][..., None], axis=-1)
        assert np.mean(inside) == pytest.approx(np.ceil(LEVEL * 25) / 25, abs=0.006)

    def test_of_another_population_is_at_least_the_level_with_its_weights(self):
        rng = np.random.default_rng(0)
        is_rare = rng.random((60, self.COLUMNS)) < 0.3
        y = rng.normal(size=is_rare.shape) * np.where(is_rare, 3, 1)
        model = make_model({"a": Gaussian(per_channel=True)}, {"a": self.COLUMNS})
        x = np.zeros(is_rare.shape)
        weights = np.where(is_rare, 7 / 3, 3 / 7)  # Seven of ten in the new population are rare.
        for weight in (None, weights):
            model.calibrate({"a": x}, y, sample_weight=weight, intervals=LEVEL, verbose=0)
            half = predicted(model, {"a": x[:1]})["a_upper"]
            covered = special.erf(half / np.sqrt(2) / np.array([[1], [3]]))
            coverage = np.mean(np.array([0.3, 0.7]) @ covered)
            assert (coverage >= LEVEL) == (weight is not None)
        assert coverage < LEVEL + 0.06


def test_too_few_labels_give_infinite_intervals_and_full_sets():
    tasks = {"a": Laplace(), "b": Categorical(), "c": Gaussian(per_channel=True, missing=NAN)}
    rng = np.random.default_rng(0)
    x = {"a": np.ones((19, 1)), "b": rng.normal(size=(19, 3)), "c": np.ones((19, 2))}
    y = {"a": np.zeros(19), "b": rng.integers(3, size=19), "c": np.zeros((19, 2))}
    y["c"][:1, 0] = NAN
    model = make_model(tasks, {"b": 3, "c": 2})
    with pytest.warns(UserWarning, match="Task 'c': too few labels .* 0.95, which take 19 of"):
        model.calibrate(x, y, intervals=0.95, verbose=0)
    answers = predicted(model, x)
    np.testing.assert_array_equal(answers["c_upper"][:, 0], np.inf)
    np.testing.assert_array_equal(answers["c_lower"][:, 0], -np.inf)
    assert np.all(np.isfinite(answers["c_upper"][:, 1]))
    assert np.all(np.isfinite(answers["a_upper"]))
    few = slice(18)
    x, y = ({task: each[few] for task, each in of.items()} for of in (x, y))
    y["c"][:] = NAN
    with pytest.warns(UserWarning, match="Task 'b': too few labels"):
        model.calibrate(x, y, intervals=0.95, verbose=0)
    answers = predicted(model, x)
    assert np.all(answers["b_set"])
    assert np.all(np.isinf(answers["c_upper"]))


def test_intervals_are_saved_and_are_forgotten_by_training(model, tmp_path):
    x, y = data()
    model.calibrate(x, y, intervals=LEVEL, verbose=0)
    expected = predicted(model, x)
    model.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    answers = predicted(loaded, x)
    assert answers.keys() == expected.keys()
    for name, values in answers.items():
        np.testing.assert_array_equal(values, expected[name], name)
    names = {f"{task}_{end}" for task in ("mean", "kind") for end in ("upper", "set")}
    assert len(names & answers.keys()) == 2
    loaded.compile(keras.optimizers.SGD(0.0))
    with pytest.warns(UserWarning, match="Training drops"):
        loaded.fit(x, y, verbose=0)
    assert not names & predicted(loaded, x).keys()
    # Nor do they outlive a calibration that finds none.
    with pytest.warns(UserWarning, match=r"calibrate\(\) without `intervals` drops"):
        model.calibrate(x, y, verbose=0)
    assert not names & predicted(model, x).keys()


def train(model, x, y):
    model.fit(x, y, epochs=2, verbose=0)


def train_on_batch(model, x, y):
    model.train_on_batch(x, y)


def calibrate(model, x, y):
    model.calibrate(x, y, verbose=0)


@pytest.mark.parametrize("drop", [train, train_on_batch, calibrate])
def test_intervals_that_are_dropped_are_named_once(drop):
    def lost(*arguments):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            drop(*arguments)
        return [str(each.message) for each in caught if "drops" in str(each.message)]

    inputs = keras.Input((1,))
    outputs = {task: keras.layers.Dense(1)(inputs) for task in ("b", "a")}
    model = MultiTaskModel(inputs, outputs, {"b": Laplace(), "a": Gaussian()})
    model.compile(keras.optimizers.SGD(1e-3))
    x = np.arange(32.0)[:, None]
    y = {"a": x + 1.0, "b": 2.0 - x}
    assert not lost(model, x, y)
    model.calibrate(x, y, verbose=0)
    assert not lost(model, x, y)
    model.calibrate(x, y, intervals=LEVEL, verbose=0)
    model.evaluate(x, y, verbose=0)
    model.calibrate(x, y, intervals=LEVEL, verbose=0)
    (message,) = lost(model, x, y)
    assert "the tasks ['a', 'b']" in message
    assert "intervals=…" in message
    assert not lost(model, x, y)


def test_a_model_that_was_saved_before_there_was_a_calibration_loads(tmp_path):
    import h5py

    x, _ = data()
    model = make_model(TASKS, SIZES, ACTIVATIONS)
    model.save_weights(tmp_path / "m.weights.h5")
    with h5py.File(tmp_path / "m.weights.h5", "a") as file:
        del file["_calibration"]
    loaded = make_model(TASKS, SIZES, ACTIVATIONS)
    loaded.load_weights(tmp_path / "m.weights.h5")
    assert predicted(loaded, x).keys() == predicted(model, x).keys()


@pytest.mark.backends("tensorflow", reason="loads a SavedModel with TensorFlow")
def test_intervals_are_exported(model, tmp_path):
    x, y = data()
    model.calibrate(x, y, intervals=LEVEL, verbose=0)
    predictive = model.predictive_model()
    predictive.export(tmp_path / "model", verbose=False)
    served = tf.saved_model.load(tmp_path / "model").serve(x)
    for name, expected in predictive.predict(x, verbose=0).items():
        assert served[name].dtype == expected.dtype
        if expected.dtype == bool:
            np.testing.assert_array_equal(served[name], expected)
        else:
            np.testing.assert_allclose(served[name], expected, rtol=1e-5, atol=1e-6)


def test_a_likelihood_without_a_score_is_named_and_left_out():
    model = make_model({"a": Gibbs("huber"), "b": Gaussian()}, {})
    x = {"a": np.ones((30, 1)), "b": np.ones((30, 1))}
    y = {"a": np.zeros((30, 1)), "b": np.zeros((30, 1))}
    with pytest.warns(UserWarning, match=r"The tasks \['a'\] get no intervals.*`Gibbs`"):
        model.calibrate(x, y, intervals=LEVEL, verbose=0)
    names = predicted(model, x).keys()
    assert names == {"a_prediction", "b_mean", "b_standard_deviation", "b_lower", "b_upper"}


@pytest.mark.parametrize("level", [0, 1, 1.5, -0.1, "0.9", True, NAN])
def test_a_level_that_is_no_share_is_refused(level):
    with pytest.raises(ValueError, match=r"`intervals` must be the share.*0.95.*Received: int"):
        make_model({"a": Gaussian()}, {}).calibrate({"a": np.ones(9)}, np.ones(9), intervals=level)


def test_data_that_cannot_be_read_again_are_refused_and_change_nothing():
    model = make_model({"a": Gaussian()}, {})
    x, y = np.ones((300, 1)), np.zeros((300, 1))
    with pytest.raises(ValueError, match=r"3 times.*\['a'\].*generator"):
        model.calibrate((each for each in [({"a": x}, y)]), intervals=LEVEL, verbose=0)
    rng = np.random.default_rng(0)

    class Augmented(keras.utils.PyDataset):
        def __len__(self):
            return 1

        def __getitem__(self, index):
            return {"a": x}, rng.normal(size=y.shape)

    with pytest.raises(ValueError, match=r"Task 'a': calibrate\(intervals=…\) reads .*cache"):
        model.calibrate(Augmented(), intervals=LEVEL, verbose=0)
    assert model.weighting.sigmas()["a"] == 1
    assert not model._calibration.quantiles


def test_a_rate_of_zero_expects_a_count_of_zero():
    # In single precision exp(-300) is 0, and so is the σ of such a count.
    zeros = keras.ops.zeros((2, 1))
    scores = Poisson().nonconformity(zeros, zeros - 300.0, 1.0)
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(scores), 0)
