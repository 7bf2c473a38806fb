"""The layer adds the combined loss, and its log-variances follow the errors."""

import math
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy import special, stats

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

GAUSSIAN_CONSTANT = 0.5 * np.log(2 * np.pi)
LAPLACE_CONSTANT = 0.5 * np.log(2)


def gaussian_nll(y, f, sigma):
    return -stats.norm.logpdf(y, f, sigma) - GAUSSIAN_CONSTANT


def laplace_nll(y, f, sigma):
    return -stats.laplace.logpdf(y, f, sigma / np.sqrt(2)) - LAPLACE_CONSTANT


def categorical_nll(y, f, sigma):
    log_probabilities = special.log_softmax(f / sigma**2, axis=-1)
    return -np.take_along_axis(log_probabilities, y[..., None], axis=-1)[..., 0]


def added_loss(layer, predictions, targets, sample_weight=None, training=False):
    """The loss that the layer adds when it is called."""
    outputs = layer(predictions, targets, sample_weight=sample_weight, training=training)
    keras.tree.assert_same_structure(outputs, predictions)
    (loss,) = layer.losses
    return float(loss)


@pytest.fixture
def batch():
    rng = np.random.default_rng(0)
    predictions = {
        "depth": rng.normal(size=(6, 4, 5, 1)).astype("float32"),
        "pose": rng.normal(size=(6, 3)).astype("float32"),
        "classes": rng.normal(size=(6, 4, 5, 7)).astype("float32"),
    }
    targets = {
        "depth": rng.normal(size=(6, 4, 5, 1)).astype("float32"),
        "pose": rng.normal(size=(6, 3)).astype("float32"),
        "classes": rng.integers(0, 7, size=(6, 4, 5)).astype("int32"),
    }
    return predictions, targets


def tasks(**missing):
    return {
        "depth": Laplace(initial_sigma=0.7, missing=missing.get("depth")),
        "pose": Gaussian(initial_sigma=2.0, missing=missing.get("pose")),
        "classes": Categorical(initial_sigma=1.3, missing=missing.get("classes")),
    }


def element_nlls(predictions, targets):
    """The negative log-likelihood of each element, from SciPy's distributions."""
    return {
        "depth": laplace_nll(targets["depth"], predictions["depth"], 0.7),
        "pose": gaussian_nll(targets["pose"], predictions["pose"], 2.0),
        "classes": categorical_nll(targets["classes"], predictions["classes"], 1.3),
    }


def test_the_loss_is_the_sum_of_the_tasks_mean_negative_log_likelihoods(batch):
    _predictions, _targets = batch
    expected = sum(np.mean(nll) for nll in element_nlls(*batch).values())
    assert added_loss(UncertaintyWeighting(tasks()), *batch) == pytest.approx(expected, rel=1e-5)


def test_no_loss_is_added_without_targets(batch):
    predictions, _ = batch
    layer = UncertaintyWeighting(tasks())
    outputs = layer(predictions)
    assert layer.losses == []
    for task, prediction in predictions.items():
        # The logits are at their temperature, σ² = 1.3².
        expected = prediction / 1.3**2 if task == "classes" else prediction
        np.testing.assert_allclose(keras.ops.convert_to_numpy(outputs[task]), expected, rtol=1e-6)


@pytest.mark.parametrize("sequence", [list, tuple])
def test_sequences_go_by_the_order_of_the_tasks(batch, sequence):
    predictions, targets = (sequence(part[task] for task in tasks()) for part in batch)
    # The tasks are not in the order of the alphabet.
    by_name = added_loss(UncertaintyWeighting(tasks()), *batch)
    assert added_loss(UncertaintyWeighting(tasks()), predictions, targets) == pytest.approx(by_name)


def test_one_task_needs_no_structure(batch):
    predictions, targets = batch
    layer = UncertaintyWeighting({"pose": Gaussian(initial_sigma=2.0)})
    expected = element_nlls(*batch)["pose"].mean()
    assert added_loss(layer, predictions["pose"], targets["pose"]) == pytest.approx(
        expected, rel=1e-5
    )


def test_fifty_tasks_add_up():
    rng = np.random.default_rng(0)
    names = [f"task_{index}" for index in range(50)]
    sigmas = rng.uniform(0.1, 10.0, size=50)
    predictions, targets = ({name: rng.normal(size=(8, 1)) for name in names} for _ in range(2))
    layer = UncertaintyWeighting(
        {name: Gaussian(initial_sigma=sigma) for name, sigma in zip(names, sigmas, strict=True)}
    )
    expected = sum(
        gaussian_nll(targets[name], predictions[name], sigma).mean()
        for name, sigma in zip(names, sigmas, strict=True)
    )
    assert added_loss(layer, predictions, targets) == pytest.approx(expected, rel=1e-5)
    assert len(layer.trainable_weights) == 1


def test_scalars_fit_columns():
    y, f = np.array([1.0, 2.0, 4.0]), np.array([[1.5], [1.0], [3.0]])
    layer = UncertaintyWeighting({"a": Gaussian(initial_sigma=1.0)})
    # A silent broadcast of (3,) over (3, 1) would average nine differences.
    expected = gaussian_nll(y, f[:, 0], 1.0).mean()
    assert added_loss(layer, f, y) == pytest.approx(expected)
    assert added_loss(layer, f[:, 0], y[:, None]) == pytest.approx(expected)


def test_loss_weights_multiply_the_tasks_losses(batch):
    layer = UncertaintyWeighting(tasks(), loss_weights={"pose": 3.0, "classes": 0.0})
    nlls = {task: nll.mean() for task, nll in element_nlls(*batch).items()}
    expected = nlls["depth"] + 3.0 * nlls["pose"]
    assert added_loss(layer, *batch) == pytest.approx(expected, rel=1e-5)


def sample_weights():
    return np.array([0.0, 1.0, 2.0, 0.5, 0.0, 3.0], "float32")


def element_weights():
    return np.random.default_rng(3).uniform(0, 2, size=(6, 4, 5)).astype("float32")


@pytest.mark.parametrize("weights_of_depth", [sample_weights, element_weights])
@pytest.mark.parametrize("with_missing", [False, True])
@pytest.mark.parametrize("with_loss_weights", [False, True])
def test_weights_and_missing_labels_count_alone_and_together(
    batch, weights_of_depth, with_missing, with_loss_weights
):
    predictions, targets = batch
    nlls = element_nlls(*batch)
    weights = {
        "depth": weights_of_depth(),
        "pose": sample_weights()[:, None],
        "classes": np.ones(6, "float32"),
    }
    elements = {
        "depth": np.broadcast_to(
            weights["depth"].reshape(*weights["depth"].shape, *[1] * (4 - weights["depth"].ndim)),
            nlls["depth"].shape,
        ).copy(),
        "pose": np.broadcast_to(weights["pose"], nlls["pose"].shape).copy(),
        "classes": np.ones_like(nlls["classes"]),
    }
    if with_missing:
        rng = np.random.default_rng(1)
        for task, value in (("depth", np.nan), ("pose", -1.0), ("classes", 255)):
            hidden = rng.random(targets[task].shape) < 0.4
            targets[task][hidden] = value
            elements[task][hidden] = 0.0
    loss_weights = {"depth": 1.0, "pose": 0.25, "classes": 4.0} if with_loss_weights else {}
    expected = sum(
        loss_weights.get(task, 1.0) * np.average(nlls[task], weights=elements[task])
        for task in nlls
    )
    missing = {"depth": np.nan, "pose": -1, "classes": 255} if with_missing else {}
    layer = UncertaintyWeighting(tasks(**missing), loss_weights=loss_weights)
    assert added_loss(layer, predictions, targets, weights) == pytest.approx(expected, rel=1e-5)


def test_one_tensor_of_sample_weights_serves_all_tasks(batch):
    one = added_loss(UncertaintyWeighting(tasks()), *batch, sample_weights())
    each = dict.fromkeys(tasks(), sample_weights())
    assert one == pytest.approx(added_loss(UncertaintyWeighting(tasks()), *batch, each))


def test_the_scale_of_the_sample_weights_does_not_matter(batch):
    light = added_loss(UncertaintyWeighting(tasks()), *batch, sample_weights())
    heavy = added_loss(UncertaintyWeighting(tasks()), *batch, 1000 * sample_weights())
    assert light == pytest.approx(heavy, rel=1e-5)


@pytest.mark.backends("tensorflow", reason="uses a TensorFlow tape")
@pytest.mark.parametrize("hide", ["missing", "weight"])
def test_a_task_without_a_label_has_no_loss_and_no_gradient(batch, hide):
    predictions, targets = batch
    nlls = element_nlls(*batch)
    weights = None
    if hide == "missing":
        targets["pose"][:] = np.nan
    else:
        weights = {"depth": np.ones(6), "pose": np.zeros(6), "classes": np.ones(6)}
    layer = UncertaintyWeighting(tasks(pose=np.nan))
    layer.build({task: value.shape for task, value in predictions.items()})
    inputs = {task: tf.Variable(value) for task, value in predictions.items()}
    with tf.GradientTape() as tape:
        loss = layer.combined_loss(
            layer({task: tf.convert_to_tensor(value) for task, value in inputs.items()}),
            targets,
            weights,
            training=False,
        )
    gradients = tape.gradient(loss, [layer.trainable_variables[0], inputs["pose"], inputs["depth"]])
    assert float(loss) == pytest.approx(nlls["depth"].mean() + nlls["classes"].mean(), rel=1e-5)
    # In the order of the tasks' names: classes, depth, pose.
    assert gradients[0][1] != 0
    assert gradients[0][2] == 0
    np.testing.assert_array_equal(gradients[1], 0)
    assert np.all(np.isfinite(gradients[2]))


def test_the_loss_of_channels_is_the_mean_over_all_their_elements():
    rng = np.random.default_rng(0)
    y, f = rng.normal(size=(2, 50, 3))
    y[rng.random(y.shape) < [0.1, 0.5, 0.9]] = np.nan
    sigmas = [0.5, 1.0, 4.0]
    layer = UncertaintyWeighting(
        {"a": Gaussian(per_channel=True, initial_sigma=sigmas, missing=np.nan)}
    )
    expected = np.nanmean(gaussian_nll(y, f, np.array(sigmas)))
    assert added_loss(layer, f, y) == pytest.approx(expected, rel=1e-5)
    np.testing.assert_allclose(layer.sigmas()["a"], sigmas, rtol=1e-6)
    np.testing.assert_allclose(layer.task_weights()["a"], 0.5 / np.square(sigmas), rtol=1e-6)


def test_sigmas_and_task_weights_are_numbers_in_the_units_of_the_tasks():
    layer = UncertaintyWeighting(
        {
            "gaussian": Gaussian(initial_sigma=4.0),
            "laplace": Laplace(initial_sigma=4.0),
            "approximate": Categorical(approximate=True, initial_sigma=4.0),
            "exact": Bernoulli(initial_sigma=4.0),
            "gibbs": Gibbs("huber", initial_sigma=4.0),
        },
        loss_weights={"gibbs": 2.0},
    )
    layer.build({**dict.fromkeys(layer.tasks, (None, 1)), "approximate": (None, 3)})
    assert layer.sigmas() == pytest.approx(dict.fromkeys(layer.tasks, 4.0))
    assert layer.task_weights() == pytest.approx(
        {
            "gaussian": 1 / (2 * 16),
            "laplace": np.sqrt(2) / 4,
            "approximate": 1 / 16,
            "exact": 1 / 16,
            "gibbs": 2 / 16,
        }
    )


class TestStart:
    """With `initial_sigma=None`, σ starts from the first training batch."""

    def layer(self, **keywords):
        return UncertaintyWeighting(
            {
                "metres": Gaussian(),
                "millimetres": Laplace(missing=np.nan),
                "classes": Categorical(),
                "rough": Categorical(approximate=True),
                "channels": Gaussian(per_channel=True),
            },
            **keywords,
        )

    def data(self):
        rng = np.random.default_rng(0)
        y = {
            "metres": rng.normal(size=(32, 1)) * 1e3,
            "millimetres": rng.normal(size=(32, 2)) * 1e-3,
            "classes": rng.integers(0, 3, size=32),
            "rough": rng.integers(0, 3, size=32),
            "channels": rng.normal(size=(32, 3)) * [0.1, 1.0, 10.0],
        }
        f = {task: np.zeros_like(y[task]) for task in ("metres", "millimetres", "channels")}
        f |= {task: rng.normal(size=(32, 3)) for task in ("classes", "rough")}
        return f, y

    def closed_forms(self, f, y):
        return {
            "metres": np.sqrt(np.mean(y["metres"] ** 2)),
            "millimetres": np.sqrt(2) * np.mean(np.abs(y["millimetres"])),
            "classes": 1.0,
            "rough": np.sqrt(2 * categorical_nll(y["rough"], f["rough"], 1.0).mean()),
            "channels": np.sqrt(np.mean(y["channels"] ** 2, axis=0)),
        }

    def assert_sigmas(self, layer, expected):
        for task, sigma in layer.sigmas().items():
            np.testing.assert_allclose(sigma, expected[task], rtol=1e-5, err_msg=task)

    def test_the_first_training_batch_sets_sigma_to_its_optimum(self):
        f, y = self.data()
        layer = self.layer()
        layer(f, y, training=True)
        self.assert_sigmas(layer, self.closed_forms(f, y))

    def test_the_same_batch_again_moves_nothing(self):
        f, y = self.data()
        layer = self.layer()
        layer(f, y, training=True)
        layer(f, y, training=True)
        self.assert_sigmas(layer, self.closed_forms(f, y))

    def test_a_given_sigma_counts_as_one_batch_beside_the_first(self):
        layer = UncertaintyWeighting({"number": Gaussian(initial_sigma=3.0)})
        predictions, targets = np.zeros((4, 1)), np.full((4, 1), 5.0)
        layer.build((4, 1))
        loss = layer.combined_loss(predictions, targets, training=True)
        variance = (3.0**2 + 5.0**2) / 2
        assert float(loss) == pytest.approx(0.5 * 25 / variance + 0.5 * np.log(variance))
        assert layer.sigmas()["number"] == pytest.approx(np.sqrt(variance))

    def test_evaluation_does_not_start_sigma(self):
        f, y = self.data()
        layer = self.layer()
        layer(f, y, training=False)
        self.assert_sigmas(layer, dict.fromkeys(y, 1.0))

    def test_a_frozen_layer_does_not_start_sigma(self):
        f, y = self.data()
        layer = self.layer(trainable=False)
        layer(f, y, training=True)
        self.assert_sigmas(layer, dict.fromkeys(y, 1.0))

    def test_a_task_starts_from_the_first_batch_that_observes_it(self):
        f, y = self.data()
        layer = self.layer()
        unlabelled = y | {"millimetres": np.full_like(y["millimetres"], np.nan)}
        layer(f, unlabelled, training=True)
        self.assert_sigmas(layer, self.closed_forms(f, y) | {"millimetres": 1.0})
        layer(f, y, training=True)
        self.assert_sigmas(layer, self.closed_forms(f, y))

    def test_a_perfect_first_batch_leaves_everything_finite(self):
        layer = UncertaintyWeighting({"a": Gaussian(), "b": Laplace()})
        zeros = {"a": np.zeros((4, 1)), "b": np.zeros((4, 1))}
        assert np.isfinite(added_loss(layer, zeros, zeros, training=True))
        assert all(np.isfinite(sigma) and sigma > 0 for sigma in layer.sigmas().values())

    @pytest.mark.backends("tensorflow", reason="uses a TensorFlow tape")
    def test_a_log_variance_at_its_start_has_no_gradient(self):
        f, y = self.data()
        layer = self.layer()
        layer.build({task: value.shape for task, value in f.items()})
        with tf.GradientTape() as tape:
            loss = layer.combined_loss(f | {"metres": f["metres"] + 1 / 3}, y, training=True)
        gradient = tape.gradient(loss, layer.trainable_variables[0])
        np.testing.assert_array_equal(gradient, 0)


class TestSetLogVariances:
    def layer(self):
        layer = UncertaintyWeighting(
            {
                "a": Gaussian(initial_sigma=2.0),
                "b": Laplace(per_channel=True),
                "c": Categorical(initial_sigma=0.5),
            }
        )
        x = keras.Input((2,))
        layer({"a": x, "b": x, "c": x})
        return layer

    def test_they_are_the_logarithms_of_the_variances(self):
        layer = self.layer()
        np.testing.assert_allclose(layer.log_variances()["a"], np.log(4), rtol=1e-6)
        values = {"a": -60.0, "b": np.array([-3.0, 60.0]), "c": 5}
        layer.set_log_variances(values)
        for task, value in layer.log_variances().items():
            np.testing.assert_allclose(value, values[task], rtol=1e-6)
            np.testing.assert_allclose(layer.sigmas()[task], np.exp(0.5 * np.array(value)), 1e-6)

    def test_tasks_that_are_left_out_stay(self):
        layer = self.layer()
        layer.set_log_variances({"b": [1.0, math.nan]})
        layer.set_log_variances({"b": [math.nan, 2.0]})
        np.testing.assert_allclose(layer.log_variances()["b"], [1, 2], rtol=1e-6)
        np.testing.assert_allclose(layer.sigmas()["a"], 2, rtol=1e-6)
        np.testing.assert_allclose(layer.sigmas()["c"], 0.5, rtol=1e-6)

    @pytest.mark.parametrize(
        ("task", "value"),
        [
            ("unknown", 0.0),
            ("a", math.inf),
            ("a", -math.inf),
            ("a", 60.1),
            ("a", [0.0]),
            ("a", "high"),
            ("a", None),
            ("b", 0.0),
            ("b", [0.0]),
            ("b", [0.0, math.inf]),
            ("c", [0.0, 0.0]),
        ],
    )
    def test_anything_else_is_an_error_and_changes_nothing(self, task, value):
        layer = self.layer()
        before = layer.log_variances()
        with pytest.raises(ValueError, match=f"Task '{task}': .*log-variance"):
            layer.set_log_variances({"a": 1.0, task: value})
        np.testing.assert_equal(layer.log_variances(), before)

    def test_a_layer_that_is_not_built_has_none(self):
        with pytest.raises(ValueError, match="no log-variances yet"):
            UncertaintyWeighting({"a": "mse"}).set_log_variances({"a": 1.0})


@pytest.mark.backends("tensorflow", reason="makes TensorFlow tensors of half precision")
class TestTypes:
    @pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "float16", "bfloat16"])
    def test_losses_and_log_variances_are_single_precision(self, policy):
        keras.config.set_dtype_policy(policy)
        try:
            layer = UncertaintyWeighting({"a": Gaussian(initial_sigma=1000.0)})
        finally:
            keras.config.set_dtype_policy("float32")
        # In half precision the square of 300 overflows, and 4096 + 0.25 is 4096.
        predictions = tf.fill((4, 1), tf.cast(4096.0, layer.compute_dtype))
        targets = tf.fill((4, 1), 4096.0 - 300.25)
        outputs = layer(predictions, targets)
        assert outputs.dtype == predictions.dtype
        assert layer.trainable_variables[0].dtype == "float32"
        assert layer.losses[0].dtype == tf.float32
        expected = gaussian_nll(4096.0 - 300.25, 4096.0, 1000.0)
        assert float(layer.losses[0]) == pytest.approx(expected, rel=1e-6)

    def test_a_layer_of_double_precision_adds_a_loss_of_double_precision(self):
        layer = UncertaintyWeighting({"a": Gaussian(initial_sigma=1.0)}, dtype="float64")
        layer(np.full((2, 1), 1.0), np.full((2, 1), 1.0 + 1e-12))
        assert layer.losses[0].dtype == tf.float64
        assert float(layer.losses[0]) > 0

    @pytest.mark.parametrize("dtype", ["uint8", "int8", "int64", "float32"])
    def test_a_missing_value_keeps_its_sign_whatever_the_labels_type(self, dtype):
        labels = np.array([0, 1, 2, 1]).astype(dtype)
        logits = np.random.default_rng(0).normal(size=(4, 3))
        layer = UncertaintyWeighting({"a": Categorical(missing=-1)})
        expected = categorical_nll(labels.astype(int), logits, 1.0)
        assert added_loss(layer, logits, labels) == pytest.approx(expected.mean(), rel=1e-5)
        if dtype != "uint8":
            labels[0] = -1
            assert added_loss(layer, logits, labels) == pytest.approx(expected[1:].mean(), rel=1e-5)


class TestTargetInputs:
    @pytest.mark.backends("tensorflow", "torch", reason="Keras on JAX drops a layer's metrics")
    def test_class_ids_are_floats_where_nan_marks_missing_ones(self):
        logits = keras.Input((3,), name="logits")
        weighting = UncertaintyWeighting({"kind": Categorical(missing=np.nan)})
        targets = weighting.target_inputs(logits)
        model = keras.Model([logits, targets["kind"]], weighting(logits, targets))
        model.compile()
        f, y = np.random.default_rng(0).normal(size=(4, 3)), np.array([0, np.nan, 2, np.nan])
        reported = model.evaluate([f, y], verbose=0, return_dict=True)["kind_loss"]
        expected = categorical_nll(np.array([0, 2]), f[[0, 2]], 1.0).mean()
        assert reported == pytest.approx(expected, rel=1e-5)

    def test_inputs_have_the_shapes_dtypes_and_names_of_the_targets(self):
        predictions = {
            "number": keras.Input((1,)),
            "image": keras.Input((None, 8, 3)),
            "ids": keras.Input((4, 5)),
            "one_hot": keras.Input((5,), batch_size=16),
            "flags": keras.Input((6,)),
        }
        layer = UncertaintyWeighting(
            {
                "number": "mse",
                "image": Laplace(),
                "ids": Categorical(),
                "one_hot": Categorical(sparse=False),
                "flags": Bernoulli(),
            }
        )
        inputs = layer.target_inputs(predictions)
        assert {task: (t.name, t.shape, t.dtype) for task, t in inputs.items()} == {
            "number": ("number_target", (None, 1), "float32"),
            "image": ("image_target", (None, None, 8, 3), "float32"),
            "ids": ("ids_target", (None, 4), "int32"),
            "one_hot": ("one_hot_target", (16, 5), "float32"),
            "flags": ("flags_target", (None, 6), "float32"),
        }


@keras.saving.register_keras_serializable(package="tests")
class Quartic(Likelihood):
    """¼ · ((y - f) / σ)⁴ + ½ · log σ²"""

    scale, power = 0.25, 2.0

    def loss(self, targets, predictions):
        return (targets - predictions) ** 4


@keras.saving.register_keras_serializable(package="tests")
class StudentT(Likelihood):
    """A likelihood without the standard form."""

    def __init__(self, degrees_of_freedom=4.0, **kwargs):
        super().__init__(**kwargs)
        self.degrees_of_freedom = degrees_of_freedom

    def loss(self, targets, predictions):
        return abs(targets - predictions)

    def negative_log_likelihood(self, targets, predictions, log_variance):
        nu = self.degrees_of_freedom
        residual = (targets - predictions) ** 2 * keras.ops.exp(-log_variance)
        return 0.5 * (nu + 1) * keras.ops.log1p(residual / nu) + 0.5 * log_variance

    def get_config(self):
        return {"degrees_of_freedom": self.degrees_of_freedom, **super().get_config()}


def test_users_likelihoods_add_their_own_losses():
    rng = np.random.default_rng(0)
    y, f = rng.normal(size=(2, 20, 1))
    layer = UncertaintyWeighting(
        {"t": StudentT(5.0, initial_sigma=2.0), "q": Quartic(initial_sigma=0.5)}
    )
    t = -stats.t.logpdf(y, 5.0, f, 2.0)
    constant = -stats.t.logpdf(0.0, 5.0, 0.0, 1.0)
    expected = np.mean(t) - constant + np.mean(0.25 * ((y - f) / 0.5) ** 4) + np.log(0.5)
    assert added_loss(layer, [f, f], [y, y]) == pytest.approx(expected, rel=1e-5)


class TestTrained:
    """A trained σ is the closed form of the running mean until an optimizer corrects it."""

    @pytest.fixture
    def sigmas(self, compiled):
        """A function of scales of noise, which returns σ after each batch, trained by nothing."""

        def run(scales, initial_sigma=None, likelihood=Gaussian):
            rng = np.random.default_rng(0)
            layer = UncertaintyWeighting({"noise": likelihood(initial_sigma=initial_sigma)})
            zeros = np.zeros((64, 1))
            layer(zeros)
            step = compiled(lambda y: layer.combined_loss(zeros, y, training=True))
            trace = []
            for scale in scales:
                step(scale * rng.normal(size=zeros.shape))
                trace.append(layer.sigmas()["noise"])
            return np.array(trace)

        return run

    def test_sigma_stays_at_the_scale_of_steady_errors(self, sigmas):
        np.testing.assert_allclose(sigmas([1.0] * 300)[20:], 1.0, rtol=0.1)

    @pytest.mark.parametrize("initial_sigma", [1e-3, 1e3])
    def test_sigma_recovers_from_a_bad_start(self, sigmas, initial_sigma):
        trace = sigmas([1.0] * 600, initial_sigma)
        np.testing.assert_allclose(trace[-50:], 1.0, rtol=0.1)

    def test_sigma_rises_with_the_errors(self, sigmas):
        trace = sigmas(np.repeat([1.0, 100.0], 200))
        np.testing.assert_allclose(trace[-20:], 100.0, rtol=0.15)

    @pytest.mark.parametrize("likelihood", [Gaussian, Laplace])
    def test_one_corrupt_batch_cannot_switch_a_task_off(self, sigmas, likelihood):
        scales = np.ones(120)
        scales[60] = 1e4
        trace = sigmas(scales, likelihood=likelihood)
        assert trace.max() < 2 * np.median(trace)

    def test_a_corrupt_label_is_forgotten(self):
        x = np.random.default_rng(0).normal(size=(300, 32, 1))
        x[100, 0] = 1e4
        inputs = keras.Input((1,))
        nothing = keras.layers.Rescaling(0.0)(inputs)
        model = MultiTaskModel(inputs, {"noise": nothing}, {"noise": Gaussian()})
        model.compile(keras.optimizers.Adam(0.01))
        sigmas = []
        for batch in x:
            model.train_on_batch(batch, batch)
            sigmas.append(model.weighting.sigmas()["noise"])
        np.testing.assert_allclose(sigmas[200:], np.std(x[:100]), rtol=0.1)

    @pytest.mark.parametrize("update", ["trained", "closed_form"])
    def test_a_trained_weight_corrects_the_closed_form(self, update):
        layer = UncertaintyWeighting({"noise": Gaussian()}, update=update)
        layer(np.zeros((4, 1)), np.full((4, 1), 3.0), training=True)
        before = layer.sigmas()["noise"]
        (theta,) = layer.trainable_variables
        theta.assign([0.1])
        if update == "trained":
            assert layer.sigmas()["noise"] > 1.1 * before
        else:
            assert layer.sigmas()["noise"] == before


class TestClosedForm:
    """With `update="closed_form"`, σ is the optimum of a running mean of the errors."""

    SCALES = (1e3, 1.0, 1e-3)

    def batches(self, count):
        rng = np.random.default_rng(0)
        for _ in range(count):
            yield {
                "squares": rng.normal(scale=self.SCALES[0], size=(16, 2)),
                "values": rng.normal(scale=self.SCALES[1], size=(16, 1)),
                "channels": rng.normal(scale=self.SCALES[2], size=(16, 3)),
            }

    def layer(self, **keywords):
        return UncertaintyWeighting(
            {
                "squares": Gaussian(**keywords),
                "values": Laplace(missing=np.nan, **keywords),
                "channels": Gaussian(per_channel=True, **keywords),
            },
            update="closed_form",
        )

    def track(self, layer, batches):
        for y in batches:
            layer({task: np.zeros_like(value) for task, value in y.items()}, y, training=True)

    def expected(self, batches, start=None):
        """The closed forms of the running means; a start counts as one batch."""
        means, count = start, 0.0 if start is None else 1.0
        for y in batches:
            losses = {
                "squares": np.mean(y["squares"] ** 2),
                "values": np.mean(np.abs(y["values"])),
                "channels": np.mean(y["channels"] ** 2, axis=0),
            }
            # Over all batches up to the tenth, and later over a tenth of all.
            count = count + 1 if count < 10 else count + 0.1
            means = {
                task: loss if means is None else means[task] + (loss - means[task]) / count
                for task, loss in losses.items()
            }
        return {
            "squares": np.sqrt(means["squares"]),
            "values": np.sqrt(2) * means["values"],
            "channels": np.sqrt(means["channels"]),
        }

    def assert_sigmas(self, layer, expected):
        for task, sigma in layer.sigmas().items():
            np.testing.assert_allclose(sigma, expected[task], rtol=1e-4, err_msg=task)

    def test_sigma_is_the_optimum_of_a_running_mean(self):
        layer = self.layer()
        self.track(layer, self.batches(30))
        self.assert_sigmas(layer, self.expected(self.batches(30)))

    def test_a_given_sigma_counts_as_one_batch(self):
        sigmas = dict(zip(("squares", "values", "channels"), self.SCALES, strict=True))
        layer = UncertaintyWeighting(
            {
                "squares": Gaussian(initial_sigma=2 * sigmas["squares"]),
                "values": Laplace(initial_sigma=2 * sigmas["values"]),
                "channels": Gaussian(per_channel=True, initial_sigma=2 * sigmas["channels"]),
            },
            update="closed_form",
        )
        self.track(layer, self.batches(15))
        start = {
            "squares": (2 * sigmas["squares"]) ** 2,
            "values": 2 * sigmas["values"] / np.sqrt(2),
            "channels": np.full(3, (2 * sigmas["channels"]) ** 2),
        }
        self.assert_sigmas(layer, self.expected(self.batches(15), start))

    def test_a_batch_without_labels_does_not_count(self):
        layer = self.layer()
        first, second, third = self.batches(3)
        self.track(layer, [first, second | {"values": np.full((16, 1), np.nan)}, third])
        values = [np.mean(np.abs(y["values"])) for y in (first, third)]
        assert layer.sigmas()["values"] == pytest.approx(np.sqrt(2) * np.mean(values), rel=1e-4)

    @pytest.mark.parametrize("frozen", [False, True])
    def test_neither_evaluation_nor_a_frozen_layer_moves_sigma(self, frozen):
        layer = self.layer()
        self.track(layer, self.batches(2))
        before = layer.sigmas()
        layer.trainable = not frozen
        for y in self.batches(2):
            layer(y, {task: 3 * value for task, value in y.items()}, training=frozen)
        self.assert_sigmas(layer, before)

    def test_the_optimizer_moves_the_exact_forms_alone(self):
        rng = np.random.default_rng(0)
        inputs = keras.Input((4,))
        # Zeros are a guess, from which the network only gets better. Its temperature then falls.
        logits = keras.layers.Dense(3, kernel_initializer="zeros")(inputs)
        outputs = {"number": keras.layers.Dense(1)(inputs), "class": logits}
        weighting = UncertaintyWeighting(
            {"number": Gaussian(), "class": Categorical()}, update="closed_form"
        )
        model = MultiTaskModel(inputs, outputs, weighting)
        model.compile(keras.optimizers.Adam(1e-2))
        x = rng.normal(size=(64, 4))
        y = {"number": rng.normal(size=(64, 1)), "class": x[:, :3].argmax(axis=-1)}
        with warnings.catch_warnings():
            # Keras warns of weights without a gradient.
            warnings.simplefilter("error")
            model.fit(x, y, epochs=3, verbose=0)
        # In the order of the tasks' names.
        classes, number = keras.ops.convert_to_numpy(weighting.trainable_variables[0])
        assert number == 0
        assert classes < 0

    @pytest.mark.parametrize("update", ["trained", "closed_form"])
    def test_a_temperature_is_that_of_its_weight_after_any_number_of_batches(self, update):
        layer = UncertaintyWeighting(
            {"number": Gaussian(), "class": Categorical(initial_sigma=0.3)}, update=update
        )
        predictions = {"number": np.ones((4, 1)), "class": np.ones((4, 3))}
        targets = {"number": np.zeros((4, 1)), "class": np.arange(4) % 3}
        layer(predictions)
        (weight,) = layer.trainable_variables
        initial, before = weight.numpy(), layer.sigmas()["class"]
        for moved in np.random.default_rng(0).normal(size=30):
            weight.assign([initial[0] + moved, initial[1]])
            layer.combined_loss(predictions, targets, training=True)
        assert layer.sigmas()["class"] != before
        weight.assign(initial)
        assert layer.sigmas()["class"] == before


def test_config_makes_the_same_layer():
    layer = UncertaintyWeighting(
        {
            "z": StudentT(7.0, missing=-1),
            "a": keras.losses.Huber(delta=2.0),
            "m": Categorical(sparse=False, approximate=True),
            "b": "mae",
        },
        loss_weights={"a": 2.0},
        update="closed_form",
        name="weights",
    )
    config = keras.saving.serialize_keras_object(layer)
    again = keras.saving.deserialize_keras_object(config)
    assert keras.saving.serialize_keras_object(again) == config
    assert list(again.tasks) == ["z", "a", "m", "b"]
    assert again.name == "weights"
    assert again.tasks["z"].degrees_of_freedom == 7.0
    assert again.loss_weights["a"] == 2.0
    assert again.update == "closed_form"
    assert isinstance(again.tasks["b"], Laplace)


def test_a_closed_form_follows_jumps_of_26_orders_of_magnitude():
    layer = UncertaintyWeighting({"y": Gaussian(initial_sigma=1e-13)}, update="closed_form")
    predictions = {"y": np.zeros((4, 1), "float32")}
    layer(predictions)
    mean_loss, count = 1e-26, 1.0  # in double precision
    for error in (1.0, 1e13, *[1e-13] * 20, 1e13, *[1.0] * 20):
        layer.combined_loss(predictions, {"y": np.full((4, 1), error, "float32")}, training=True)
        count = count + 1 if count < 10 else count + 0.1
        # A batch counts as at most ten times the mean.
        mean_loss += (min(error**2, 10 * mean_loss) - mean_loss) / count
        assert layer.sigmas()["y"] == pytest.approx(np.sqrt(mean_loss), rel=1e-4)


@pytest.mark.backends("jax", reason="jax.checkpoint needs JAX")
def test_a_checkpoint_of_jax_has_the_same_gradients():
    import jax

    rng = np.random.default_rng(0)
    predictions = {"depth": rng.normal(size=(8, 1)), "classes": rng.normal(size=(8, 3))}
    targets = {"depth": rng.normal(size=(8, 1)), "classes": rng.integers(3, size=8)}
    layer = UncertaintyWeighting({"depth": Gaussian(initial_sigma=0.5), "classes": Categorical()})
    layer(predictions)

    def loss(weights, state):
        mapping = [(theta, weights), (running, state)]
        with keras.StatelessScope(state_mapping=mapping):
            answers = layer(predictions)
            return layer.combined_loss(answers, targets, training=True, report=False)

    (theta,) = layer.trainable_variables
    (running,) = [each for each in layer.non_trainable_variables if each.name == "running"]
    arguments = theta.value, running.value
    expected = jax.grad(loss)(*arguments)
    assert np.all(expected)
    np.testing.assert_allclose(jax.grad(jax.checkpoint(loss))(*arguments), expected, rtol=1e-6)


def test_a_log_variance_in_closed_form_has_no_gradient(value_and_gradients):
    tasks = {"depth": Gaussian(), "size": Laplace(per_channel=True)}
    layer = UncertaintyWeighting(tasks, update="closed_form")
    predictions = {"depth": np.full((4, 1), 100.0), "size": np.full((4, 2), [3.0, 5.0])}
    targets = {task: np.zeros_like(values) for task, values in predictions.items()}
    layer(predictions)
    # Every log-variance is far from the optimum of the loss.
    loss, (gradient,) = value_and_gradients(
        lambda: layer.combined_loss(predictions, targets, training=False, report=False),
        [layer.trainable_variables[0]],
    )
    assert float(loss) > 1000
    np.testing.assert_array_equal(gradient, np.zeros(3))


class TestCalledWithoutTargets:
    def test_predictions_come_back_as_they_are(self):
        layer = UncertaintyWeighting({"a": Gaussian()})
        layer.build([(None, 1)])
        predictions = {"a": keras.ops.ones((4, 1))}
        assert layer(predictions, training=True)["a"] is predictions["a"]
        assert not layer.losses

    def test_an_unknown_argument_is_refused(self):
        layer = UncertaintyWeighting({"a": Gaussian()})
        layer.build([(None, 1)])
        with pytest.raises(TypeError, match="target"):
            layer([keras.ops.ones((4, 1))], target=[keras.ops.ones((4, 1))])

    def test_an_activity_regularizer_counts(self):
        layer = UncertaintyWeighting(
            {"a": Gaussian()}, activity_regularizer=keras.regularizers.L2(0.5)
        )
        layer.build([(None, 1)])
        layer([keras.ops.ones((4, 1))])
        # Keras divides by the size of the batch.
        assert float(layer.losses[0]) == pytest.approx(0.5)

    def test_a_subclass_may_have_a_call_of_its_own(self):
        class Doubling(UncertaintyWeighting):
            def call(self, predictions, targets=None, sample_weight=None, training=False):
                return [2 * prediction for prediction in predictions]

        layer = Doubling({"a": Gaussian()})
        layer.build([(None, 1)])
        np.testing.assert_array_equal(layer([keras.ops.ones((4, 1))])[0], np.full((4, 1), 2))
