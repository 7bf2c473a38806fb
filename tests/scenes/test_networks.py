import keras
import numpy as np
import pytest

from examples.scenes.metrics import scene_metrics
from examples.scenes.networks import build_network
from examples.scenes.targets import scene_tasks
from keras_uncertainty_mtl import MultiTaskModel, UncertaintyWeighting

pytestmark = pytest.mark.backends("tensorflow", reason="the example runs on TensorFlow")

NUM_CLASSES = 5


def batch(height, width):
    """Images of squares whose colours determine all targets."""
    rng = np.random.default_rng(0)
    squares = rng.integers(0, NUM_CLASSES, (2, height // 8, width // 8))
    classes = squares.repeat(8, axis=1).repeat(8, axis=2)
    targets = {
        "classes": classes.copy(),
        "instances": np.stack([4.0 * classes - 8.0, 4.0 - 2.0 * classes], axis=-1),
        "inverse_depth": 1.0 + classes[..., np.newaxis],
    }
    targets["classes"][:, :3] = 255
    targets["instances"][:, 4:9] = np.nan
    targets["inverse_depth"][:, :, :7] = np.nan
    images = 50 * classes[..., np.newaxis].repeat(3, axis=-1)
    return images.astype("uint8"), targets


def multi_task_model(kind, height, width):
    network = build_network(kind, (height, width, 3), NUM_CLASSES)
    model = MultiTaskModel(network.input, network.output, UncertaintyWeighting(scene_tasks()))
    model.compile("adam", metrics=scene_metrics(NUM_CLASSES))
    return model


@pytest.fixture(scope="module")
def paper():
    model = multi_task_model("paper", 16, 32)
    model.run_eagerly = True  # tracing takes a minute, and there is one step
    return model


def test_tiny_fits_a_batch():
    images, targets = batch(16, 32)
    model = multi_task_model("tiny", 16, 32)
    history = model.fit(images, targets, epochs=30, verbose=0).history
    for task in targets:
        assert history[f"{task}_loss"][-1] < 0.7 * history[f"{task}_loss"][0]


@pytest.mark.parametrize("shape", [(64, 128, 3), (128, 256, 3)])
def test_tiny_predicts_every_pixel(shape):
    network = build_network("tiny", shape, NUM_CLASSES)
    assert {task: tuple(output.shape) for task, output in network.output.items()} == {
        "classes": (None, *shape[:2], NUM_CLASSES),
        "instances": (None, *shape[:2], 2),
        "inverse_depth": (None, *shape[:2], 1),
    }
    assert network.count_params() < 1e6


def test_wide_is_tiny_with_twice_the_filters():
    def convolutions(kind):
        layers = build_network(kind, (16, 32, 3), NUM_CLASSES).layers
        return [layer for layer in layers if isinstance(layer, keras.layers.Conv2D)]

    for tiny, wide in zip(convolutions("tiny"), convolutions("wide"), strict=True):
        is_output = tiny.use_bias
        assert wide.filters == tiny.filters * (1 if is_output else 2)
        assert (wide.kernel_size, wide.strides) == (tiny.kernel_size, tiny.strides)


def test_paper_takes_a_training_step(paper):
    images, targets = batch(16, 32)
    before = [value.copy() for value in paper.get_weights()]
    history = paper.fit(images, targets, epochs=1, verbose=0).history
    assert np.isfinite(list(history.values())).all()
    changed = [
        not np.array_equal(old, new) for old, new in zip(before, paper.get_weights(), strict=True)
    ]
    assert np.mean(changed) > 0.95
    for values in paper(images, training=False).values():
        assert values.shape[:3] == (2, 16, 32)


def test_paper_is_a_resnet_101_at_stride_8(paper):
    [resnet] = [layer for layer in paper.layers if isinstance(layer, keras.Model)]
    assert tuple(resnet.output.shape) == (None, 2, 4, 2048)
    convolutions = [layer for layer in resnet.layers if isinstance(layer, keras.layers.Conv2D)]
    # 100, and the shortcuts of four stacks; the 101st layer is the classifier.
    assert len(convolutions) == 104
    dilations = [layer.dilation_rate[0] for layer in convolutions if layer.kernel_size == (3, 3)]
    assert dilations == [1] * 7 + [2] * 23 + [4] * 3
    # The published size of ResNet-101 without its classifier.
    assert resnet.count_params() == pytest.approx(42.6e6, rel=0.01)


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="'huge'"):
        build_network("huge", (64, 128, 3), NUM_CLASSES)


def test_a_size_that_is_no_multiple_of_8_is_refused():
    with pytest.raises(ValueError, match="multiples of 8"):
        build_network("tiny", (64, 100, 3), NUM_CLASSES)
