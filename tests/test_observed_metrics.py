"""The metrics of `compile` see the elements that the loss sees, and no others."""

import warnings
from functools import partial
from multiprocessing import get_context

import keras
import numpy as np
import pytest
from keras import ops
from sklearn import metrics as sk

from keras_uncertainty_mtl import (
    Bernoulli,
    Categorical,
    Gaussian,
    Laplace,
    MultiTaskModel,
    Ordinal,
    UncertaintyWeighting,
)

NAN = float("nan")
COUNT = 24


def model_of(tasks, shapes, **arguments):
    """A model whose outputs are its inputs, but for a factor to train; exact forms start at σ 1."""
    inputs = {task: keras.Input(shape, name=task) for task, shape in shapes.items()}
    outputs = {task: Scale()(tensor) for task, tensor in inputs.items()}
    model = MultiTaskModel(inputs, outputs, tasks)
    model.compile(keras.optimizers.SGD(0.0), **arguments)
    return model


@keras.saving.register_keras_serializable(package="test_observed_metrics")
class Scale(keras.layers.Layer):
    """Multiplies by a trainable 1."""

    def __init__(self, **arguments):
        super().__init__(**arguments)
        self.supports_masking = True

    def build(self, _):
        self.factor = self.add_weight(shape=(), initializer="ones")

    def call(self, x):
        return x * self.factor


@keras.saving.register_keras_serializable(package="test_observed_metrics")
class WorstError(keras.metrics.Metric):
    """A class of a user's own: the largest error of a sample of weight."""

    def __init__(self, name="worst", dtype=None):
        super().__init__(name=name, dtype=dtype)
        self.worst = self.add_variable((), initializer="zeros", name="worst")

    def update_state(self, y_true, y_pred, sample_weight=None):
        errors = ops.max(ops.abs(ops.cast(y_true, y_pred.dtype) - y_pred), axis=-1)
        if sample_weight is not None:
            errors = ops.where(ops.cast(sample_weight, errors.dtype) > 0, errors, 0.0)
        self.worst.assign(ops.maximum(self.worst, ops.max(errors)))

    def result(self):
        return ops.convert_to_tensor(self.worst)


@keras.saving.register_keras_serializable(package="test_observed_metrics")
def log_ratio(y_true, y_pred):
    return ops.abs(ops.log(y_true) - ops.log(y_pred))


def mean_of_batch(y_true, y_pred):
    return ops.mean(ops.abs(y_true - y_pred))


def reported(model, x, y, **arguments):
    """The numbers of an evaluation in batches, which must be those of an epoch that learns nothing.

    Both also when validation follows training.
    """
    numbers = model.evaluate(x, y, batch_size=10, verbose=0, return_dict=True, **arguments)
    weights = arguments.get("sample_weight")
    validation = (x, y) if weights is None else (x, y, weights)
    history = model.fit(
        x, y, batch_size=10, verbose=0, validation_data=validation, shuffle=False, **arguments
    ).history
    for name, value in numbers.items():
        if name != "loss" and not name.endswith("_sigma"):
            for prefix in ("", "val_"):
                np.testing.assert_allclose(history[prefix + name], [value], 2e-5, err_msg=name)
    return numbers


def classes(shape=(COUNT,), count=4, seed=0):
    """Logits of classes, their labels, and which labels are known."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(*shape, count)).astype("float32")
    return logits, rng.integers(count, size=shape), rng.random(shape) < 0.5


def numbers(shape=(COUNT, 3), seed=0):
    rng = np.random.default_rng(seed)
    predictions, targets = rng.uniform(1, 3, size=(2, *shape)).astype("float32")
    return predictions, targets, rng.random(shape) < 0.6


@pytest.mark.parametrize("options", [{}, {"run_eagerly": True}, {"jit_compile": True}], ids=str)
@pytest.mark.parametrize("argument", ["metrics", "weighted_metrics"])
def test_accuracy_is_that_of_the_labelled(argument, options):
    logits, labels, known = classes()
    model = model_of(
        {"a": Categorical(missing=-1)},
        {"a": (4,)},
        **{argument: ["accuracy", "sparse_categorical_crossentropy"]},
        **options,
    )
    result = reported(model, {"a": logits}, {"a": np.where(known, labels, -1)})
    expected = sk.accuracy_score(labels[known], logits.argmax(-1)[known])
    assert result["accuracy"] == pytest.approx(expected)
    assert np.isfinite(result["sparse_categorical_crossentropy"])


def test_accuracy_of_one_hot_targets_is_over_labelled_rows():
    logits, labels, known = classes()
    targets = np.where(known[:, None], np.eye(4)[labels], NAN)
    counted = ~np.isnan(targets).any(-1)
    tasks = {"a": Categorical(sparse=False, missing=NAN)}
    auc = keras.metrics.AUC(num_thresholds=2000, from_logits=True, name="auc")
    model = model_of(tasks, {"a": (4,)}, metrics=["acc", "mae", auc])
    result = reported(model, {"a": logits}, {"a": targets})
    accuracy = sk.accuracy_score(labels[counted], logits.argmax(-1)[counted])
    assert result["acc"] == pytest.approx(accuracy)
    error = np.abs(logits - targets)[counted].mean()
    assert result["mae"] == pytest.approx(error, rel=1e-5)
    area = sk.roc_auc_score(targets[counted].ravel(), logits[counted].ravel())
    assert result["auc"] == pytest.approx(area, abs=2e-3)


@pytest.mark.parametrize("ignored", [-1, 255])
def test_mean_iou_and_accuracy_of_pixels(ignored):
    logits, labels, known = classes((COUNT, 4, 3))
    metrics = [keras.metrics.MeanIoU(4, sparse_y_pred=False, name="iou"), "accuracy"]
    model = model_of({"a": Categorical(missing=ignored)}, {"a": (4, 3, 4)}, metrics=metrics)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "You are passing weight as")
        result = reported(model, {"a": logits}, {"a": np.where(known, labels, ignored)})
    right, guessed = labels[known], logits.argmax(-1)[known]
    iou = sk.jaccard_score(right, guessed, average="macro")
    assert result["iou"] == pytest.approx(iou, rel=1e-5)
    assert result["accuracy"] == pytest.approx(sk.accuracy_score(right, guessed), rel=1e-5)


def test_binary_metrics_of_partly_labelled_rows():
    logits, _, known = numbers()
    logits = logits - 2
    labels = np.random.default_rng(3).integers(2, size=known.shape)
    metrics = [
        "accuracy",
        keras.metrics.BinaryCrossentropy(from_logits=True, name="bce"),
        keras.metrics.AUC(num_thresholds=2000, from_logits=True, name="auc"),
        keras.metrics.AUC(
            num_thresholds=2000, from_logits=True, multi_label=True, name="auc_of_labels"
        ),
        keras.metrics.Precision(thresholds=0.0, name="precision"),
        keras.metrics.Recall(thresholds=0.0, class_id=1, name="recall_of_1"),
        keras.metrics.TruePositives(thresholds=0.0, name="true_positives"),
        keras.metrics.BinaryIoU([1], threshold=0.0, name="iou"),
    ]
    model = model_of({"a": Bernoulli(missing=-1)}, {"a": (3,)}, metrics=metrics)
    result = reported(model, {"a": logits}, {"a": np.where(known, labels, -1)})
    right, scores = labels[known], logits[known]
    columns = [(labels[known[:, i], i], logits[known[:, i], i]) for i in range(3)]
    expected = {
        "accuracy": sk.accuracy_score(right, scores > 0),
        "bce": sk.log_loss(right, 1 / (1 + np.exp(-scores))),
        "auc": sk.roc_auc_score(right, scores),
        "auc_of_labels": np.mean([sk.roc_auc_score(*column) for column in columns]),
        "precision": sk.precision_score(right, scores > 0),
        "recall_of_1": sk.recall_score(columns[1][0], columns[1][1] > 0),
        "true_positives": np.sum(right[scores > 0]),
        "iou": sk.jaccard_score(right, scores > 0),
    }
    for name, value in expected.items():
        assert result[name] == pytest.approx(value, abs=2e-3 if "auc" in name else 1e-5), name
    assert result["bce"] == pytest.approx(result["a_loss"], rel=1e-5)


@pytest.mark.parametrize("average", ["micro", "macro", "weighted", None])
def test_f_scores_of_partly_labelled_rows(average):
    rng = np.random.default_rng(0)
    probabilities = rng.random((60, 3)).astype("float32")
    labels = (rng.random((60, 3)) < probabilities).astype("int32")
    known, weights = rng.random((60, 3)) < 0.6, rng.uniform(1, 3, 60).astype("float32")
    metrics = [keras.metrics.F1Score(average, 0.5), keras.metrics.FBetaScore(average, 2.0, 0.5)]
    tasks = {"a": Bernoulli(from_logits=False, approximate=True, missing=-1)}
    weighted = [keras.metrics.F1Score(average, 0.5)]
    model = model_of(tasks, {"a": (3,)}, metrics=metrics, weighted_metrics=weighted)
    given = {"a": np.where(known, labels, -1)}
    result = model.evaluate(
        {"a": probabilities}, given, 16, sample_weight={"a": weights}, verbose=0, return_dict=True
    )
    # A column that is not known is neither right nor wrong in any column.
    right, guessed = labels * known, (probabilities > 0.5) * known
    arguments = {"beta": 2.0, "average": average}
    expected = sk.fbeta_score(right, guessed, **arguments)
    np.testing.assert_allclose(result["fbeta_score"], expected, rtol=1e-5)
    arguments["beta"] = 1.0
    expected = sk.fbeta_score(right, guessed, **arguments)
    np.testing.assert_allclose(result["f1_score"], expected, rtol=1e-5)
    expected = sk.fbeta_score(right, guessed, sample_weight=weights, **arguments)
    np.testing.assert_allclose(result["weighted_f1_score"], expected, rtol=1e-5)


@pytest.mark.parametrize("missing", [None, -1])
def test_accuracy_of_ratings_rounds_the_estimate(missing):
    rng = np.random.default_rng(0)
    labels = rng.integers(1, 6, 60)
    estimates = (labels + rng.normal(scale=0.6, size=60)).astype("float32")
    known = np.ones(60, bool) if missing is None else rng.random(60) < 0.6
    metrics = ["accuracy"]
    tasks = {"stars": Ordinal(1, 5, missing=missing)}
    model = model_of(tasks, {"stars": (1,)}, metrics=metrics)
    given = {"stars": np.where(known, labels, -1)}
    result = reported(model, {"stars": estimates[:, None]}, given)
    right = np.clip(np.round(estimates), 1, 5)[known]
    assert result["accuracy"] == pytest.approx(sk.accuracy_score(labels[known], right))


@pytest.mark.parametrize("missing", [NAN, -1.0])
def test_elements_count_one_by_one_and_vectors_as_a_whole(missing):
    predictions, targets, known = numbers()
    metrics = [
        "mae",
        "mse",
        keras.metrics.RootMeanSquaredError(name="rmse"),
        "mape",
        "MSLE",
        keras.losses.huber,
        log_ratio,
        keras.metrics.R2Score(class_aggregation=None, name="r2"),
        keras.metrics.CosineSimilarity(name="cosine"),
        WorstError(),
        keras.losses.CosineSimilarity(name="cosine_loss"),
    ]
    model = model_of({"a": Gaussian(missing=missing)}, {"a": (3,)}, metrics=metrics)
    x, y = {"a": predictions}, {"a": np.where(known, targets, missing)}
    history = model.fit(x, y, batch_size=10, verbose=0).history
    result = model.evaluate(x, y, batch_size=10, verbose=0, return_dict=True)
    right, guessed = targets[known], predictions[known]
    error = right - guessed
    rows = known.all(-1)
    right_rows, guessed_rows = targets[rows], predictions[rows]
    norms = np.linalg.norm(right_rows, axis=-1) * np.linalg.norm(guessed_rows, axis=-1)
    cosine = np.mean(np.sum(right_rows * guessed_rows, -1) / norms)
    expected = {
        "mae": sk.mean_absolute_error(right, guessed),
        "mse": sk.mean_squared_error(right, guessed),
        "rmse": sk.root_mean_squared_error(right, guessed),
        "mape": 100 * sk.mean_absolute_percentage_error(right, guessed),
        "MSLE": sk.mean_squared_log_error(right, guessed),
        "huber": np.mean(np.where(np.abs(error) < 1, error**2 / 2, np.abs(error) - 0.5)),
        "log_ratio": np.mean(np.abs(np.log(right) - np.log(guessed))),
        "r2": [sk.r2_score(targets[k, i], predictions[k, i]) for i, k in enumerate(known.T)],
        "cosine": cosine,
        "worst": np.abs(right_rows - guessed_rows).max(),
        "cosine_loss": -cosine,
    }
    for name, value in expected.items():
        np.testing.assert_allclose(result[name], value, rtol=1e-4, err_msg=name)
        np.testing.assert_allclose(history[name][0], value, rtol=1e-4, err_msg=name)


def test_weights_of_zero_are_left_out_and_others_count_in_weighted_metrics_alone():
    predictions, targets, _ = numbers((COUNT, 2))
    weights = np.random.default_rng(2).integers(3, size=COUNT).astype("float32")
    targets[weights == 0] = NAN
    metrics = {"metrics": ["mae", WorstError()], "weighted_metrics": ["mae", "mse", log_ratio]}
    model = model_of({"a": Laplace()}, {"a": (2,)}, **metrics)
    arguments = {"sample_weight": {"a": weights}}
    result = reported(model, {"a": predictions}, {"a": targets}, **arguments)
    counted = weights > 0
    pair = targets[counted], predictions[counted]
    error, weight = np.abs(pair[0] - pair[1]), weights[counted]
    ratios = np.abs(np.log(pair[0] / pair[1]))
    assert result["mae"] == pytest.approx(error.mean(), rel=1e-5)
    assert result["worst"] == pytest.approx(error.max(), rel=1e-5)
    weighted = sk.mean_absolute_error(*pair, sample_weight=weight)
    assert result["weighted_mae"] == pytest.approx(weighted, rel=1e-5)
    assert result["weighted_mae"] == pytest.approx(result["a_loss"], rel=1e-5)
    squared = sk.mean_squared_error(*pair, sample_weight=weight)
    assert result["mse"] == pytest.approx(squared, rel=1e-5)
    assert result["log_ratio"] == pytest.approx(np.average(ratios.mean(-1), weights=weight), 1e-5)


def test_weights_of_elements_count_where_elements_do():
    predictions, targets, known = numbers()
    weights = np.where(known, np.random.default_rng(2).integers(1, 4, known.shape), 0)
    metrics = ["mae", keras.metrics.CosineSimilarity(name="cosine")]
    model = model_of({"a": Laplace()}, {"a": (3,)}, weighted_metrics=metrics)
    arguments = {"sample_weight": {"a": weights.astype("float32")}}
    result = reported(model, {"a": predictions}, {"a": targets}, **arguments)
    error = np.average(np.abs(targets - predictions), weights=weights)
    assert result["mae"] == pytest.approx(error, rel=1e-5)
    rows = known.all(-1)
    stock = keras.metrics.CosineSimilarity()
    stock.update_state(targets[rows], predictions[rows], weights[rows].mean(-1))
    assert result["cosine"] == pytest.approx(float(stock.result()), rel=1e-5)


def test_a_heteroscedastic_task_shows_its_estimates():
    predictions, targets, known = numbers((COUNT, 4))
    for missing, chosen in ((None, np.ones((COUNT, 2), bool)), (NAN, known[:, :2])):
        likelihood = Gaussian(heteroscedastic=True, missing=missing)
        model = model_of({"a": likelihood}, {"a": (4,)}, metrics=["mae", "accuracy", log_ratio])
        y = {"a": np.where(chosen, targets[:, :2], NAN)}
        result = reported(model, {"a": predictions}, y)
        error = np.abs(targets[:, :2] - predictions[:, :2])[chosen]
        assert result["mae"] == pytest.approx(error.mean(), rel=1e-5)


def sequence_model(**arguments):
    inputs = keras.Input((5,), dtype="int32")
    features = keras.layers.Embedding(9, 3, mask_zero=True)(inputs)
    outputs = {
        "tag": keras.layers.Dense(4)(features),
        "length": keras.layers.Dense(1)(features),
    }
    tasks = {"length": Laplace(), "tag": Categorical()}
    model = MultiTaskModel(inputs, outputs, tasks)
    model.compile(keras.optimizers.SGD(0.0), **arguments)
    return model


@pytest.mark.parametrize("options", [{}, {"run_eagerly": True}], ids=str)
def test_masked_steps_are_left_out(options):
    rng = np.random.default_rng(0)
    tokens = rng.integers(1, 9, (COUNT, 5)) * (np.arange(5) < rng.integers(1, 6, (COUNT, 1)))
    y = {
        "tag": rng.integers(4, size=(COUNT, 5)),
        "length": rng.normal(size=(COUNT, 5, 1)).astype("float32"),
    }
    y["length"][tokens == 0] = NAN
    metrics = {"tag": ["accuracy"], "length": ["mae", mean_error]}
    model = sequence_model(metrics=metrics, **options)
    predicted = model.predict(tokens, verbose=0)
    result = reported(model, tokens, y)
    kept = tokens > 0
    accuracy = sk.accuracy_score(y["tag"][kept], predicted["tag"].argmax(-1)[kept])
    assert result["tag_accuracy"] == pytest.approx(accuracy, rel=1e-5)
    error = np.abs(y["length"] - predicted["length"])[kept].mean()
    assert result["length_mae"] == pytest.approx(error, rel=1e-5)
    assert result["length_mean_error"] == pytest.approx(error, rel=1e-5)
    assert result["length_loss"] == pytest.approx(error, rel=1e-5)


def mean_error(y_true, y_pred):
    return ops.mean(ops.abs(y_true - y_pred), axis=-1)


def test_a_function_of_the_whole_batch_is_nan_where_something_is_missing():
    predictions, targets, _ = numbers((COUNT, 1))
    model = model_of({"a": Laplace(missing=NAN)}, {"a": (1,)}, metrics=[mean_of_batch])
    x = {"a": predictions}
    whole = model.evaluate(x, targets, batch_size=COUNT, verbose=0, return_dict=True)
    error = np.abs(predictions - targets).mean()
    assert whole["mean_of_batch"] == pytest.approx(error, rel=1e-5)
    targets[3] = NAN
    partly = model.evaluate(x, targets, batch_size=COUNT, verbose=0, return_dict=True)
    assert np.isnan(partly["mean_of_batch"])


@pytest.mark.parametrize("options", [{}, {"jit_compile": True}], ids=str)
def test_a_task_without_labels_reports_nan(options):
    logits, labels, _ = classes()
    predictions, targets, _ = numbers((COUNT, 1))
    tasks = {"a": Categorical(missing=-1), "b": Gaussian(missing=NAN), "c": Laplace()}
    shapes = {"a": (4,), "b": (1,), "c": (1,)}
    metrics = {
        "a": ["accuracy", keras.metrics.MeanIoU(4, sparse_y_pred=False, name="iou")],
        "b": ["mae", keras.metrics.AUC(name="auc"), log_ratio, WorstError()],
        "c": ["mae", log_ratio],
    }
    model = model_of(tasks, shapes, metrics=metrics, **options)
    x = {"a": logits, "b": predictions, "c": predictions}
    none = {"a": np.full_like(labels, -1), "b": np.full_like(targets, NAN), "c": targets}
    history = model.fit(x, none, verbose=0, validation_data=(x, none)).history
    for name in ("a_loss", "a_accuracy", "a_iou", "b_loss", "b_mae", "b_log_ratio", "b_worst"):
        assert np.isnan(history[name]), name
        assert np.isnan(history[f"val_{name}"]), name
    for name in ("loss", "c_loss", "c_mae", "c_log_ratio", "a_sigma"):
        assert np.isfinite(history[name]), name
        assert np.isfinite(history[f"val_{name}"]), name
    # The next epoch starts anew.
    some = {**none, "a": labels, "b": targets}
    result = model.evaluate(x, some, verbose=0, return_dict=True)
    assert result["b_mae"] == pytest.approx(np.abs(targets - predictions).mean(), rel=1e-5)
    assert np.isfinite(result["a_accuracy"])
    assert np.isnan(model.evaluate(x, none, verbose=0, return_dict=True)["b_mae"])


def test_without_anything_missing_metrics_are_those_of_stock_keras():
    logits, labels, _ = classes()
    predictions, targets, _ = numbers((COUNT, 2))
    metrics = {
        "z": ["mae", "MSE", keras.losses.MeanSquaredLogarithmicError(), mean_error, log_ratio],
        "k": ["accuracy", keras.metrics.SparseTopKCategoricalAccuracy(2), "acc"],
    }
    weighted = {"z": ["mae", keras.metrics.R2Score(), "mae", "mse"], "k": "accuracy"}
    inputs = {"z": keras.Input((2,), name="z"), "k": keras.Input((4,), name="k")}
    outputs = {name: keras.layers.Activation("linear")(each) for name, each in inputs.items()}
    x, y = {"z": predictions, "k": logits}, {"z": targets, "k": labels}
    stock = keras.Model(inputs, outputs)
    losses = {"z": "mse", "k": keras.losses.SparseCategoricalCrossentropy(from_logits=True)}
    stock.compile(loss=losses, metrics=metrics, weighted_metrics=weighted)
    expected = stock.evaluate(x, y, verbose=0, return_dict=True)
    model = MultiTaskModel(inputs, outputs, losses)
    model.compile(metrics=metrics, weighted_metrics=weighted)
    result = model.evaluate(x, y, verbose=0, return_dict=True)
    assert result.keys() - expected.keys() == {"z_sigma", "k_sigma"}
    assert expected.keys() <= result.keys()
    for name in expected.keys() - {"loss", "z_loss", "k_loss"}:
        assert result[name] == expected[name], name


def test_the_only_task_has_the_names_of_stock_keras():
    predictions, targets, _ = numbers((COUNT, 2))
    metrics = ["mae", "mse", "mae", keras.losses.mean_squared_error, log_ratio]
    inputs = keras.Input((2,))
    output = keras.layers.Activation("exponential", name="a")(inputs)
    stock, model = keras.Model(inputs, output), MultiTaskModel(inputs, [output], {"a": Gaussian()})
    stock.compile(loss="mse", metrics=metrics, weighted_metrics=["mae", "mse", "mape"])
    model.compile(metrics=metrics, weighted_metrics=["mae", "mse", "mape"])
    expected = stock.evaluate(predictions, targets, verbose=0, return_dict=True)
    result = model.evaluate(predictions, targets, verbose=0, return_dict=True)
    assert result.keys() - expected.keys() == {"a_loss", "a_sigma"}
    for name in expected.keys() - {"loss"}:
        assert result[name] == expected[name], name


def test_callbacks_know_which_way_is_better():
    predictions, targets, _ = numbers((COUNT, 1))
    y = {"a": targets}
    model = model_of({"a": Gaussian(missing=NAN)}, {"a": (1,)}, metrics=["mae"])
    stop = keras.callbacks.EarlyStopping("val_mae", patience=1)
    x = {"a": predictions}
    history = model.fit(x, y, epochs=5, verbose=0, validation_data=(x, y), callbacks=[stop])
    assert len(history.history["mae"]) == 2


def test_a_metric_of_the_users_holds_the_state():
    predictions, targets, known = numbers()
    metric = keras.metrics.MeanAbsoluteError(name="error")
    model = model_of({"a": Gaussian(missing=NAN)}, {"a": (3,)}, metrics=[[metric]])
    y = {"a": np.where(known, targets, NAN)}
    model.evaluate({"a": predictions}, y, verbose=0)
    assert float(metric.result()) == pytest.approx(np.abs(targets - predictions)[known].mean())


def test_a_loaded_model_has_the_users_metrics(tmp_path):
    predictions, targets, known = numbers()
    given = {
        "metrics": {"a": ["mae", log_ratio, WorstError()]},
        "weighted_metrics": [keras.metrics.RootMeanSquaredError(name="rmse")],
    }
    model = model_of({"a": Gaussian(missing=NAN)}, {"a": (3,)}, **given)
    x, y = {"a": predictions}, {"a": np.where(known, targets, NAN)}
    reported(model, x, y)
    expected = model.evaluate(x, y, batch_size=10, verbose=0, return_dict=True)
    model.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    assert_equal(loaded.evaluate(x, y, batch_size=10, verbose=0, return_dict=True), expected)
    assert loaded.get_compile_config()["metrics"] == model.get_compile_config()["metrics"]
    assert loaded.get_compile_config()["metrics"]["a"][0] == "mae"
    loaded.save(tmp_path / "again.keras")
    again = keras.saving.load_model(tmp_path / "again.keras")
    assert_equal(again.evaluate(x, y, batch_size=10, verbose=0, return_dict=True), expected)


def assert_equal(result, expected):
    assert result.keys() == expected.keys()
    for name, value in expected.items():
        assert result[name] == pytest.approx(value, rel=1e-5, nan_ok=True), name


@pytest.mark.backends("tensorflow", reason="only TensorFlow has replicas")
def test_replicas_count_every_observed_element_once():
    import observed_on_replicas

    predictions, targets, known = numbers((COUNT, 3))
    labels = np.random.default_rng(1).integers(2, size=(COUNT, 3))
    x = {"a": predictions, "b": predictions - 2, "c": predictions}
    y = {
        "a": np.where(known, targets, NAN),
        "b": np.where(known, labels, -1),
        "c": np.full_like(targets, NAN),
    }
    results = []
    for replicas in (1, 2):
        # TensorFlow's collectives interfere within one process.
        with get_context("spawn").Pool(1) as pool:
            results.append(pool.apply(observed_on_replicas.evaluate, (replicas, x, y)))
    assert results[1]["a_mae"] == pytest.approx(np.abs(targets - predictions)[known].mean(), 1e-5)
    assert_equal(*results)
    assert np.isnan(results[1]["c_mae"])


def test_mixed_precision_shows_the_same_elements():
    predictions, targets, known = numbers()
    inputs = keras.Input((3,), name="a")
    output = keras.layers.Rescaling(1.0, dtype="mixed_float16")(inputs)
    model = MultiTaskModel(inputs, {"a": output}, {"a": Gaussian(missing=NAN)})
    model.compile(metrics=["mae", WorstError()])
    y = {"a": np.where(known, targets, NAN)}
    result = model.evaluate(predictions, y, verbose=0, return_dict=True)
    assert result["mae"] == pytest.approx(np.abs(targets - predictions)[known].mean(), rel=1e-3)


def test_a_model_that_is_not_compiled_saves(tmp_path):
    model = MultiTaskModel(*[keras.Input((1,))] * 2, {"a": "mse"})
    model.save(tmp_path / "model.keras")
    assert not keras.saving.load_model(tmp_path / "model.keras").compiled


class TestLists:
    """Dict outputs, and targets in a list."""

    def model(self, names, structure=dict, **arguments):
        inputs = keras.Input((3,))
        outputs = {name: keras.layers.Dense(1, name=name)(inputs) for name in names}
        if structure is list:
            outputs = list(outputs.values())
        model = MultiTaskModel(inputs, outputs, dict.fromkeys(names, "mse"))
        model.compile(keras.optimizers.SGD(0.0), **arguments)
        return model

    @pytest.mark.parametrize(
        ("names", "structure"), [("ab", dict), ("ab", list), ("ba", list)], ids=str
    )
    @pytest.mark.parametrize("sequence", [list, tuple])
    def test_losses_and_metrics_have_the_same_targets(self, names, structure, sequence):
        model = self.model(names, structure, metrics=[["mse"], ["mse"]], weighted_metrics=None)
        x = np.random.default_rng(0).normal(size=(COUNT, 3)).astype("float32")
        y = sequence([np.zeros((COUNT, 1)), np.full((COUNT, 1), 100.0)])
        weights = sequence([np.ones(COUNT), np.arange(COUNT)])
        result = reported(model, x, y)
        for name in names:
            assert result[f"{name}_mse"] == pytest.approx(result[f"{name}_loss"], rel=1e-5)
        assert result[f"{names[0]}_loss"] < 100 < result[f"{names[1]}_loss"]
        model.evaluate(x, y, sample_weight=weights, verbose=0)

    def test_a_list_with_two_orders_is_refused(self):
        model = self.model("ba", metrics={"b": ["mae"], "a": ["mae"]})
        x, y = np.zeros((8, 3)), {"b": np.zeros(8), "a": np.ones(8)}
        expected = r"two ways: \['b', 'a'\].*\['a', 'b'\]"
        with pytest.raises(ValueError, match=f"`targets`.*{expected}"):
            model.fit(x, list(y.values()), verbose=0)
        with pytest.raises(ValueError, match=f"`targets`.*{expected}"):
            model.evaluate(x, tuple(y.values()), verbose=0)
        batch = keras.tree.map_structure(ops.convert_to_tensor, [y, [np.ones(8), np.ones(8)]])
        with pytest.raises(ValueError, match=f"`sample_weight`.*{expected}"):
            model.weighting.combined_loss(model(x), *batch)
        for argument in ("metrics", "weighted_metrics"):
            with pytest.raises(ValueError, match=f"`{argument}`.*{expected}"):
                self.model("ba", **{argument: [["mae"], ["mae"]]})
        model.fit(x, y, verbose=0)
        with pytest.raises(ValueError, match=f"`targets`.*{expected}"):
            self.model("ba").fit(x, list(y.values()), verbose=0)

    def test_a_list_with_two_orders_is_refused_by_the_bare_layer(self):
        weighting = UncertaintyWeighting({"b": "mse", "a": "mse"})
        predictions = {name: keras.Input((1,)) for name in "ba"}
        targets = weighting.target_inputs(predictions)
        with pytest.raises(ValueError, match=r"`targets`.*two ways"):
            weighting(predictions, list(targets.values()))
        arrays = {name: np.ones((4, 1)) for name in "ba"}
        weighting(predictions, targets)
        with pytest.raises(ValueError, match=r"`targets`.*two ways"):
            weighting.combined_loss(arrays, list(arrays.values()))

    def test_observed_metrics_of_an_unknown_task_are_refused(self):
        with pytest.raises(ValueError, match=r"`metrics`.*\['a', 'b'\].*Received: .*\['c'\]"):
            self.model("ab", metrics={"c": ["mae"]})
        with pytest.raises(ValueError, match=r"`metrics`.*Received: 1"):
            self.model("ab", metrics=["mae"])


@pytest.mark.backends("tensorflow", "torch", reason="JAX keeps no memory of a tensor's variable")
def test_sigma_of_training_is_not_that_of_validation():
    predictions, targets, _ = numbers((COUNT, 1))
    model = model_of({"a": Gaussian()}, {"a": (1,)})
    model.compile(keras.optimizers.SGD(0.1))
    x, reports = {"a": predictions}, []
    callback = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda _, logs: reports.append(logs["a_sigma"])
    )
    history = model.fit(
        x, targets, 6, 3, verbose=0, validation_data=(x, 9 * targets), callbacks=[callback]
    ).history
    assert history["a_sigma"] == pytest.approx(reports[3::4], rel=1e-6)
    assert history["a_sigma"] != history["val_a_sigma"]


@pytest.mark.parametrize(
    ("task", "metric"),
    [
        ("a", keras.metrics.MeanSquaredError(name="loss")),
        ("a", keras.metrics.MeanSquaredError(name="sigma")),
        ("a", keras.metrics.MeanSquaredError(name="b_loss")),
    ],
    ids=lambda value: value if isinstance(value, str) else value.name,
)
def test_a_metric_with_the_name_of_another_number_is_refused(task, metric):
    tasks = {"a": Gaussian(), "a_b": Gaussian()}
    match = f"Task '{task}'.*'{metric.name}'.*'{task}_{metric.name}'.*another `name`"
    with pytest.raises(ValueError, match=match):
        model_of(tasks, dict.fromkeys(tasks, (1,)), metrics={task: [metric]})


@pytest.mark.parametrize("name", ["loss", "a_loss", "a_sigma", "val_mae"])
def test_the_only_task_takes_no_such_metric_either(name):
    metric = keras.metrics.MeanSquaredError(name=name)
    with pytest.raises(ValueError, match=f"reported as '{name}'"):
        model_of({"a": Gaussian()}, {"a": (1,)}, weighted_metrics=[metric])


@pytest.mark.parametrize("name", ["val", "val_depth"])
def test_a_task_with_the_prefix_of_validation_is_refused(name):
    with pytest.raises(ValueError, match=f"'val_'.*Received: '{name}'"):
        UncertaintyWeighting({name: Gaussian(), "value": Gaussian()})


METRICS_OF_PROBABILITIES = [
    keras.metrics.AUC,
    keras.metrics.Precision,
    keras.metrics.TruePositives,
    keras.metrics.BinaryAccuracy,
    keras.metrics.BinaryCrossentropy,
    lambda: keras.metrics.PrecisionAtRecall(0.5),
    keras.metrics.KLDivergence,
    lambda: keras.metrics.Recall(thresholds=[0.5, 0.9]),
    lambda: keras.metrics.BinaryAccuracy(threshold=0.7),
    lambda: keras.losses.BinaryCrossentropy(),
    lambda: "binary_accuracy",
    lambda: "kl_divergence",
    lambda: keras.losses.binary_crossentropy,
    lambda: keras.metrics.binary_accuracy,
]


@pytest.mark.parametrize("metric", METRICS_OF_PROBABILITIES)
def test_a_metric_of_probabilities_warns_where_predictions_are_logits(metric):
    tasks, shapes = {"a": Bernoulli(), "b": Gaussian()}, {"a": (1,), "b": (1,)}
    with pytest.warns(UserWarning, match=r"Task 'a': its metric '.*logits.*from_logits=True"):
        model_of(tasks, shapes, metrics={"a": [metric()]})


@pytest.mark.filterwarnings("error:Task")
def test_a_metric_of_logits_or_numbers_does_not_warn():
    tasks = {"a": Bernoulli(), "b": Bernoulli(from_logits=False, approximate=True)}
    tasks |= {"c": Gaussian()}
    ours = ["accuracy", keras.metrics.Precision(thresholds=0.0), keras.metrics.F1Score()]
    ours += [keras.metrics.AUC(from_logits=True), keras.metrics.BinaryAccuracy(threshold=0.0)]
    bce = keras.losses.binary_crossentropy
    ours += [keras.metrics.AUC(from_logits=True, thresholds=[0.2, 0.5], name="auc_of_two")]
    ours += [keras.losses.BinaryCrossentropy(from_logits=True), keras.metrics.Precision(top_k=1)]
    ours += [keras.losses.mean_squared_error, partial(bce, from_logits=True)]
    stock = [keras.metrics.AUC(), keras.metrics.Recall()]
    metrics = {"a": ours, "b": stock, "c": ["mae", keras.metrics.Recall()]}
    model_of(tasks, dict.fromkeys(tasks, (1,)), metrics=metrics)
