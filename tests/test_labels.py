"""Arrays with labels of which the loss would be NaN are refused before a step, and no others."""

import tracemalloc

import keras
import numpy as np
import pandas as pd
import pytest

from keras_uncertainty_mtl import (
    Bernoulli,
    Categorical,
    Gaussian,
    Laplace,
    Likelihood,
    MultiTaskModel,
    NegativeBinomial,
    Ordinal,
    Poisson,
    Quantile,
    StudentT,
)
from keras_uncertainty_mtl._checks import check_labels

NAN, INF = float("nan"), float("inf")
X = np.ones((4, 2), "float32")


def model_of(likelihood, units=1):
    inputs = keras.Input((2,))
    outputs = {"b": keras.layers.Dense(units)(inputs), "a": keras.layers.Dense(1)(inputs)}
    model = MultiTaskModel(inputs, outputs, {"b": likelihood, "a": Gaussian()})
    model.compile("sgd")
    return model


def fit(model, labels, **arguments):
    return model.fit(X, {"b": labels, "a": np.ones(4)}, verbose=0, **arguments).history


class Batches(keras.utils.PyDataset):
    def __init__(self, labels):
        super().__init__()
        self.labels = labels

    def __len__(self):
        return 1

    def __getitem__(self, index):
        return X, {"b": self.labels, "a": np.ones((4, 1), "float32")}


NO_NUMBERS = {
    "a gap": (Gaussian(), 1, [1, NAN, 2, 3], r"finite numbers. Received: nan at \(1,"),
    "an infinity": (Laplace(), 1, [1, 2, INF, 3], "finite numbers. Received: inf"),
    "a gap of a quantile": (Quantile(0.1), 1, [NAN, NAN, 2, 3], "Received: nan"),
    "a gap of a heavy tail": (StudentT(), 1, [1, NAN, 2, 3], "Received: nan"),
    "a gap that is not the missing one": (
        Gaussian(missing=-1),
        1,
        [1, NAN, -1, 3],
        "Received: nan",
    ),
    "a class too high": (
        Categorical(),
        3,
        [0, 1, 3, 2],
        "whole numbers from 0 to 2.*Received: 3 at",
    ),
    "a missing class": (Categorical(), 3, [0, -1, 1, 2], "Received: -1 .*`missing`"),
    "another missing class": (Categorical(missing=255), 3, [0, -1, 255, 2], "Received: -1"),
    "half a class": (Categorical(missing=NAN), 3, [0, 1.5, NAN, 2], "Received: 1.5"),
    "yes or no as 1 or 2": (Bernoulli(), 1, [1, 2, 2, 1], "from 0 to 1. Received: 2"),
    "a count below 0": (Poisson(), 1, [1, -1, 2, 3], "from 0 to inf. Received: -1"),
    "a count of no label": (NegativeBinomial(), 1, [1, -1, 2, 3], "from 0 to inf"),
    "a rating too low": (Ordinal(1, 5), 1, [1, 0, 2, 3], "whole numbers from 1 to 5"),
    "a rating too high": (Ordinal(1, 5), 1, [1, 6, 2, 3], "whole numbers from 1 to 5.*Received: 6"),
    "half a rating": (Ordinal(1, 5), 1, [1, 2.5, 2, 3], "whole numbers from 1 to 5.*2.5"),
}


@pytest.mark.parametrize(
    ("likelihood", "units", "labels", "message"), NO_NUMBERS.values(), ids=NO_NUMBERS
)
class TestNoNumbers:
    def test_fit_and_evaluate_name_the_task(self, likelihood, units, labels, message):
        model = model_of(likelihood, units)
        labels = np.array(labels)
        targets = {"b": labels, "a": np.ones(4)}
        before = model.get_weights()
        with pytest.raises(ValueError, match=f"Task 'b': .*{message}"):
            model.fit(X, targets, verbose=0)
        with pytest.raises(ValueError, match=f"Task 'b': .*{message}"):
            model.evaluate(X, targets, verbose=0)
        good = {"b": np.ones(4), "a": np.ones(4)}
        with pytest.raises(ValueError, match=f"Task 'b': .*{message}"):
            model.fit(X, good, validation_data=(X, targets), verbose=0)
        for one, other in zip(before, model.get_weights(), strict=True):
            np.testing.assert_array_equal(one, other)

    @pytest.mark.filterwarnings("ignore:Model .* the loss of")
    def test_in_a_data_set_they_make_the_loss_nan(self, likelihood, units, labels, message):
        dtype = likelihood.target_dtype if NAN not in labels else "float32"
        column = np.array(labels, dtype if units > 1 else "float32")[:, np.newaxis]
        assert np.isnan(model_of(likelihood, units).evaluate(Batches(column), verbose=0)[0])


@pytest.mark.parametrize(
    ("likelihood", "units", "labels"),
    [
        (Gaussian(missing=NAN), 1, np.array([1, NAN, 2, 3])),
        (Gaussian(missing=NAN), 1, pd.Series([1, None, 2, 3])),
        (Categorical(missing=-1), 3, np.array([0, -1, 1, 2], "int8")),
        (Categorical(missing=255), 3, np.array([0, 255, 1, 2], "uint8")),
        (Categorical(missing=-1), 3, pd.Series(["x", None, "y", "x"], dtype="category").cat.codes),
        (Bernoulli(missing=-1), 1, np.array([0.0, -1, 0.5, 1])),
        (Bernoulli(), 1, np.array([True, False, True, True])),
        (Poisson(missing=-1), 1, np.array([0, -1, 1, 2])),
        (Poisson(missing=-99.9), 1, np.array([0, -99.9, 1, 2], "float32")),
        (Ordinal(1, 5, missing=0), 1, np.array([1, 0, 5, 2])),
    ],
    ids=[
        "gap",
        "series",
        "class",
        "image",
        "category",
        "flag",
        "truth",
        "count",
        "fraction",
        "rating",
    ],
)
def test_labels_that_are_missing_or_in_range_train(likelihood, units, labels):
    assert np.isfinite(fit(model_of(likelihood, units), labels)["b_loss"])


def test_labels_without_weight_may_be_anything():
    weights = {"b": np.array([1.0, 0.0, 1.0, 1.0]), "a": np.ones(4)}
    history = fit(model_of(Gaussian()), np.array([1, NAN, 2, 3]), sample_weight=weights)
    assert np.isfinite(history["loss"])


def test_weights_and_validation_data_may_be_given_by_position():
    labels, weights = np.array([1, NAN, 2, 3]), np.array([1.0, 0.0, 1.0, 1.0])
    targets, weights = {"b": labels, "a": np.ones(4)}, {"b": weights, "a": np.ones(4)}
    model = model_of(Gaussian())
    loss, *_ = model.evaluate(X, targets, 4, 0, weights)
    assert np.isfinite(loss)
    with pytest.raises(ValueError, match="Task 'b'"):
        model.fit(X, {"b": np.ones(4), "a": np.ones(4)}, 4, 1, 0, None, 0.0, (X, targets))


def test_rows_that_are_not_read_may_be_anything():
    labels = {"b": np.array([1, 2, NAN, NAN]), "a": np.ones(4)}
    model = model_of(Gaussian())
    history = model.fit(
        X, labels, batch_size=2, steps_per_epoch=1, shuffle=False, verbose=0
    ).history
    assert np.isfinite(history["loss"])


def test_rounding_errors_of_double_precision_are_no_other_labels():
    three = 3 * 0.1 * 10  # 3.0000000000000004
    for likelihood, labels in (
        (Ordinal(1, 5), [1, three, 5, 2]),
        (Bernoulli(), [0, 1 + 3e-16, 1, 1]),
    ):
        assert np.isfinite(fit(model_of(likelihood), np.array(labels))["b_loss"])


def test_labels_that_a_subclass_changes_may_be_anything():
    class FromOne(MultiTaskModel):
        def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=None):
            return super().compute_loss(x, y - 1, y_pred, sample_weight, training)

    inputs = keras.Input((2,))
    model = FromOne(inputs, {"a": keras.layers.Dense(3)(inputs)}, {"a": Categorical()})
    model.compile("sgd")
    assert np.isfinite(model.fit(X, np.array([1, 2, 3, 3]), verbose=0).history["loss"])


def test_the_labels_of_images_take_little_memory():
    labels = np.zeros((5000, 32, 32), "uint8")
    labels[0, 0, 0], labels[4999, 31, 31] = 255, 9
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"Received: 9 at \(4999, 31, 31\)"):
        check_labels({"a": Categorical(missing=255)}, labels, keras.Input((32, 32, 9)), masked=())
    assert tracemalloc.get_traced_memory()[1] < 2 * labels.nbytes
    tracemalloc.stop()


@pytest.mark.parametrize("restored", [False, True])
def test_labels_under_a_mask_may_be_anything(restored, tmp_path):
    inputs = keras.Input((3, 2))
    features = keras.layers.Masking()(inputs)
    outputs = {task: keras.layers.Dense(1)(each) for task, each in [("b", features), ("a", inputs)]}
    model = MultiTaskModel(inputs, outputs, {"b": Gaussian(), "a": Gaussian()})
    model.compile("sgd")
    if restored:
        model.save(tmp_path / "model.keras")
        model = keras.models.load_model(tmp_path / "model.keras")
    x = np.ones((4, 3, 2), "float32")
    x[:, 2] = 0
    labels = np.where(x[..., 0] == 0, NAN, 1.0)
    history = model.fit(x, {"b": labels, "a": np.ones((4, 3))}, verbose=0).history
    assert np.isfinite(history["loss"])
    with pytest.raises(ValueError, match=r"Task 'a': .*nan"):
        model.fit(x, {"b": labels, "a": labels}, verbose=0)


def test_losses_of_a_users_own_may_take_anything():
    def error_of_known(targets, predictions):
        errors = keras.ops.square(targets - predictions)
        return keras.ops.where(keras.ops.isnan(targets), 0.0, errors)[:, 0]

    class Known(Likelihood):
        def loss(self, targets, predictions):
            errors = keras.ops.square(targets - predictions)
            return keras.ops.where(keras.ops.isnan(targets), 0.0, errors)

    for loss in (error_of_known, Known()):
        history = model_of(loss).evaluate(X, {"b": np.array([1, NAN, 2, 3]), "a": np.ones(4)})
        assert np.isfinite(history[0])


def test_strings_are_refused_with_the_name_of_the_task():
    for labels in (np.array(list("abca")), np.array(list("abca"), object)):
        with pytest.raises(ValueError, match=r"Task 'b': .*numbers.*Received: .*dtype.*factorize"):
            fit(model_of(Categorical(), 3), labels)


def test_a_table_is_to_be_taken_apart():
    table = pd.DataFrame({"a": np.ones(4), "b": np.ones(4)})
    model = model_of(Gaussian())
    with pytest.raises(ValueError, match=r"\['b', 'a'\].*one DataFrame.*\{task: table\[task\]"):
        model.fit(X, table, verbose=0)
    model.fit(X, {task: table[task] for task in ("a", "b")}, verbose=0)
