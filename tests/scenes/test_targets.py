import math

import numpy as np
import pytest
import tensorflow as tf

from examples.scenes.targets import centre_vectors, to_targets

pytestmark = pytest.mark.backends("tensorflow", reason="the example runs on TensorFlow")


def test_vectors_point_to_the_mean_of_the_instances_pixels():
    instances = np.array([[0, 7, 7, 0], [9, 7, 0, 7001], [9, 0, 0, 7001]], np.int32)
    vectors = centre_vectors(tf.constant(instances)).numpy()
    for (row, column), instance in np.ndenumerate(instances):
        if instance == 0:
            assert np.isnan(vectors[row, column]).all()
            continue
        rows, columns = np.nonzero(instances == instance)
        centre = (columns.mean() - column, rows.mean() - row)
        np.testing.assert_allclose(vectors[row, column], centre, rtol=1e-5)


def test_an_image_without_instances_has_no_vectors():
    assert np.isnan(centre_vectors(tf.zeros((3, 4), tf.int32))).all()


def test_mapped_targets_have_the_shapes_of_the_predictions():
    depth = np.array([[1.5, math.nan], [0.0, 2.0]], np.float32)
    example = {
        "image": np.full((1, 2, 2, 3), 9, np.uint8),
        "classes": np.array([[[0, 255], [3, 8]]], np.uint8),
        "instances": np.array([[[0, 1], [1, 0]]], np.int32),
        "inverse_depth": depth[np.newaxis],
    }
    data = tf.data.Dataset.from_tensor_slices(example).map(to_targets).batch(1)
    image, targets = next(data.as_numpy_iterator())
    assert image.shape == (1, 2, 2, 3)
    np.testing.assert_array_equal(targets["classes"], example["classes"])
    assert targets["instances"].shape == (1, 2, 2, 2)
    np.testing.assert_array_equal(targets["inverse_depth"], depth[np.newaxis, ..., np.newaxis])
