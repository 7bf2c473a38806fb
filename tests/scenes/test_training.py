import keras
import numpy as np
import pytest
from scipy.special import log_softmax
from sklearn.metrics import jaccard_score

from examples.scenes import data
from examples.scenes.training import (
    SigmaTrace,
    evaluate,
    fit,
    seeded_network,
    training_batches,
    uncertainty_model,
)

pytestmark = pytest.mark.backends("tensorflow", reason="the example runs on TensorFlow")

TASKS = ["classes", "instances", "inverse_depth"]
WEIGHTS = {"classes": 0.3, "instances": 2.0, "inverse_depth": 50.0}


@pytest.fixture(scope="module")
def scenes(data_dir):
    return data.load("streets/few", ["train", "test"], data_dir)


def linear_network():
    """A network that compiles quickly."""
    image = keras.Input((32, 64, 3))
    scaled = keras.layers.Rescaling(1 / 255)(image)
    channels = {"classes": 9, "instances": 2, "inverse_depth": 1}
    return keras.Model(
        image, {task: keras.layers.Conv2D(count, 1)(scaled) for task, count in channels.items()}
    )


def raw_losses(targets, predictions):
    """Mean losses over the pixels with a target, with NumPy and SciPy alone."""
    labelled = targets["classes"] != 255
    log_probability = log_softmax(predictions["classes"], axis=-1)[labelled]
    labels = targets["classes"][labelled]
    return {
        "classes": -log_probability[np.arange(len(labels)), labels].mean(),
        **{
            task: np.nanmean(np.abs(target - predictions[task]))
            for task, target in targets.items()
            if task != "classes"
        },
    }


@pytest.mark.parametrize("tasks", [TASKS, ["classes", "inverse_depth"]])
def test_with_fixed_weights_the_loss_is_the_weighted_sum_of_raw_losses(scenes, tasks):
    train = scenes.splits()[0].take(4)
    network = linear_network()
    model = keras.Model(network.input, {task: network.output[task] for task in tasks})
    weights = {task: WEIGHTS[task] for task in tasks}
    fit(model, train, epochs=1, batch_size=4, seed=0, loss_weights=weights, verbose=0)

    [(images, targets)] = training_batches(train, tasks, batch_size=4, seed=0)
    targets = {task: target.numpy() for task, target in targets.items()}
    assert (targets["classes"] == 255).any()
    assert np.isnan(targets["inverse_depth"]).any()
    losses = raw_losses(targets, model.predict_on_batch(images))
    expected = sum(WEIGHTS[task] * loss for task, loss in losses.items())
    reported = model.evaluate(images, targets, verbose=0, return_dict=True)["loss"]
    assert set(losses) == set(tasks)
    assert reported == pytest.approx(expected, rel=1e-5)


def test_all_weightings_train_on_the_same_images_in_the_same_order(scenes):
    train = scenes.splits()[0]

    def images(tasks, seed):
        batches = training_batches(train, tasks, batch_size=16, seed=seed)
        return np.stack([images for _ in range(2) for images, _ in batches])

    expected = images(TASKS, seed=0)
    assert expected.shape == (4, 16, 32, 64, 3)  # 2 batches in each of 2 epochs
    np.testing.assert_array_equal(images(["instances"], seed=0), expected)
    assert not np.array_equal(images(TASKS, seed=1), expected)
    assert not np.array_equal(expected[:2], expected[2:])


def test_all_weightings_start_from_the_same_network(scenes):
    def weights(seed, tasks):
        network = seeded_network("tiny", scenes, seed)
        uncertainty_model(network, tasks)
        return network.get_weights()

    expected = seeded_network("tiny", scenes, seed=0).get_weights()
    for one, same in zip(weights(0, ["instances"]), expected, strict=True):
        np.testing.assert_array_equal(one, same)
    assert not np.array_equal(weights(1, TASKS)[0], expected[0])


def test_the_trace_records_sigma_from_the_first_step_on(scenes):
    model = uncertainty_model(linear_network(), TASKS, initial_sigma=3.0)
    trace = SigmaTrace()
    train = scenes.splits()[0]
    fit(model, train, epochs=5, batch_size=4, seed=0, verbose=0, callbacks=[trace])
    assert set(trace.sigmas) == set(TASKS)
    for task in TASKS:
        first, *later = trace.sigmas[task]
        # The given σ counts as one batch beside the first, whose loss counts as at most ten times.
        assert 3.0 / 2 < first < 3.0 * 5.5
        assert len(later) == 2  # after 20 and 40 of 50 steps
        assert later[-1] != pytest.approx(3.0, rel=0.01)


def test_evaluation_covers_all_images(scenes):
    test = scenes.splits()[1]
    network = linear_network()
    [(images, targets)] = test.batch(4)
    targets = {task: target.numpy() for task, target in targets.items()}
    predictions = network.predict_on_batch(images)
    measured = evaluate(network, test, num_classes=9)

    losses = raw_losses(targets, predictions)
    for task in ("instances", "inverse_depth"):
        assert measured[task] == pytest.approx(losses[task], rel=1e-5)
    labelled = targets["classes"] != 255
    true, found = targets["classes"][labelled], predictions["classes"].argmax(-1)[labelled]
    # Keras omits classes that are neither true nor predicted.
    ious = jaccard_score(true, found, average=None, labels=np.union1d(true, found))
    assert measured["classes"] == pytest.approx(ious.mean(), rel=1e-5)
