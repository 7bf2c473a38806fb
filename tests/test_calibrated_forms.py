"""Approximate classifications and probabilities get a temperature, heteroscedastic σ a factor."""

import keras
import numpy as np
import pytest
from scipy import optimize, special
from sklearn.calibration import CalibratedClassifierCV
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

from keras_uncertainty_mtl import Bernoulli, Categorical, Gaussian, Laplace, MultiTaskModel

SAMPLES = 1500
TASKS = {
    "kind": Categorical(approximate=True, missing=-1),
    "one_hot": Categorical(sparse=False, approximate=True),
    "kind_of_probabilities": Categorical(from_logits=False, approximate=True),
    "flag": Bernoulli(approximate=True),
    "flag_of_probabilities": Bernoulli(from_logits=False, approximate=True),
    "columns": Bernoulli(approximate=True, per_channel=True),
}
SIZES = {"kind": 4, "one_hot": 4, "kind_of_probabilities": 4, "columns": 2}
SHARPNESS = {"kind": 3.0, "one_hot": 0.3, "flag": 4.0, "columns": np.array([0.5, 3.0])}


def draw(seed):
    """Logits that are too sharp or too flat, and labels."""
    rng = np.random.default_rng(seed)
    logits, labels = {}, {}
    for task in TASKS:
        f = 1.5 * rng.normal(size=(SAMPLES, SIZES.get(task, 1)))
        if SIZES.get(task, 1) == 4:
            labels[task] = np.argmax(f + rng.gumbel(size=f.shape), axis=-1)
        else:
            labels[task] = (f + rng.logistic(size=f.shape) > 0).astype("float32")
        logits[task] = (SHARPNESS.get(task, 2.0) * f).astype("float32")
    labels["kind"][::5] = -1
    return logits, labels


def make_model():
    inputs = {task: keras.Input((SIZES.get(task, 1),), name=task) for task in TASKS}
    outputs = dict(inputs)
    for task, activation in (("kind_of", "softmax"), ("flag_of", "sigmoid")):
        task = f"{task}_probabilities"
        outputs[task] = keras.layers.Activation(activation)(inputs[task])
    return MultiTaskModel(inputs, outputs, TASKS)


def targets(labels):
    return labels | {"one_hot": np.eye(4, dtype="float32")[labels["one_hot"]]}


def log_probabilities(logits, inverse):
    """The logarithms of the probabilities of all classes, for flags those of no and yes."""
    if logits.shape[-1] == 1:
        return special.log_expit(inverse * logits * [-1, 1])
    return special.log_softmax(inverse * logits, axis=-1)


def temperature(logits, labels):
    """The temperature of maximum likelihood, by SciPy."""
    labels, logits = labels.astype(int).ravel(), logits.astype("float64")

    def nll(inverse):
        log_p = log_probabilities(logits, inverse)[labels >= 0]
        return -np.mean(log_p[np.arange(len(log_p)), labels[labels >= 0]])

    return 1 / optimize.minimize_scalar(nll, bounds=(1e-2, 1e2), options={"xatol": 1e-9}).x


@pytest.fixture(scope="module")
def calibrated():
    model = make_model()
    logits, labels = draw(0)
    x, y = draw(1)
    before = model.predict(x, verbose=0), model.predictive_model().predict(x, verbose=0)
    sigmas = model.calibrate(logits, targets(labels), batch_size=400, verbose=0)
    after = model.predict(x, verbose=0), model.predictive_model().predict(x, verbose=0)
    return logits, labels, x, y, before, after, sigmas


def test_temperatures_are_those_of_scipy(calibrated):
    logits, labels, x, _, _, (_, predicted), _ = calibrated
    for task in TASKS:
        for column in range(2) if task == "columns" else [slice(None)]:
            at = (slice(None), column) if task == "columns" else (slice(None),)
            column_of = [np.reshape(a[task][at], (SAMPLES, -1)) for a in (logits, x)]
            found = temperature(column_of[0], labels[task][at])
            expected = np.exp(log_probabilities(column_of[1].astype("float64"), 1 / found))
            answer = np.reshape(predicted[f"{task}_probabilities"][at], (SAMPLES, -1))
            expected = expected if answer.shape[-1] == 4 else expected[:, 1:]
            np.testing.assert_allclose(answer, expected, atol=2e-4, err_msg=task)


def test_held_out_likelihood_is_that_of_scikit_learns_temperature_scaling(calibrated):
    logits, labels, x, y, (_, before), (_, after), _ = calibrated
    for task in TASKS.keys() - {"columns"}:
        known, new = labels[task].ravel() >= 0, y[task].ravel() >= 0
        own = [np.squeeze(p[f"{task}_probabilities"])[new] for p in (before, after)]
        truth = y[task].ravel()[new].astype(int)
        scikit = CalibratedClassifierCV(
            FrozenEstimator(same_logits(logits[task].shape[-1])), method="temperature"
        )
        scikit.fit(logits[task][known], labels[task].ravel()[known].astype(int))
        theirs = log_loss(truth, scikit.predict_proba(x[task][new]))
        assert log_loss(truth, own[1]) == pytest.approx(theirs, rel=0.01)
        assert log_loss(truth, own[1]) < 0.97 * log_loss(truth, own[0])


def same_logits(size):
    """A fitted classifier of scikit-learn whose logits are its inputs."""
    classes = max(size, 2)
    rng = np.random.default_rng(0)
    model = LogisticRegression().fit(rng.normal(size=(20, size)), np.arange(20) % classes)
    model.coef_, model.intercept_ = np.eye(size), np.zeros(size)
    return model


def test_the_network_and_the_weight_of_the_loss_are_without_the_temperature(calibrated):
    logits, labels, _, _, (before, _), (after, _), sigmas = calibrated
    for task in TASKS:
        np.testing.assert_array_equal(after[task], before[task])
    # σ² is still twice the mean cross-entropy at temperature 1, the closed form of Eq. 10.
    log_p = log_probabilities(logits["flag"].astype("float64"), 1.0)
    loss = -np.mean(log_p[np.arange(SAMPLES), labels["flag"].ravel().astype(int)])
    assert sigmas["flag"] == pytest.approx(np.sqrt(2 * loss), rel=1e-5)


def test_a_model_without_calibration_answers_with_the_probabilities_of_its_network(calibrated):
    _, _, x, _, (_, before), _, _ = calibrated
    np.testing.assert_allclose(
        before["kind_of_probabilities_probabilities"],
        special.softmax(x["kind_of_probabilities"], axis=-1),
        rtol=1e-5,
    )
    np.testing.assert_allclose(
        before["kind_probabilities"], special.softmax(x["kind"], axis=-1), rtol=1e-4, atol=1e-7
    )


def test_probabilities_of_0_and_1_calibrate():
    x = keras.Input((1,))
    model = MultiTaskModel(x, x, {"a": Bernoulli(from_logits=False, approximate=True)})
    p = np.repeat([0.0, 1.0, 0.5], [50, 50, 20]).astype("float32")[:, None]
    y = p.copy()
    y[[0, 60]] = 1 - y[[0, 60]]
    y[100:110] = 1
    model.calibrate(p, y, verbose=0)
    answers = model.predictive_model().predict(p[[0, 50, 100]], verbose=0)["a_probabilities"]
    np.testing.assert_allclose(answers[:, 0], [0.02, 0.98, 0.5], atol=1e-4)


@pytest.mark.parametrize("likelihood", [Gaussian, Laplace])
@pytest.mark.parametrize("per_channel", [False, True])
def test_the_noise_of_each_element_is_calibrated_by_a_factor(likelihood, per_channel):
    rng = np.random.default_rng(0)
    h = rng.normal(size=(5000, 2))
    noise = rng.normal if likelihood is Gaussian else rng.laplace
    y = np.exp(0.5 * h) * noise(size=h.shape) * [0.2, 5.0]
    f = np.concatenate([np.zeros_like(h), h], axis=-1).astype("float32")
    x = keras.Input((4,))
    tasks = {"a": likelihood(heteroscedastic=True, per_channel=per_channel)}
    model = MultiTaskModel(x, keras.layers.Activation("linear")(x), tasks)
    model.calibrate(f, y, verbose=0)
    answers = model.predictive_model().predict(f, verbose=0)
    names = ("mean", "standard_deviation") if likelihood is Gaussian else ("location", "scale")
    location, scale = (answers[f"a_{name}"] for name in names)
    # A factor is of maximum likelihood where errors, in units of their own scale, have a unit one.
    power = 2 if likelihood is Gaussian else 1
    unit = np.abs((y - location) / scale) ** power
    np.testing.assert_allclose(np.mean(unit, axis=0 if per_channel else None), 1, rtol=1e-4)
    np.testing.assert_allclose(np.ptp(scale / np.exp(0.5 * h), axis=0), 0, atol=1e-4)
