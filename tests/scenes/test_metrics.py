from multiprocessing import get_context

import keras
import numpy as np
import pytest
import tensorflow as tf
from sklearn.metrics import jaccard_score

from examples.scenes.metrics import MeanErrorWhereKnown, scene_metrics
from examples.scenes.targets import scene_tasks
from keras_uncertainty_mtl import MultiTaskModel, UncertaintyWeighting

pytestmark = pytest.mark.backends("tensorflow", reason="the example runs on TensorFlow")

NUM_CLASSES = 4
SHAPE = (6, 5, 7)


@pytest.fixture
def batch():
    rng = np.random.default_rng(0)
    targets = {
        "classes": rng.integers(0, NUM_CLASSES, SHAPE).astype("int32"),
        "instances": rng.normal(size=(*SHAPE, 2)).astype("float32"),
        "inverse_depth": rng.normal(size=(*SHAPE, 1)).astype("float32"),
    }
    # Each image lacks another share, so that the mean of the images' means would be wrong.
    missing = rng.random(SHAPE) < np.linspace(0.1, 0.9, SHAPE[0])[:, None, None]
    targets["classes"][missing] = 255
    targets["instances"][missing] = np.nan
    targets["inverse_depth"][missing] = np.nan
    predictions = {
        "classes": rng.normal(size=(*SHAPE, NUM_CLASSES)).astype("float32"),
        "instances": rng.normal(size=(*SHAPE, 2)).astype("float32"),
        "inverse_depth": rng.normal(size=(*SHAPE, 1)).astype("float32"),
    }
    return targets, predictions


def expected(targets, predictions):
    labelled = targets["classes"] != 255
    result = {
        "classes_mean_iou": jaccard_score(
            targets["classes"][labelled],
            predictions["classes"].argmax(-1)[labelled],
            average="macro",
        )
    }
    for task in ("instances", "inverse_depth"):
        result[f"{task}_error"] = np.nanmean(np.abs(targets[task] - predictions[task]))
    return result


def test_metrics_over_batches_agree_with_numpy(batch):
    targets, predictions = batch
    metrics = {task: metric for task, [metric] in scene_metrics(NUM_CLASSES).items()}
    for part in (slice(0, 2), slice(2, 6)):
        for task, metric in metrics.items():
            metric.update_state(targets[task][part], predictions[task][part])
    results = {f"{task}_{metric.name}": metric.result() for task, metric in metrics.items()}
    for name, value in expected(targets, predictions).items():
        np.testing.assert_allclose(results[name], value, rtol=1e-5)


def evaluate_on_replicas(replicas, targets, predictions):
    """The results of `evaluate` with the metrics in `compile`, on several devices."""
    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0],
        [tf.config.LogicalDeviceConfiguration()] * replicas,
    )
    strategy = tf.distribute.MirroredStrategy([f"CPU:{index}" for index in range(replicas)])
    with strategy.scope():
        inputs = {
            f"{task}_in": keras.Input(value.shape[1:], name=f"{task}_in")
            for task, value in predictions.items()
        }
        outputs = {task: keras.layers.Identity()(inputs[f"{task}_in"]) for task in predictions}
        model = MultiTaskModel(inputs, outputs, UncertaintyWeighting(scene_tasks()))
        model.compile(metrics=scene_metrics(NUM_CLASSES))
    fed = {f"{task}_in": value for task, value in predictions.items()}
    # Batches of 4 and 2 images, so that replicas have uneven shares.
    return model.evaluate(fed, targets, batch_size=4, verbose=0, return_dict=True)


def test_compiled_metrics_cover_all_replicas(batch):
    # TensorFlow's collectives interfere within one process.
    with get_context("spawn").Pool(1) as pool:
        results = pool.apply(evaluate_on_replicas, (4, *batch))
    for name, value in expected(*batch).items():
        np.testing.assert_allclose(results[name], value, rtol=1e-5)


def test_the_error_has_sample_weights():
    metric = MeanErrorWhereKnown()
    targets = np.array([[1.0, np.nan], [5.0, 6.0], [np.nan, np.nan]])
    metric.update_state(targets, np.zeros((3, 2)), sample_weight=np.array([3.0, 1.0, 7.0]))
    np.testing.assert_allclose(metric.result(), (3 * 1 + 5 + 6) / (3 + 1 + 1), rtol=1e-6)


def test_the_error_is_zero_if_all_targets_are_missing():
    metric = MeanErrorWhereKnown()
    metric.update_state(np.full((2, 3), np.nan), np.ones((2, 3)))
    assert metric.result() == 0


def test_the_error_can_be_serialized():
    metric = MeanErrorWhereKnown(name="error")
    copy = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(metric))
    assert isinstance(copy, MeanErrorWhereKnown)
    assert copy.name == "error"
