import time

import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score

from examples.scenes.instances import cluster_instances

pytestmark = pytest.mark.backends("tensorflow", reason="the example runs on TensorFlow")


def scene(height, width, rectangles):
    """Classes, instances and vectors of rectangles `(class, top, left, bottom, right)`."""
    classes = np.zeros((height, width), np.int32)
    instances = np.zeros((height, width), np.int32)
    vectors = np.zeros((height, width, 2))
    y, x = np.mgrid[:height, :width]
    for number, (label, top, left, bottom, right) in enumerate(rectangles, start=1):
        area = np.s_[top:bottom, left:right]
        classes[area] = label
        instances[area] = number
        vectors[area] = np.stack(
            [(left + right - 1) / 2 - x[area], (top + bottom - 1) / 2 - y[area]], axis=-1
        )
    return classes, instances, vectors


def test_touching_instances_are_separated():
    classes, instances, vectors = scene(
        32, 48, [(8, 4, 2, 16, 20), (8, 4, 20, 16, 38), (7, 18, 5, 28, 9), (7, 18, 9, 28, 13)]
    )
    noisy = vectors + np.random.default_rng(0).normal(0.0, 0.4, vectors.shape)
    found = cluster_instances(classes, noisy, [7, 8])
    inside = instances != 0
    assert not found[~inside].any()
    assert adjusted_rand_score(instances[inside], found[inside]) > 0.97
    assert len(np.unique(found[inside])) == 4
    np.testing.assert_array_equal(found[inside] // 1000, classes[inside])


def test_a_cluster_of_too_few_pixels_is_no_instance():
    classes, instances, vectors = scene(16, 32, [(8, 2, 2, 12, 12), (8, 2, 20, 4, 23)])
    found = cluster_instances(classes, vectors, [8], min_pixels=8)
    assert (found[instances == 1] != 0).all()
    assert not found[instances == 2].any()
    found = cluster_instances(classes, vectors, [8], min_pixels=6)
    assert (found[instances == 2] != 0).all()


def test_pixels_of_classes_without_instances_get_no_instance():
    classes, _, vectors = scene(16, 16, [(3, 2, 2, 10, 10), (8, 10, 10, 16, 16)])
    found = cluster_instances(classes, vectors, [7, 8])
    assert (found != 0).sum() == 36


def test_isolated_votes_are_no_instance():
    classes, _, vectors = scene(16, 16, [(8, 2, 2, 14, 14)])
    vectors[2:14, 2:14] = np.random.default_rng(0).uniform(-500.0, 500.0, (12, 12, 2))
    assert not cluster_instances(classes, vectors, [8]).any()


def test_an_image_without_instance_classes_has_no_instance():
    classes, _, vectors = scene(16, 16, [])
    assert not cluster_instances(classes, vectors, [7, 8]).any()


def test_an_image_full_of_instances_takes_under_two_seconds():
    rectangles = [(8, row, column, row + 16, column + 16) for row in range(0, 64, 16)
                  for column in range(0, 128, 16)]  # fmt: skip
    classes, instances, vectors = scene(64, 128, rectangles)
    noisy = vectors + np.random.default_rng(0).normal(0.0, 0.7, vectors.shape)
    start = time.process_time()  # not affected by other processes
    found = cluster_instances(classes, noisy, [7, 8])
    assert time.process_time() - start < 2.0
    assert adjusted_rand_score(instances.ravel(), found.ravel()) > 0.95
