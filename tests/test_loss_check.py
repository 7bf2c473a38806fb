"""A loss that is no number is warned of by the names of its tasks, once in a training."""

import re
import warnings

import keras
import numpy as np
import pytest

from keras_uncertainty_mtl import Categorical, Gaussian, Gibbs, Likelihood, MultiTaskModel

NAN = float("nan")


def model_of(likelihood, units=1, optimizer="sgd", kind=MultiTaskModel, shares=False, **arguments):
    inputs = hidden = keras.Input((2,))
    if shares:
        hidden = keras.layers.Dense(3)(inputs)
    outputs = {"b": keras.layers.Dense(units)(hidden), "a": keras.layers.Dense(1)(hidden)}
    model = kind(inputs, outputs, {"b": likelihood, "a": Gaussian(missing=NAN)})
    model.compile(optimizer, **arguments)
    return model


def warnings_in(caught):
    return [str(each.message) for each in caught if each.category is UserWarning]


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
}


@pytest.mark.parametrize(("likelihood", "units", "labels", "message"), WRONG.values(), ids=WRONG)
class TestWrongLosses:
    def test_the_first_batch_names_the_task(self, likelihood, units, labels, message):
        model = model_of(likelihood, units)
        with pytest.warns(UserWarning, match="epoch 1, from batch 1 on") as caught:
            model.fit(Batches(labels, labels), verbose=0)
        (text,) = warnings_in(caught)
        assert re.search(message, text)
        assert "'a'" not in text

    def test_a_later_batch_names_the_task_once(self, likelihood, units, labels, message):
        model, good = model_of(likelihood, units, shares=True), np.ones_like(labels)
        data = Batches(good, good, labels, labels)
        with pytest.warns(UserWarning, match="epoch 1, from batch 3 on") as caught:
            history = model.fit(
                data, validation_data=Batches(good), epochs=2, shuffle=False, verbose=0
            ).history
        (text,) = warnings_in(caught)
        assert re.search(message, text)
        assert "'a'" not in text
        assert np.isnan(history["loss"]).all()

    def test_an_evaluation_names_the_task(self, likelihood, units, labels, message):
        model = model_of(likelihood, units)
        with pytest.warns(UserWarning, match=message):
            model.evaluate(Batches(labels), verbose=0)


def test_a_loss_below_zero_is_refused():
    data = Batches([-1, -1, -2, -3], [-1, -1, -2, -3])
    message = r"epoch 1, from batch [12] on.*not below 0.*tasks 'b' \(-1\.75\)"
    with pytest.raises(ValueError, match=message):
        model_of(Gibbs(below_zero)).fit(data, verbose=0)
    with pytest.warns(UserWarning, match=r"an evaluation.*'b' \(-1\.75\)"):
        model_of(Gibbs(below_zero)).evaluate(data, verbose=0)


def test_a_density_may_be_below_zero_beside_a_wrong_label():
    class Density(Likelihood):
        def loss(self, targets, predictions):
            return keras.ops.square(targets - predictions) - 100.0

        def negative_log_likelihood(self, targets, predictions, log_variance):
            return self.loss(targets, predictions) + 0.0 * log_variance

    inputs = keras.Input((2,))
    outputs = {"b": keras.layers.Dense(1)(inputs), "a": keras.layers.Dense(1)(inputs)}
    model = MultiTaskModel(inputs, outputs, {"b": Gaussian(), "a": Density()})
    model.compile("sgd")
    with pytest.warns(UserWarning, match=r"tasks 'b' \(nan\), or no label"):
        model.fit(Batches([1, NAN, 2, 3]), verbose=0)


def test_a_batch_below_zero_among_others_is_warned_of():
    data = Batches([9, 9, 9, 9], [-1, -1, -2, -3])
    with pytest.warns(UserWarning, match="so one batch is not"):
        model_of(Gibbs(below_zero)).fit(data, shuffle=False, verbose=0)


def test_weighted_rows_name_the_task():
    x, labels = np.ones((4, 2)), {"b": np.array([1, NAN, 2, 3]), "a": np.ones(4)}
    with pytest.warns(UserWarning, match=r"tasks 'b' \(nan\)"):
        model_of(Gaussian()).fit(x, labels, sample_weight=np.ones(4), verbose=0)


def test_a_loss_that_the_network_adds_is_told_apart():
    inputs = keras.Input((2,))
    hidden = keras.layers.Dense(2, activity_regularizer=lambda x: NAN * keras.ops.sum(x))(inputs)
    model = MultiTaskModel(inputs, {"a": keras.layers.Dense(1)(hidden)}, {"a": Gaussian()})
    model.compile("sgd")
    with pytest.warns(UserWarning, match="or a layer adds a loss"):
        model.fit(np.ones((4, 2)), {"a": np.ones(4)}, verbose=0)


def test_validation_is_warned_of_by_the_name_of_the_task():
    with pytest.warns(UserWarning, match=r"loss of an evaluation .*tasks 'b' \(nan\)"):
        history = (
            model_of(Gaussian())
            .fit(
                Batches(np.ones(4)),
                validation_data=Batches([1, NAN, 2, 3]),
                validation_steps=1,
                verbose=0,
            )
            .history
        )
    assert np.isfinite(history["loss"])
    assert np.isnan(history["val_b_loss"])


def test_training_is_warned_of_beside_a_wrong_validation():
    data = Batches(np.ones(4))
    spoil = keras.callbacks.LambdaCallback(on_epoch_end=lambda *_: data.labels[0].fill(NAN))
    with pytest.warns(UserWarning, match="loss of an evaluation") as caught:
        model_of(Gaussian()).fit(
            data,
            validation_data=Batches([1, NAN, 2, 3]),
            epochs=3,
            callbacks=[spoil],
            verbose=0,
        )
    _, training = warnings_in(caught)
    assert "loss of epoch 2, from batch 1 on," in training


@pytest.mark.backends("tensorflow", "jax", reason="PyTorch runs single steps")
def test_steps_that_are_run_together_are_warned_of():
    labels = [1, NAN, 2, 3]
    model = model_of(Gaussian(), steps_per_execution=2)
    with pytest.warns(UserWarning, match=r"'b' \(nan\)"):
        model.fit(Batches(labels, labels), verbose=0)


def test_an_optimizer_that_passes_over_such_a_batch_may_do_so():
    labels, good = [1, NAN, 2, 3], np.ones(4)
    model = model_of(
        Gaussian(), optimizer=keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD())
    )
    with pytest.warns(UserWarning, match=r"'b' \(nan\)"):
        model.fit(Batches(labels, good), shuffle=False, verbose=0)
    assert all(np.isfinite(each).all() for each in model.get_weights())


@pytest.mark.parametrize("kind", ["none", "false", "one", "nested", "container"])
def test_callbacks_of_every_form_still_run(kind):
    model, epochs = model_of(Gaussian()), []
    one = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: epochs.append(epoch))
    container = keras.callbacks.CallbackList([one], add_history=True, model=model)
    given = {"none": None, "false": False, "one": one, "nested": [(one,)], "container": container}
    data = Batches(np.ones(4))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        history = model.fit(data, epochs=2, callbacks=given[kind], verbose=0)
        model.evaluate(data, callbacks=given[kind] if kind != "container" else None, verbose=0)
    assert len(history.history["loss"]) == 2
    assert epochs == ([] if kind in ("none", "false") else [0, 1])


def test_a_class_beside_the_model_may_take_any_arguments():
    class Beside(keras.Model):
        def fit(self, *args, **kwargs):
            return super().fit(*args, **kwargs)

        def evaluate(self, *args, **kwargs):
            return super().evaluate(*args, **kwargs)

    class Both(MultiTaskModel, Beside):
        pass

    model = model_of(Gaussian(), kind=Both)
    with pytest.warns(UserWarning, match=r"'b' \(nan\)"):
        model.fit(Batches([1, NAN, 2, 3]), verbose=0)
    model_of(Gaussian(), kind=Both).evaluate(Batches(np.ones(4)), verbose=0)


def test_a_model_that_is_not_compiled_has_the_error_of_keras():
    inputs = keras.Input((2,))
    model = MultiTaskModel(inputs, {"a": keras.layers.Dense(1)(inputs)}, {"a": Gaussian()})
    with pytest.raises(ValueError, match=r"compile\(\)"):
        model.fit(np.ones((4, 2)), {"a": np.ones(4)}, verbose=0)


def test_a_task_without_labels_is_no_wrong_loss():
    x, labels = np.ones((4, 2)), {"b": np.ones(4), "a": np.full(4, NAN)}
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        history = model_of(Gaussian()).fit(x, labels, verbose=0).history
    assert np.isnan(history["a_loss"])
    assert np.isfinite(history["loss"])
