"""A loss that is no number names its tasks: an error in the first batch, a warning later."""

import re
import warnings

import keras
import numpy as np
import pytest

from keras_uncertainty_mtl import Categorical, Gaussian, Gibbs, MultiTaskModel

NAN = float("nan")


def model_of(likelihood, units=1, optimizer="sgd", **arguments):
    inputs = keras.Input((2,))
    outputs = {"b": keras.layers.Dense(units)(inputs), "a": keras.layers.Dense(1)(inputs)}
    model = MultiTaskModel(inputs, outputs, {"b": likelihood, "a": Gaussian(missing=NAN)})
    model.compile(optimizer, **arguments)
    return model


class Batches(keras.utils.PyDataset):
    """Batches of four, whose labels of the task `b` are given and whose others are all 1."""

    def __init__(self, *labels):
        super().__init__()
        self.labels = [np.reshape(each, (4, -1)).astype("float32") for each in labels]

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        targets = {"b": self.labels[index], "a": np.ones((4, 1), "float32")}
        return np.ones((4, 2), "float32"), targets


def part_of(targets, predictions):
    """The sum over an axis, which has no value where some of it is missing."""
    return keras.ops.sum(keras.ops.square(targets - predictions), axis=-1)


def below_zero(targets, predictions):
    """Below 0 where targets are, as the logarithm of a density may be."""
    return targets + 0.0 * predictions


WRONG = {
    "a gap": (Gaussian(), 1, [1, NAN, 2, 3], r"'b' \(nan\)"),
    "an infinity": (Gaussian(), 1, [1, np.inf, 2, 3], r"'b' \(inf\)"),
    "a class too high": (Categorical(), 3, [0, 1, 3, 2], r"'b' \(nan\)"),
    "a loss of which a part is missing": (
        Gibbs(part_of, missing=NAN),
        2,
        [1, 2, NAN, 2, 3, 3, 1, 1],
        r"'b' \(nan\).*value for each",
    ),
    "a loss below 0": (Gibbs(below_zero), 1, [-1, -1, -2, -3], r"not below 0.*'b' \(-1\.\d+\)"),
}


@pytest.mark.parametrize(("likelihood", "units", "labels", "message"), WRONG.values(), ids=WRONG)
class TestWrongLosses:
    def test_the_first_batch_is_refused(self, likelihood, units, labels, message):
        with pytest.raises(ValueError, match=message) as error:
            model_of(likelihood, units).fit(Batches(labels, labels), verbose=0)
        assert "'a'" not in str(error.value)

    def test_a_later_batch_is_warned_of_once(self, likelihood, units, labels, message):
        model, good = model_of(likelihood, units), np.ones_like(labels)
        data = Batches(good, good, labels, labels)
        with pytest.warns(UserWarning, match="The loss is nan") as caught:
            history = model.fit(data, epochs=2, shuffle=False, verbose=0).history
        (text,) = (str(each.message) for each in caught if each.category is UserWarning)
        # The mean over an epoch may be above 0, if that of one batch is not.
        assert re.search(message, text) or "so one batch is not" in text
        assert "'a'" not in text
        assert np.isnan(history["loss"]).all()

    def test_evaluation_is_warned_of(self, likelihood, units, labels, message):
        model = model_of(likelihood, units)
        with pytest.warns(UserWarning, match=message):
            model.evaluate(Batches(labels), verbose=0)


def test_the_first_batch_of_weighted_rows_is_refused():
    x, labels = np.ones((4, 2)), {"b": np.array([1, NAN, 2, 3]), "a": np.ones(4)}
    with pytest.raises(ValueError, match=r"tasks 'b' \(nan\)"):
        model_of(Gaussian()).fit(x, labels, sample_weight=np.ones(4), verbose=0)


def test_a_loss_that_the_network_adds_is_told_apart():
    inputs = keras.Input((2,))
    hidden = keras.layers.Dense(2, activity_regularizer=lambda x: NAN * keras.ops.sum(x))(inputs)
    model = MultiTaskModel(inputs, {"a": keras.layers.Dense(1)(hidden)}, {"a": Gaussian()})
    model.compile("sgd")
    with pytest.raises(ValueError, match="or a layer adds a loss"):
        model.fit(np.ones((4, 2)), {"a": np.ones(4)}, verbose=0)


@pytest.mark.backends("tensorflow", "jax", reason="PyTorch runs single steps")
def test_steps_that_are_run_together_are_warned_of():
    labels = [1, NAN, 2, 3]
    model = model_of(Gaussian(), steps_per_execution=2)
    with pytest.warns(UserWarning, match=r"'b' \(nan\)"):
        model.fit(Batches(labels, labels), verbose=0)


def test_a_batch_that_a_dynamic_loss_scale_passes_over_is_warned_of():
    labels, good = [1, NAN, 2, 3], np.ones(4)
    model = model_of(Gaussian(), 1, keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD()))
    with pytest.warns(UserWarning, match=r"'b' \(nan\)"):
        model.fit(Batches(labels), verbose=0)
    model.fit(Batches(good), verbose=0)
    assert all(np.isfinite(each).all() for each in model.get_weights())


@pytest.mark.parametrize("kind", ["none", "one", "list", "container"])
def test_callbacks_of_every_form_still_run(kind):
    model, epochs = model_of(Gaussian()), []
    one = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: epochs.append(epoch))
    container = keras.callbacks.CallbackList([one], add_history=True, model=model)
    given = {"none": None, "one": one, "list": [one], "container": container}[kind]
    data = Batches(np.ones(4))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        history = model.fit(data, epochs=2, callbacks=given, verbose=0)
        model.evaluate(data, callbacks=given if kind != "container" else None, verbose=0)
    assert len(history.history["loss"]) == 2
    assert epochs == ([] if kind == "none" else [0, 1])


def test_a_callback_that_ends_training_is_left_to_do_so():
    model, callback = model_of(Gaussian()), keras.callbacks.TerminateOnNaN()
    with pytest.warns(UserWarning, match=r"'b' \(nan\)"):
        history = model.fit(Batches([1, NAN, 2, 3]), epochs=3, callbacks=[callback], verbose=0)
    assert len(history.epoch) == 1


def test_a_task_without_labels_is_no_wrong_loss():
    x, labels = np.ones((4, 2)), {"b": np.ones(4), "a": np.full(4, NAN)}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        history = model_of(Gaussian()).fit(x, labels, verbose=0).history
    assert np.isnan(history["a_loss"])
    assert np.isfinite(history["loss"])


def test_validation_is_warned_of_by_the_name_of_the_task():
    model = model_of(Gaussian())
    with pytest.warns(UserWarning, match=r"tasks 'b' \(nan\)"):
        history = model.fit(
            Batches(np.ones(4)),
            validation_data=Batches([1, NAN, 2, 3]),
            validation_steps=1,
            verbose=0,
        ).history
    assert np.isfinite(history["loss"])
    assert np.isnan(history["val_b_loss"])
