"""NaN, infinities, and numbers at the ends of single precision."""

import keras
import numpy as np
import pytest

from keras_uncertainty_mtl import (
    Bernoulli,
    Categorical,
    Gaussian,
    Gibbs,
    Laplace,
    Likelihood,
    MultiTaskModel,
    UncertaintyWeighting,
)
from keras_uncertainty_mtl._observations import observe

NAN = float("nan")
SMALLEST, LARGEST = np.exp(-30.0), np.exp(30.0)  # at the bounds |log σ²| = 60


class TestNaNAndInfinity:
    """A NaN or infinity never becomes a finite loss."""

    TASKS = ("far", "kind", "near", "flag")

    @pytest.fixture(scope="class", params=["model", "layer"])
    @classmethod
    def trained(cls, request):
        """A function that trains from the same weights, in batches of four."""
        inputs = keras.Input((3,), name="x")
        outputs = {
            task: keras.layers.Dense(units)(inputs)
            for task, units in zip(cls.TASKS, (1, 3, 2, 1), strict=True)
        }
        weighting = UncertaintyWeighting(
            {
                "far": Gaussian(),
                "kind": Categorical(missing=-1),
                "near": Laplace(per_channel=True, missing=NAN),
                "flag": Bernoulli(approximate=True),
            }
        )
        if request.param == "model":
            model = MultiTaskModel(inputs, outputs, weighting)
        else:
            targets = weighting.target_inputs(outputs)
            weights = {task: keras.Input((), name=f"{task}_weight") for task in cls.TASKS}
            more = [*targets.values(), *weights.values()]
            model = keras.Model(
                {"x": inputs} | {tensor.name: tensor for tensor in more},
                weighting(outputs, targets, sample_weight=weights),
            )
        model.compile(keras.optimizers.SGD(1e-4))  # without any state
        initial = model.get_weights()

        def fit(x, y, weights):
            model.set_weights(initial)
            model.optimizer.iterations.assign(0)
            data = {"x": x, "y": y, "sample_weight": weights}
            if request.param == "layer":
                data = {
                    "x": {"x": x}
                    | {f"{task}_target": y[task] for task in y}
                    | {f"{task}_weight": weights[task] for task in y}
                }
            history = model.fit(
                **data,
                batch_size=4,
                shuffle=False,
                epochs=2,
                verbose=0,
                callbacks=[keras.callbacks.TerminateOnNaN()],
            ).history
            return history["loss"], int(model.optimizer.iterations), weighting.sigmas()

        return fit

    def data(self):
        rng = np.random.default_rng(0)
        x = rng.normal(size=(16, 3)).astype("float32")
        y = {
            "far": x[:, :1] * 100,
            "kind": rng.integers(0, 3, size=16).astype("int32"),
            "near": rng.normal(size=(16, 2)).astype("float32"),
            "flag": rng.integers(0, 2, size=(16, 1)).astype("float32"),
        }
        return x, y, {task: np.ones(16, "float32") for task in self.TASKS}

    def test_finite_data_train_to_the_end(self, trained):
        losses, steps, _ = trained(*self.data())
        assert np.all(np.isfinite(losses))
        assert steps == 8

    @pytest.mark.filterwarnings("ignore:Model .* the loss of")
    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    @pytest.mark.parametrize("place", ["input", "target", "weight"])
    @pytest.mark.parametrize("batch", [0, 2])
    def test_the_loss_is_nan_at_once_and_training_stops(self, trained, place, value, batch):
        x, y, weights = self.data()
        sample = 4 * batch + 1
        if place == "input":
            x[sample, 1] = value
        elif place == "target":
            y["far"][sample] = value
        else:
            weights["flag"][sample] = value
        losses, steps, _ = trained(x, y, weights)
        np.testing.assert_array_equal(losses, [np.nan])
        assert steps == batch + 1

    def test_a_nan_for_a_missing_label_does_no_harm(self, trained):
        x, y, weights = self.data()
        hidden = np.random.default_rng(1).random((16, 2)) < 0.5
        hidden[:4] = True
        y["near"][hidden] = np.nan
        _, _, with_nan = trained(x, y, weights)
        y["near"][~hidden] *= 3
        losses, steps, scaled = trained(x, y, weights)
        assert np.all(np.isfinite(losses))
        assert steps == 8
        assert np.all(np.isfinite(with_nan["near"]))
        # Changed labels would count; a changed missing label would not.
        assert not np.allclose(scaled["near"], with_nan["near"])

    @pytest.mark.parametrize("value", [np.nan, np.inf])
    def test_a_bad_input_of_an_unlabelled_sample_is_not_hidden(self, trained, value):
        # Its loss has no weight, but the gradients of the network are NaN.
        x, y, weights = self.data()
        x[1] = value
        y["near"][1], y["kind"][1] = np.nan, -1
        weights["far"][1] = weights["flag"][1] = 0
        losses, steps, _ = trained(x, y, weights)
        np.testing.assert_array_equal(losses, [np.nan])
        assert steps == 1

    @pytest.mark.parametrize("value", [np.nan, np.inf])
    def test_a_nan_counts_where_another_value_marks_missing_labels(self, value):
        for likelihood in (Gaussian(missing=-1.0), Categorical(missing=-1), Bernoulli(missing=-1)):
            layer = UncertaintyWeighting({"a": likelihood})
            targets = np.array([1.0, value, -1.0], "float32")
            units = 3 if isinstance(likelihood, Categorical) else 1
            layer(np.zeros((3, units), "float32"), targets, training=True)
            assert np.isnan(float(layer.losses[0]))
            np.testing.assert_array_equal(layer.sigmas()["a"], 1)

    def test_a_first_batch_that_overflows_starts_no_sigma(self):
        # A loss-scaling optimizer skips such a batch and goes on.
        layer = UncertaintyWeighting({"a": Gaussian()})
        layer(np.full((2, 1), 1e30, "float32"), np.zeros((2, 1)), training=True)
        assert np.isnan(float(layer.losses[0]))
        layer(np.full((2, 1), 3, "float32"), np.zeros((2, 1)), training=True)
        assert layer.sigmas()["a"] == pytest.approx(3)


LOGITS = np.array([[1e4, -1e4, 0.0]], "float32")
EXTREMES = {
    "a residual of 1e-12": (lambda **k: Gaussian(**k), [[1e-12]], [[0.0]]),
    "an absolute residual of 1e-12": (lambda **k: Laplace(**k), [[1e-12]], [[0.0]]),
    "a residual of 1e12": (lambda **k: Gaussian(**k), [[1e12]], [[0.0]]),
    "an absolute residual of 1e12": (lambda **k: Laplace(**k), [[1e12]], [[0.0]]),
    "a Huber loss of 1e12": (lambda **k: Gibbs("huber", **k), [[1e12]], [[0.0]]),
    "no residual": (lambda **k: Gaussian(**k), [[3.0]], [[3.0]]),
    "no absolute residual": (lambda **k: Laplace(**k), [[3.0]], [[3.0]]),
    "no Huber loss": (lambda **k: Gibbs("huber", **k), [[3.0]], [[3.0]]),
    "logits that are right": (lambda **k: Categorical(**k), LOGITS, [0]),
    "logits that are wrong": (lambda **k: Categorical(**k), LOGITS, [1]),
    "logits that are right, approximately": (
        lambda **k: Categorical(approximate=True, **k),
        LOGITS,
        [0],
    ),
    "logits that are wrong, approximately": (
        lambda **k: Categorical(approximate=True, **k),
        LOGITS,
        [1],
    ),
    "a logit that is right": (lambda **k: Bernoulli(**k), [[1e4]], [[1.0]]),
    "a logit that is wrong": (lambda **k: Bernoulli(**k), [[1e4]], [[0.0]]),
    "a logit that is wrong, approximately": (
        lambda **k: Bernoulli(approximate=True, **k),
        [[-1e4]],
        [[1.0]],
    ),
    "a probability that is wrong": (
        lambda **k: Bernoulli(from_logits=False, approximate=True, **k),
        [[0.0]],
        [[1.0]],
    ),
    "probabilities that are wrong": (
        lambda **k: Categorical(from_logits=False, approximate=True, **k),
        [[1.0, 0.0]],
        [1],
    ),
}


@pytest.mark.parametrize(("likelihood", "predictions", "targets"), EXTREMES.values(), ids=EXTREMES)
@pytest.mark.parametrize("sigma", [None, 1.0, 1e-3, 1e3])
def test_loss_and_gradients_are_finite(
    likelihood, predictions, targets, sigma, value_and_gradients
):
    layer = UncertaintyWeighting({"a": likelihood(initial_sigma=sigma)})
    prediction = keras.Variable(np.array(predictions, "float32"))
    layer.build(prediction.shape)
    loss, gradients = value_and_gradients(
        lambda: layer.combined_loss(
            prediction.value, keras.ops.convert_to_tensor(np.array(targets)), training=True
        ),
        [layer.trainable_variables[0], prediction],
    )
    assert np.isfinite(loss)
    for gradient in gradients:
        assert np.all(np.isfinite(gradient))


@pytest.mark.parametrize("residual", [1e-12, 1e12])
@pytest.mark.parametrize("likelihood", [Gaussian, Laplace])
def test_sigma_starts_from_tiny_and_huge_residuals(likelihood, residual):
    layer = UncertaintyWeighting({"a": likelihood()})
    layer(np.full((4, 1), residual, "float32"), np.zeros((4, 1)), training=True)
    expected = residual if likelihood is Gaussian else np.sqrt(2) * residual
    assert layer.sigmas()["a"] == pytest.approx(expected, rel=1e-4, abs=0)
    # At the optimum a Gaussian costs ½ + ½ · log σ², and a Laplace 1 + ½ · log σ².
    expected = np.log(expected) + (0.5 if likelihood is Gaussian else 1.0)
    assert float(layer.losses[0]) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(("residual", "end"), [(1e-18, SMALLEST), (1e18, LARGEST)])
def test_a_first_batch_beyond_the_bound_starts_sigma_at_it(residual, end):
    layer = UncertaintyWeighting({"a": Gaussian()})
    layer(np.full((4, 1), residual, "float32"), np.zeros((4, 1)), training=True)
    assert layer.sigmas()["a"] == pytest.approx(end, rel=1e-4, abs=0)
    assert np.isfinite(float(layer.losses[0]))


@pytest.mark.parametrize("sigma", [1e-14, 1e14])
def test_an_initial_sigma_beyond_the_bound_is_refused(sigma):
    layer = UncertaintyWeighting({"depth": Gaussian(initial_sigma=sigma)})
    with pytest.raises(ValueError, match=f"Task 'depth'.*1e-13 and 1e13.*Received.*{sigma}"):
        layer.build((None, 1))


class Quartic(Likelihood):
    """¼ · ((y - f) / σ)⁴ + ½ · log σ², whose σ⁴ may overflow single precision."""

    scale, power = 0.25, 2.0

    def loss(self, targets, predictions):
        return (targets - predictions) ** 4


class QuarticOfItsOwn(Quartic):
    """The same without a known closed form."""

    def negative_log_likelihood(self, targets, predictions, log_variance):
        return super().negative_log_likelihood(targets, predictions, log_variance)


@pytest.mark.parametrize("update", ["trained", "closed_form"])
@pytest.mark.parametrize(
    ("likelihood", "residual"),
    [(Gaussian(), 3e-19), (Quartic(initial_sigma=1e-10), 4.5e-10)],
    ids=["squares", "fourth powers"],
)
def test_losses_near_the_smallest_float_do_not_stop_sigma(likelihood, residual, update, compiled):
    # These losses are a few times the smallest number that TensorFlow tells from 0.
    layer = UncertaintyWeighting({"task": likelihood}, update=update)
    predictions = np.zeros((4, 1), "float32")
    layer(predictions)
    step = compiled(lambda y: layer.combined_loss(predictions, y, training=True))
    # A batch counts as at most ten times the mean of the others, so the rise takes its time.
    for error in [residual] * 20 + [1.0] * 500:
        assert np.isfinite(float(step(np.full((4, 1), error, "float32"))))
        assert all(np.isfinite(weight).all() for weight in layer.get_weights())
    assert layer.sigmas()["task"] == pytest.approx(1.0, rel=0.1)


@pytest.mark.parametrize("sigma", [1e-13, 1e-10, 1e10, 1e13])
def test_an_initial_sigma_whose_power_is_no_float_stays_finite(sigma):
    layer = UncertaintyWeighting({"a": Quartic(initial_sigma=sigma)})
    for _ in range(3):
        layer(np.ones((4, 1), "float32"), np.zeros((4, 1)), training=True)
        assert np.isfinite(float(layer.losses[0]))
        assert 1e-13 < layer.sigmas()["a"] < 1e13


def test_a_sigma_without_a_closed_form_stays_as_given():
    layer = UncertaintyWeighting({"a": QuarticOfItsOwn(initial_sigma=1e13), "b": Gaussian()})
    predictions = {"a": np.ones((4, 1), "float32"), "b": np.ones((4, 1), "float32")}
    layer(predictions, predictions, training=True)
    assert layer.sigmas()["a"] == pytest.approx(1e13)


@pytest.mark.parametrize("update", ["trained", "closed_form"])
def test_an_overflow_without_a_label_changes_nothing(update, value_and_gradients):
    layer = UncertaintyWeighting({"a": Gaussian(missing=NAN), "b": Laplace()}, update=update)
    predictions = {"a": np.array([[1e20]]), "b": np.array([[0.0]])}
    targets = {"a": np.array([[NAN]]), "b": np.array([[1.0]])}
    layer(predictions)
    loss, (gradient,) = value_and_gradients(
        lambda: layer.combined_loss(predictions, targets, training=True, report=False),
        [layer.trainable_variables[0]],
    )
    # The labelled task costs √2 / σ · 1 + log σ, at its optimum of σ = √2. The other costs nothing.
    assert float(loss) == pytest.approx(1 + np.log(np.sqrt(2)), rel=1e-6)
    np.testing.assert_array_equal(gradient, [0, 0])
    assert layer.sigmas()["a"] == 1


@pytest.mark.parametrize(
    ("likelihood", "prediction", "target"),
    [(Gaussian(initial_sigma=1.0), [[1e30]], [[0.0]]), (Categorical(), [[1.0, 2.0]], [7])],
    ids=["an overflow", "a class out of range"],
)
def test_a_loss_that_is_not_finite_has_no_finite_gradient(
    likelihood, prediction, target, value_and_gradients
):
    layer = UncertaintyWeighting({"a": likelihood, "b": Gaussian(initial_sigma=1.0)})
    zeros = np.zeros((1, 1), "float32")
    layer({"a": np.array(prediction, "float32"), "b": zeros})
    a, b = keras.Variable(prediction), keras.Variable(zeros)
    loss, gradients = value_and_gradients(
        lambda: layer.combined_loss(
            {"a": a.value, "b": b.value},
            {"a": np.array(target), "b": zeros + 1},
            training=False,
            report=False,
        ),
        [a, b],
    )
    assert np.isnan(float(loss))
    # Not even of the other task: no step may hide that the loss was wrong.
    assert all(np.isnan(gradient).all() for gradient in gradients)


def test_sample_weights_that_cancel_leave_sigma_alone():
    layer = UncertaintyWeighting({"a": Gaussian(), "b": Laplace()})
    predictions = {task: np.array([[2.0], [1.0]]) for task in "ab"}
    targets = {task: np.zeros((2, 1)) for task in "ab"}
    layer(predictions)
    loss = layer.combined_loss(predictions, targets, np.array([1.0, -1.0]), training=True)
    assert float(loss) == 0
    assert layer.sigmas() == {"a": 1, "b": 1}


class TestBounds:
    """Many steps drive log-variances to their bounds, and a few bring them back."""

    # PyTorch runs its steps one by one.
    STEPS, STEPS_AT_ONCE = 3_000, 1 if keras.backend.backend() == "torch" else 500

    def fit(self, model, y, steps):
        batches = max(steps // 4, 1)
        x = np.ones((4 * batches, 1), "float32")
        y = {task: np.repeat(target, 4 * batches, axis=0) for task, target in y.items()}
        history = model.fit(x, y, batch_size=4, epochs=steps // batches, verbose=0).history
        assert all(np.all(np.isfinite(values)) for values in history.values()), history

    def test_sigma_stays_finite_at_its_bounds_and_comes_back(self):
        inputs = keras.Input((1,))
        # These predictions never change, so a tiny error stays tiny.
        outputs = {
            task: keras.layers.Dense(
                len(logits),
                kernel_initializer="zeros",
                bias_initializer=keras.initializers.Constant(np.array(logits)),
                trainable=False,
            )(inputs)
            for task, logits in {
                "right": [0.0],
                "absolutely": [0.0],
                "huber": [0.0],
                "perfect": [0.0],
                "surely": LOGITS[0],
                "hotter": LOGITS[0],
                "larger": [0.0],
            }.items()
        }
        model = MultiTaskModel(
            inputs,
            outputs,
            {
                "right": Gaussian(initial_sigma=1.0),
                "absolutely": Laplace(initial_sigma=1.0),
                "huber": Gibbs("huber", initial_sigma=1.0),
                "perfect": Gaussian(),
                "surely": Categorical(approximate=True),
                "hotter": Categorical(),
                "larger": Gaussian(),
            },
        )
        model.compile(keras.optimizers.Adam(0.1), steps_per_execution=self.STEPS_AT_ONCE)
        y = {
            "right": np.full((1, 1), 1e-18, "float32"),
            "absolutely": np.full((1, 1), 1e-18, "float32"),
            "huber": np.full((1, 1), 1e-18, "float32"),
            "perfect": np.zeros((1, 1), "float32"),
            "surely": np.zeros(1, "int32"),
            "hotter": np.ones(1, "int32"),
            "larger": np.full((1, 1), 3e13, "float32"),
        }
        self.fit(model, y, self.STEPS)
        ends = model.weighting.sigmas()
        for task in ("right", "absolutely", "huber"):
            assert ends[task] == pytest.approx(SMALLEST, rel=1e-5, abs=0), task
        # A task without any error says nothing of its noise.
        for task in ("perfect", "surely"):
            assert ends[task] == pytest.approx(1.0, rel=0.06), task
        assert ends["larger"] == pytest.approx(LARGEST, rel=1e-5)
        # A temperature only falls.
        assert ends["hotter"] == 1

        # These errors are near the bounds, because far larger gradients would stall Adam.
        small, large = (np.full((1, 1), residual, "float32") for residual in (1e-12, 1e12))
        self.fit(model, y | {"right": small, "absolutely": small, "larger": large}, 2000)
        back = model.weighting.sigmas()
        assert back["right"] == pytest.approx(1e-12, rel=0.1, abs=0)
        assert back["absolutely"] == pytest.approx(np.sqrt(2) * 1e-12, rel=0.1, abs=0)
        assert back["larger"] == pytest.approx(1e12, rel=0.1)


# As floats, both targets of the first case would equal the missing one. The other cases are at the
# ends of the integers' ranges, and beyond.
@pytest.mark.parametrize(
    ("dtype", "missing", "targets", "weights"),
    [
        ("int32", 2**24, [2**24, 2**24 + 1], [0, 1]),
        ("uint32", 2**32 - 1, [0, 2**32 - 1], [1, 0]),
        ("uint8", 255, [0, 255], [1, 0]),
        ("uint8", -1, [0, 255], [1, 1]),
        ("int8", -1, [0, -1], [1, 0]),
        ("int32", 2**70, [0, 1], [1, 1]),
    ],
)
def test_a_missing_integer_hides_itself_alone(dtype, missing, targets, weights):
    targets = np.array(targets, dtype)
    likelihood = Gaussian(missing=missing)
    tensors = {"task": (keras.ops.zeros(2), targets, None, None)}
    observations = observe(likelihood, 1, tensors, "float32")
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(observations.weights), [weights])
