"""Weights of classes, against Keras's `fit(class_weight=…)`, NumPy and SciPy."""

import json

import keras
import numpy as np
import pytest
from keras import ops
from scipy import special

from keras_uncertainty_mtl import Bernoulli, Categorical, MultiTaskModel, UncertaintyWeighting

WEIGHTS = {0: 0.5, 2: 7.0}
NAN = float("nan")
SAMPLES = 40
rng = np.random.default_rng(0)
X = rng.normal(size=(SAMPLES, 4)).astype("float32")
KERNEL = rng.normal(size=(4, 3)).astype("float32")
CLASSES = np.argmax(X @ KERNEL + rng.gumbel(size=(SAMPLES, 3)), axis=-1)


def network():
    inputs = keras.Input((4,))
    layer = keras.layers.Dense(3, use_bias=False)
    outputs = layer(inputs)
    layer.set_weights([KERNEL])
    return inputs, outputs, layer


def cross_entropies(logits, classes):
    return -special.log_softmax(logits, axis=-1)[np.arange(len(classes)), classes]


@pytest.mark.parametrize("approximate", [False, True])
@pytest.mark.parametrize("sparse", [True, False])
def test_class_weights_train_as_those_of_keras(sparse, approximate):
    y = CLASSES if sparse else np.eye(3, dtype="float32")[CLASSES]
    inputs, outputs, layer = network()
    kind = "SparseCategoricalCrossentropy" if sparse else "CategoricalCrossentropy"
    loss = getattr(keras.losses, kind)(from_logits=True, reduction="mean_with_sample_weight")
    stock = keras.Model(inputs, outputs)
    stock.compile(keras.optimizers.SGD(0.1), loss=loss)
    # On TensorFlow the dict must have all classes.
    stock.fit(X, y, class_weight={1: 1.0} | WEIGHTS, batch_size=SAMPLES, verbose=0)

    inputs, outputs, own = network()
    likelihood = Categorical(
        sparse, approximate=approximate, class_weight=WEIGHTS, initial_sigma=1.0
    )
    model = MultiTaskModel(inputs, {"kind": outputs}, {"kind": likelihood})
    model.compile(keras.optimizers.SGD(0.1))
    history = model.fit(X, {"kind": y}, batch_size=SAMPLES, verbose=0).history
    losses, weights = cross_entropies(X @ KERNEL, CLASSES), np.array([0.5, 1.0, 7.0])[CLASSES]
    assert history["kind_loss"][0] == pytest.approx(np.average(losses, weights=weights), rel=1e-5)
    if not approximate:  # Here σ follows the first batch before the network does.
        np.testing.assert_allclose(own.get_weights()[0], layer.get_weights()[0], rtol=1e-5)


def loss_of(likelihood, targets, predictions, weight=None):
    layer = UncertaintyWeighting({"task": likelihood})
    layer.build(predictions.shape)
    loss = layer.combined_loss(
        {"task": predictions}, {"task": targets}, weight, training=False, report=False
    )
    return float(ops.convert_to_numpy(loss))


@pytest.mark.parametrize("missing", [-1, 255, 1])
@pytest.mark.parametrize("dtype", ["int32", "uint8", "float32"])
def test_class_weights_work_with_missing_labels_and_sample_weights(missing, dtype):
    if missing < 0 and dtype == "uint8":
        missing = 254
    logits, weight = X @ KERNEL, np.abs(X[:, 0])
    targets = CLASSES.copy()
    targets[::3] = missing
    shown = targets != missing
    expected = np.average(
        cross_entropies(logits[shown], CLASSES[shown]),
        weights=(weight * np.array([0.5, 1.0, 7.0])[CLASSES])[shown],
    )
    likelihood = Categorical(class_weight=WEIGHTS, missing=missing)
    loss = loss_of(likelihood, targets.astype(dtype), logits, weight)
    assert loss == pytest.approx(expected, rel=1e-5)


def test_a_class_of_weight_zero_counts_for_nothing():
    logits, shown = X @ KERNEL, CLASSES != 1
    expected = cross_entropies(logits[shown], CLASSES[shown]).mean()
    assert loss_of(Categorical(class_weight={1: 0}), CLASSES, logits) == pytest.approx(expected)
    assert loss_of(Categorical(class_weight={1: 0}), np.ones(SAMPLES, int), logits) == 0


def test_a_weight_does_not_hide_a_class_out_of_range():
    classes = CLASSES.copy()
    classes[3] = 9
    assert np.isnan(loss_of(Categorical(class_weight={0: 0}), classes, X @ KERNEL))


@pytest.mark.parametrize("pos_weight", [3.0, [0.5, 1.0, 20.0]])
@pytest.mark.parametrize("per_channel", [False, True])
def test_positive_labels_count_more(pos_weight, per_channel):
    logits = X @ KERNEL
    targets = rng.integers(2, size=logits.shape).astype("float32")
    targets[rng.random(logits.shape) < 0.4] = NAN
    shown = ~np.isnan(targets)
    losses = -special.log_expit((2 * targets - 1) * logits)
    weights = np.where(targets == 1, pos_weight, 1.0)
    likelihood = Bernoulli(pos_weight=pos_weight, per_channel=per_channel, missing=NAN)
    expected = np.average(losses[shown], weights=weights[shown])
    assert loss_of(likelihood, targets, logits) == pytest.approx(expected, rel=1e-5)


def test_weights_of_classes_are_left_out_of_calibration_and_prediction():
    flags = (CLASSES[:, None] == [0, 1, 2]).astype("float32")
    answers = []
    for options in ({}, {"class_weight": WEIGHTS}, {"pos_weight": [9.0, 1.0, 2.0]}):
        inputs, outputs, _ = network()
        kind = {"class_weight": options.get("class_weight")}
        flag = {"pos_weight": options.get("pos_weight")}
        tasks = {
            "kind": Categorical(**kind),
            "coarse": Categorical(approximate=True, **kind),
            "flags": Bernoulli(per_channel=True, **flag),
        }
        model = MultiTaskModel(inputs, dict.fromkeys(tasks, outputs), tasks)
        model.compile("adam")
        y = {"kind": CLASSES, "coarse": CLASSES, "flags": flags}
        sigmas = model.calibrate(X, y, verbose=0)
        predicted = model.predictive_model().predict(X, verbose=0)
        answers.append([*sigmas.values(), *(predicted[name] for name in sorted(predicted))])
    for weighted in answers[1:]:
        for one, other in zip(weighted, answers[0], strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-6)


@pytest.mark.parametrize(
    "likelihood", [Categorical(class_weight=WEIGHTS), Bernoulli(pos_weight=[1, 2, 3])]
)
def test_weights_survive_saving(likelihood):
    written = json.dumps(keras.saving.serialize_keras_object(likelihood))
    again = keras.saving.deserialize_keras_object(json.loads(written))
    assert again.get_config() == likelihood.get_config()


@pytest.mark.parametrize("weight", [{}, [1.0], {"a": 1.0}, {0: -1.0}, {-1: 1.0}, {0: NAN}, 3])
def test_wrong_class_weights_are_refused(weight):
    with pytest.raises(ValueError, match=r"`class_weight` must be a dict.*Received: "):
        Categorical(class_weight=weight)


@pytest.mark.parametrize("weight", [-1.0, NAN, "2", [[1.0]], [1.0, -2.0]])
def test_wrong_weights_of_positives_are_refused(weight):
    with pytest.raises(ValueError, match=r"`pos_weight` must be a finite.*Received: "):
        Bernoulli(pos_weight=weight)


@pytest.mark.parametrize(
    ("likelihood", "targets", "message"),
    [
        (Categorical(class_weight={3: 2.0}), CLASSES, "class ids below 3.*3: 2.0"),
        (Bernoulli(pos_weight=[1, 2]), np.zeros((SAMPLES, 3)), "each of 3 columns.*2.0"),
    ],
)
def test_weights_of_another_number_are_refused(likelihood, targets, message):
    with pytest.raises(ValueError, match=rf"Task 'task': .*{message}"):
        loss_of(likelihood, targets, X @ KERNEL)
