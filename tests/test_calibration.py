"""σ on held-out data, against closed forms, SciPy's optimizers, and new observations."""

import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy import optimize, special, stats
from sklearn.calibration import CalibratedClassifierCV
from sklearn.datasets import load_digits
from sklearn.frozen import FrozenEstimator
from sklearn.metrics import log_loss
from sklearn.model_selection import train_test_split

from keras_uncertainty_mtl import (
    Bernoulli,
    Categorical,
    Gaussian,
    Gibbs,
    Laplace,
    Likelihood,
    MultiTaskModel,
)
from keras_uncertainty_mtl.reliability import reliability

NAN = float("nan")
SAMPLES = 700


@keras.saving.register_keras_serializable(package="test_calibration")
class Student(Likelihood):
    """A user's likelihood without a closed form: Student's t of 5 degrees of freedom."""

    def loss(self, targets, predictions):
        return keras.ops.square(targets - predictions)

    def negative_log_likelihood(self, targets, predictions, log_variance):
        squared = self.loss(targets, predictions) * keras.ops.exp(-log_variance)
        return 3.0 * keras.ops.log1p(squared / 3.0) + 0.5 * log_variance


@keras.saving.register_keras_serializable(package="test_calibration")
class StudentOfChannels(Student):
    per_channel = True


def likelihoods():
    return {
        "mean": Gaussian(),
        "median": Laplace(missing=NAN),
        "channels": Gaussian(per_channel=True),
        "noisy": Laplace(heteroscedastic=True),
        "huber": Gibbs("huber"),
        "kind": Categorical(missing=-1),
        "kind_approximate": Categorical(approximate=True),
        "flags": Bernoulli(),
        "student": Student(),
        "students": StudentOfChannels(),
    }


def data(seed=0):
    """Inputs, targets of several scales, some of them missing, and sample weights."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(SAMPLES, 4)).astype("float32")
    y = {
        "mean": 1e-3 * rng.normal(size=(SAMPLES, 1)),
        "median": 1e3 * rng.laplace(size=SAMPLES),
        "channels": rng.normal(size=(SAMPLES, 3)) * [0.1, 1, 10],
        "noisy": rng.laplace(size=(SAMPLES, 2)),
        "huber": rng.normal(size=(SAMPLES, 2)),
        "kind": np.argmax(x[:, :3] + rng.gumbel(size=(SAMPLES, 3)), axis=-1),
        "kind_approximate": rng.integers(3, size=SAMPLES),
        "flags": x[:, :2] + rng.logistic(size=(SAMPLES, 2)) > 0,
        "student": 1e4 * rng.standard_t(5, size=(SAMPLES, 1)),
        "students": rng.standard_t(5, size=(SAMPLES, 2)) * [1e-4, 1],
    }
    y = {task: target.astype("float32") for task, target in y.items()}
    y["kind"] = y["kind"].astype("int32")
    y["median"][::3] = NAN
    y["kind"][::4] = -1
    weights = {task: rng.uniform(0, 2, SAMPLES) for task in y}
    weights["mean"][:100] = 0
    return x, y, weights


def make_model(tasks=None):
    """A network that partly predicts the kinds and flags, at a wrong temperature."""
    tasks = tasks or likelihoods()
    x = keras.Input((4,), name="x")
    sizes = {"channels": 3, "noisy": 4, "huber": 2, "kind": 3, "kind_approximate": 3}
    sizes |= {"flags": 2, "students": 2}
    outputs = {
        task: keras.layers.Dense(
            sizes.get(task, 1),
            kernel_initializer=keras.initializers.Identity(5.0)
            if task in ("kind", "flags")
            else keras.initializers.RandomNormal(stddev=1e-5 if task == "mean" else 0.3),
        )(x)
        for task in tasks
    }
    return MultiTaskModel(x, outputs, tasks)


def minimum(mean_nll):
    """The σ that minimises a mean negative log-likelihood, by SciPy's search."""
    grid = np.linspace(-30, 30, 601)
    best = grid[np.argmin([mean_nll(s) for s in grid])]
    found = optimize.minimize_scalar(
        mean_nll, bounds=(best - 0.2, best + 0.2), options={"xatol": 1e-9}
    )
    return np.exp(0.5 * found.x)


def expected_sigmas(predictions, y, weights):
    """The optimal σ of every task, by NumPy's averages and SciPy, in double precision."""
    f = {task: np.asarray(prediction, "float64") for task, prediction in predictions.items()}

    def root_mean(losses, task):
        return np.sqrt(np.average(losses.mean(axis=-1), weights=weights[task]))

    shown = ~np.isnan(y["median"])
    errors = np.abs(y["median"] - f["median"][:, 0])[shown]
    estimates, log_variances = np.split(f["noisy"], 2, axis=-1)
    scaled = np.abs(y["noisy"] - estimates) * np.exp(-0.5 * log_variances)
    huber = keras.ops.convert_to_numpy(keras.losses.huber(y["huber"], f["huber"]))
    cross_entropy = keras.ops.convert_to_numpy(
        keras.losses.sparse_categorical_crossentropy(
            y["kind_approximate"], predictions["kind_approximate"], from_logits=True
        )
    )
    known = y["kind"] >= 0

    def kind(s):
        log_p = special.log_softmax(f["kind"] * np.exp(-s), axis=-1)
        own = np.take_along_axis(log_p, np.maximum(y["kind"], 0)[:, None], axis=-1)[:, 0]
        return -np.average(own[known], weights=weights["kind"][known])

    def flags(s):
        signs = 2 * y["flags"] - 1
        nll = -special.log_expit(signs * f["flags"] * np.exp(-s))
        return np.average(nll.mean(axis=-1), weights=weights["flags"])

    def student(task, channel):
        # This scale makes the variance 1. SciPy's distribution has one of 5/3.
        scale = np.sqrt(3 / 5)
        errors = y[task][:, channel] - f[task][:, channel]
        return minimum(
            lambda s: np.average(
                0.5 * s - stats.t.logpdf(errors * np.exp(-0.5 * s), 5, scale=scale),
                weights=weights[task],
            )
        )

    return {
        "mean": root_mean((y["mean"] - f["mean"]) ** 2, "mean"),
        "median": np.sqrt(2) * np.average(errors, weights=weights["median"][shown]),
        "channels": np.sqrt(
            np.average((y["channels"] - f["channels"]) ** 2, axis=0, weights=weights["channels"])
        ),
        "noisy": np.sqrt(2) * root_mean(scaled, "noisy") ** 2,
        # In Eq. 10 any loss has its minimum at σ² = 2 · mean loss.
        "huber": np.sqrt(2 * np.average(huber, weights=weights["huber"])),
        "kind_approximate": np.sqrt(
            2 * np.average(cross_entropy, weights=weights["kind_approximate"])
        ),
        "kind": minimum(kind),
        "flags": minimum(flags),
        "student": student("student", 0),
        "students": np.array([student("students", channel) for channel in range(2)]),
    }


def assert_sigmas(sigmas, expected, rtol):
    assert sigmas.keys() == expected.keys()
    for task, sigma in sigmas.items():
        np.testing.assert_allclose(sigma, expected[task], rtol=rtol, err_msg=task)


def read_once(x, y, skip=0):
    """A data set over an iterator that is not made again."""
    batches = zip(np.split(x, 7), np.split(y, 7), strict=True)
    rest = iter(list(batches)[7 * skip // SAMPLES :])
    signature = tuple(tf.TensorSpec((None, *each.shape[1:]), each.dtype) for each in (x, y))
    return tf.data.Dataset.from_generator(lambda: rest, output_signature=signature)


class Augmented(keras.utils.PyDataset):
    """Samples and noise of their inputs that are drawn anew each time."""

    def __init__(self, x, y):
        super().__init__()
        self.x, self.y, self.rng = x, y, np.random.default_rng(0)

    def __len__(self):
        return 1

    def __getitem__(self, index):
        drawn = self.rng.integers(SAMPLES, size=SAMPLES)
        noise = self.rng.normal(size=self.x.shape)
        return self.x[drawn] + noise, {task: y[drawn] for task, y in self.y.items()}


class TestCalibrate:
    def test_every_sigma_is_that_of_maximum_likelihood(self):
        model, (x, y, weights) = make_model(), data()
        # Before any training or calibration, the temperature of the logits is 1.
        logits = model.predict(x, verbose=0)
        returned = model.calibrate(x, y, sample_weight=weights, verbose=0)
        expected = expected_sigmas(logits, y, weights)
        assert_sigmas(returned, expected, rtol=1e-5)
        assert_sigmas(model.weighting.sigmas(), expected, rtol=1e-5)
        # The network starts at a wrong temperature, so the search moved.
        assert returned["kind"] > 1.5
        assert returned["flags"] > 1.5

    def test_neither_the_batch_size_nor_the_kind_of_data_makes_a_difference(self):
        model, (x, y, weights) = make_model(), data()
        expected = model.calibrate(x, y, sample_weight=weights, batch_size=SAMPLES, verbose=0)

        class Batches(keras.utils.PyDataset):
            def __len__(self):
                return 7

            def __getitem__(self, index):
                part = slice(100 * index, 100 * index + 100)
                return keras.tree.map_structure(lambda a: a[part], (x, y, weights))

        dataset = tf.data.Dataset.from_tensor_slices((x, y, weights))
        for source in (
            {"x": x, "y": y, "sample_weight": weights, "batch_size": 17},
            {"x": Batches()},
            {"x": dataset.batch(300)},
            {"x": dataset.batch(50).repeat(), "steps": 14},
        ):
            model.weighting.set_log_variances({task: 0 * s for task, s in expected.items()})
            # The sums over a batch are in single precision.
            assert_sigmas(model.calibrate(**source, verbose=0), expected, rtol=1e-5)

    def test_calibrating_again_changes_nothing(self):
        model, (x, y, _) = make_model(), data()
        once = model.calibrate(x, y, verbose=0)
        assert_sigmas(model.calibrate(x, y, verbose=0), once, rtol=1e-7)

    def test_the_network_stays_as_it_is_and_training_goes_on(self):
        model, (x, y, _) = make_model(), data()
        model.compile(keras.optimizers.Adam(1e-2))
        model.fit(x, y, verbose=0)
        before = {weight.path: weight.numpy() for weight in model.trainable_weights}
        sigmas = model.calibrate(x, y, verbose=0)
        for weight in model.trainable_weights:
            if weight is not model.weighting.trainable_variables[0]:
                np.testing.assert_array_equal(weight, before[weight.path])
        errors = model.predict(x, verbose=0)["mean"] - y["mean"]
        assert sigmas["mean"] == pytest.approx(np.sqrt(np.mean(errors**2)), rel=1e-5)
        reported = model.evaluate(x, y, verbose=0, return_dict=True)
        assert reported["mean_sigma"] == pytest.approx(sigmas["mean"], rel=1e-6)
        model.compile(keras.optimizers.SGD(0.0))
        model.fit(x, y, batch_size=SAMPLES, verbose=0)
        # All data in one batch say the same once more, up to single precision.
        assert_sigmas(model.weighting.sigmas(), sigmas, rtol=1e-6)

    def test_calibration_needs_no_training(self):
        # The first batch of a later training does not replace the calibrated σ.
        model, (x, y, _) = make_model({"mean": Gaussian()}), data()
        sigma = model.calibrate(x, y["mean"], verbose=0)["mean"]
        model.compile(keras.optimizers.SGD(0.0))
        errors = model.predict(x, verbose=0)["mean"] - 5 * y["mean"]
        model.fit(x, 5 * y["mean"], batch_size=SAMPLES, verbose=0)
        # The running mean goes on from the calibrated σ as from ten batches. The next counts as at
        # most ten times the mean.
        loss = min(np.mean(errors**2), 10 * sigma**2)
        running = np.sqrt(sigma**2 + (loss - sigma**2) / 10.1)
        assert model.weighting.sigmas()["mean"] == pytest.approx(running, rel=1e-5)

    def test_a_task_without_a_label_keeps_its_sigma(self):
        tasks = {"median": Laplace(missing=NAN, initial_sigma=3.0), "kind": Categorical(missing=-1)}
        model, (x, y, _) = make_model(tasks), data()
        targets = {"median": np.full(SAMPLES, NAN), "kind": y["kind"]}
        sigmas = model.calibrate(x, targets, verbose=0)
        assert sigmas["median"] == pytest.approx(3.0)
        assert sigmas["kind"] > 1.5
        sigmas = model.calibrate(x, {**targets, "kind": np.full(SAMPLES, -1)}, verbose=0)
        assert sigmas["kind"] > 1.5

    def test_a_channel_without_a_label_keeps_its_sigma(self):
        tasks = {"channels": Gaussian(per_channel=True, missing=NAN, initial_sigma=[2.0, 3.0, 4.0])}
        model, (x, y, _) = make_model(tasks), data()
        y["channels"][:, 1] = NAN
        sigmas = model.calibrate(x, y["channels"], verbose=0)["channels"]
        assert sigmas[1] == pytest.approx(3.0)
        assert sigmas[0] < 1 < 5 < sigmas[2]

    def test_masked_steps_do_not_count(self):
        tokens = np.array([[1, 2, 0, 0], [3, 0, 0, 0], [1, 3, 2, 1]])
        inputs = keras.Input((4,), dtype="int32")
        outputs = keras.layers.Dense(1)(keras.layers.Embedding(4, 3, mask_zero=True)(inputs))
        model = MultiTaskModel(inputs, outputs, {"a": Gaussian()})
        y = np.where(tokens, tokens, 1e6).astype("float32")[..., None]
        errors = (model.predict(tokens, verbose=0) - y)[tokens > 0]
        sigma = model.calibrate(tokens, y, verbose=0)["a"]
        assert sigma == pytest.approx(np.sqrt(np.mean(errors**2)), rel=1e-6)

    def test_an_eager_model_of_lists_in_half_precision_calibrates(self):
        keras.config.set_dtype_policy("mixed_float16")
        try:
            x = keras.Input((2,))
            outputs = [keras.layers.Dense(1)(x), keras.layers.Dense(2)(x)]
            model = MultiTaskModel(x, outputs, {"a": Laplace(), "b": Categorical()})
        finally:
            keras.config.set_dtype_policy("float32")
        model.compile(run_eagerly=True)
        rng = np.random.default_rng(0)
        x, a, b = rng.normal(size=(60, 2)), 1e5 * rng.normal(size=60), rng.integers(2, size=60)
        sigmas = model.calibrate(x, [a, b], verbose=0)
        assert sigmas["a"] == pytest.approx(np.sqrt(2) * np.mean(np.abs(a)), rel=1e-4)

    def test_a_generator_is_read_once_or_refused(self):
        x, y, _ = data()

        def batches(*tasks):
            for part in np.split(np.arange(SAMPLES), 7):
                yield x[part], {task: y[task][part] for task in tasks}

        model = make_model({"mean": Gaussian()})
        once = model.calibrate(batches("mean"), steps=7, verbose=0)["mean"]
        assert once == pytest.approx(model.calibrate(x, y["mean"], verbose=0)["mean"], rel=1e-6)
        model = make_model({"mean": Gaussian(), "kind": Categorical(missing=-1)})
        with pytest.raises(ValueError, match=r"\['kind'\].*generator.*tf.data.Dataset"):
            model.calibrate(batches("mean", "kind"), verbose=0)

    @pytest.mark.filterwarnings("ignore:Your input ran out of data")
    def test_data_without_any_batch_are_an_error_and_harm_no_weight(self):
        x, y, _ = data()
        for tasks in ({"mean": Gaussian()}, {"kind": Categorical(missing=-1)}):
            (task,) = tasks
            model = make_model(tasks)
            model.compile()
            loss = model.evaluate(x, y[task], verbose=0, return_dict=True)["loss"]
            for source in (
                tf.data.Dataset.from_tensor_slices((x, y[task])).batch(50).take(0),
                read_once(x, y[task], skip=SAMPLES),
            ):
                with pytest.raises(ValueError, match="data without any batch, or with none left"):
                    model.calibrate(source, verbose=0)
            # Keras on JAX takes the weights of a model that evaluates no batch.
            again = model.evaluate(x, y[task], verbose=0, return_dict=True)["loss"]
            assert again == loss

    @pytest.mark.filterwarnings("ignore:Your input ran out of data")
    def test_data_that_can_be_read_once_are_read_once_or_refused(self):
        x, y, _ = data()
        model = make_model({"mean": Gaussian()})
        sigma = model.calibrate(read_once(x, y["mean"]), verbose=0)["mean"]
        assert sigma == pytest.approx(model.calibrate(x, y["mean"], verbose=0)["mean"], rel=1e-6)
        model = make_model({"kind": Categorical(missing=-1)})
        with pytest.raises(ValueError, match="data without any batch, or with none left"):
            model.calibrate(read_once(x, y["kind"]), verbose=0)
        assert model.weighting.sigmas()["kind"] == 1

    @pytest.mark.parametrize("task", ["kind", "student", "flags"])
    def test_passes_that_differ_are_an_error_and_shuffled_ones_are_not(self, task):
        model, (x, y, _) = make_model({"mean": Gaussian(), task: likelihoods()[task]}), data()
        y = {name: y[name] for name in ("mean", task)}
        expected = model.calibrate(x, y, batch_size=SAMPLES, verbose=0)
        dataset = tf.data.Dataset.from_tensor_slices((x, y))
        shuffled = dataset.shuffle(SAMPLES, seed=0).batch(37)
        assert_sigmas(model.calibrate(shuffled, verbose=0), expected, rtol=1e-5)
        drawn = dataset.shuffle(SAMPLES, seed=0).take(SAMPLES // 2).batch(50)
        augmented = Augmented(x, y)
        for source in (drawn, augmented):
            with pytest.raises(ValueError, match=rf"Task '{task}': calibrate\(\) reads .*cache"):
                model.calibrate(source, verbose=0)
            assert_sigmas(model.weighting.sigmas(), expected, rtol=1e-5)
        # One pass over augmented data is as good as another.
        model = make_model({"mean": Gaussian()})
        model.calibrate(Augmented(x, {"mean": y["mean"]}), verbose=0)

    def test_passes_with_labels_of_another_number_are_an_error(self):
        model, (x, y, _) = (
            make_model({"kind": Categorical(), "median": Laplace(missing=NAN)}),
            data(),
        )
        seen = np.zeros(())

        class Batches(keras.utils.PyDataset):
            def __len__(self):
                return 1

            def __getitem__(self, index):
                seen[...] += 1
                median = np.where(np.arange(SAMPLES) < 100 * seen, NAN, y["median"])
                return x, {"kind": np.maximum(y["kind"], 0), "median": median}

        with pytest.raises(ValueError, match=r"Task 'median': .* expects the same data each time"):
            model.calibrate(Batches(), verbose=0)

    @pytest.mark.parametrize("task", ["mean", "student"])
    def test_a_loss_that_is_not_finite_is_an_error(self, task):
        model, (x, y, _) = make_model({task: likelihoods()[task]}), data()
        y[task][5] = NAN
        with pytest.raises(ValueError, match=rf"Task '{task}': the loss must be finite.*missing"):
            model.calibrate(x, y[task], verbose=0)
        assert model.weighting.sigmas()[task] == 1

    def test_a_sigma_without_an_optimum_stays_with_a_warning(self):
        x, y, _ = data()
        model = make_model({"kind": Categorical(), "mean": Gaussian()})
        logits = model.predict(x, verbose=0)["kind"]
        for kind in (logits.argmax(axis=-1), logits.argmin(axis=-1)):
            with pytest.warns(
                UserWarning, match="Task 'kind': no temperature is the most likely one"
            ):
                sigmas = model.calibrate(x, {"kind": kind, "mean": y["mean"]}, verbose=0)
            assert sigmas["kind"] == 1
            assert sigmas["mean"] < 0.1

    def test_a_sigma_out_of_range_stays_with_a_warning(self):
        model, (x, y, _) = make_model({"mean": Gaussian()}), data()
        with pytest.warns(UserWarning, match="Task 'mean': no σ is the most likely one"):
            assert model.calibrate(x, 1e18 * y["mean"], verbose=0)["mean"] == 1

    def test_progress_is_that_of_evaluate(self, capsys):
        model, (x, y, _) = make_model({"mean": Gaussian()}), data()
        model.calibrate(x, y["mean"], verbose=2)
        assert "mean_loss: " in capsys.readouterr().out
        model.calibrate(x, y["mean"], verbose=0)
        assert capsys.readouterr().out == ""


CONTINUOUS = {
    "mean": Gaussian(),
    "median": Laplace(),
    "channels": Gaussian(per_channel=True),
    "noisy_mean": Gaussian(heteroscedastic=True),
    "noisy_median": Laplace(heteroscedastic=True),
}


class TestCoverage:
    """Coverage of 40,000 new observations: its standard error at 95% is 0.1%."""

    def observations(self, samples, seed):
        rng = np.random.default_rng(seed)
        x = rng.uniform(-1, 1, size=(samples, 3)).astype("float32")
        signal, spread = x @ [1, -2, 1], np.exp(x @ [0.5, 0.5, -1])
        y = {
            "mean": signal + 0.3 * rng.normal(size=samples),
            "median": 50 * signal + 20 * rng.laplace(size=samples),
            "channels": signal[:, None] + rng.normal(size=(samples, 2)) * [0.1, 5],
            "noisy_mean": signal + spread * rng.normal(size=samples),
            "noisy_median": signal + spread * rng.laplace(size=samples),
        }
        return x, {task: target.astype("float32") for task, target in y.items()}

    def in_intervals(self, predicted, y):
        """The share of the targets in SciPy's 95% intervals."""
        shares = {}
        for task in CONTINUOUS:
            if f"{task}_mean" in predicted:
                kind, names = stats.norm, ("mean", "standard_deviation")
            else:
                kind, names = stats.laplace, ("location", "scale")
            location, scale = (predicted[f"{task}_{name}"] for name in names)
            lower, upper = kind.interval(0.95, location, scale)
            target = y[task].reshape(location.shape)
            inside = (lower <= target) & (target <= upper)
            for channel in range(inside.shape[1]):
                shares[task, channel] = np.mean(inside[:, channel])
        return shares

    def test_95_percent_of_new_observations_are_in_95_percent_intervals(self):
        keras.utils.set_random_seed(0)
        inputs = keras.Input((3,))
        sizes = {"channels": 2, "noisy_mean": 2, "noisy_median": 2}
        outputs = {task: keras.layers.Dense(sizes.get(task, 1))(inputs) for task in CONTINUOUS}
        model = MultiTaskModel(inputs, outputs, CONTINUOUS)
        schedule = keras.optimizers.schedules.CosineDecay(0.1, 600)
        model.compile(keras.optimizers.Adam(schedule))
        x, y = self.observations(5000, seed=1)
        # A linear layer would take long to reach targets of this scale.
        y["median"] /= 50
        model.fit(x, y, batch_size=250, epochs=30, verbose=0)

        x, y = self.observations(40_000, seed=2)
        y["median"] /= 50
        # These intervals are wider than training left them, wherever σ and h traded places.
        sigmas = model.weighting.sigmas().items()
        model.weighting.set_log_variances({task: 2 * np.log(sigma) + 2 for task, sigma in sigmas})
        uncalibrated = self.in_intervals(predictive(model, x), y)
        assert all(abs(share - 0.95) > 0.01 for share in uncalibrated.values())

        held_out, targets = self.observations(10_000, seed=3)
        targets["median"] /= 50
        model.calibrate(held_out, targets, batch_size=512, verbose=0)
        predicted = predictive(model, x)
        calibrated = self.in_intervals(predicted, y)
        for entry, share in calibrated.items():
            assert share == pytest.approx(0.95, abs=0.01), entry
        # With a noise for each element, the intervals also hold among noisy observations.
        noisy = x @ [0.5, 0.5, -1] > 0.7
        for part in (noisy, ~noisy):
            some = {name: value[part] for name, value in predicted.items()}
            shares = self.in_intervals(some, {task: target[part] for task, target in y.items()})
            for task in ("noisy_mean", "noisy_median"):
                assert shares[task, 0] == pytest.approx(0.95, abs=0.01)
            assert shares["mean", 0] == pytest.approx(0.95, abs=0.01)


def predictive(model, x):
    return model.predictive_model().predict(x, batch_size=2000, verbose=0)


class Logits:
    """A fitted scikit-learn classifier whose logits are its inputs."""

    _estimator_type = "classifier"

    def __init__(self, classes):
        self.classes_ = np.arange(classes)

    def fit(self, x, y):
        return self

    def decision_function(self, logits):
        return logits

    def predict(self, logits):
        return logits.argmax(axis=-1)

    def __sklearn_tags__(self):
        from sklearn.utils import ClassifierTags, InputTags, Tags, TargetTags

        return Tags(
            estimator_type="classifier",
            target_tags=TargetTags(required=True),
            classifier_tags=ClassifierTags(),
            input_tags=InputTags(),
        )


class TestDigits:
    """Calibration of a network that overfits a few hundred digits."""

    @pytest.fixture(scope="class")
    @staticmethod
    def trained():
        keras.utils.set_random_seed(0)
        pixels, labels = load_digits(return_X_y=True)
        pixels = (pixels / 16).astype("float32")
        x, test_x, y, test_y = train_test_split(pixels, labels, train_size=900, random_state=0)
        x, held_x, y, held_y = train_test_split(x, y, train_size=400, random_state=0)
        image = keras.Input((64,))
        hidden = keras.layers.Dense(64, activation="relu")(image)
        model = MultiTaskModel(image, keras.layers.Dense(10)(hidden), {"digit": Categorical()})
        model.compile(keras.optimizers.Adam(3e-3))
        model.fit(x, y, epochs=100, verbose=0)
        return model, (held_x, held_y), (test_x, test_y)

    def test_calibration_error_and_negative_log_likelihood_improve(self, trained):
        model, (held_x, held_y), (test_x, test_y) = trained
        before = predictive(model, test_x)["digit_probabilities"]
        model.calibrate(held_x, held_y, verbose=0)
        after = predictive(model, test_x)["digit_probabilities"]
        np.testing.assert_array_equal(after.argmax(axis=-1), before.argmax(axis=-1))
        assert log_loss(test_y, after) < 0.9 * log_loss(test_y, before)
        errors = [reliability(test_y, p).expected_calibration_error for p in (before, after)]
        assert errors[1] < 0.7 * errors[0]

    def test_temperature_is_that_of_independent_optimizations(self, trained):
        model, (held_x, held_y), _ = trained
        temperature = model.calibrate(held_x, held_y, verbose=0)["digit"] ** 2
        # The model answers with logits at their temperature.
        logits = temperature * model.predict(held_x, verbose=0).astype("float64")

        def nll(inverse):
            log_p = special.log_softmax(inverse * logits, axis=-1)
            return -np.mean(log_p[np.arange(len(held_y)), held_y])

        inverse = optimize.minimize_scalar(nll, bounds=(1e-3, 1e3), options={"xatol": 1e-9}).x
        assert temperature == pytest.approx(1 / inverse, rel=1e-4)
        scikit = CalibratedClassifierCV(FrozenEstimator(Logits(10)), method="temperature")
        scikit.fit(logits, held_y)
        (calibrator,) = scikit.calibrated_classifiers_[0].calibrators
        assert temperature == pytest.approx(1 / calibrator.beta_, rel=0.01)


@pytest.mark.backends("tensorflow", reason="tf.distribute needs TensorFlow")
def test_replicas_calibrate_as_one_device_does():
    process = subprocess.run(
        [sys.executable, Path(__file__).parent / "integration" / "calibrate_mirrored.py"],
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    one, several = np.array([line.split() for line in process.stdout.splitlines()[-2:]], float)
    np.testing.assert_allclose(several, one, rtol=1e-6)
    assert not np.any(one[:4] == 1)  # All σ moved; the rest are intervals and sets.
