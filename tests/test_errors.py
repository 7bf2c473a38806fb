"""Wrong calls: a `ValueError` that names the task, what was expected, and what was received."""

import re

import keras
import numpy as np
import pytest

from keras_uncertainty_mtl import (
    Bernoulli,
    Categorical,
    Gaussian,
    Gibbs,
    Laplace,
    MultiTaskModel,
    UncertaintyWeighting,
)


def weigh(likelihood=None, prediction=(8, 1), target=(8, 1), weight=None, dtype="float32"):
    """Calls a layer of one task, "depth", on arrays of these shapes."""
    layer = UncertaintyWeighting({"depth": likelihood or Gaussian()})
    layer(
        {"depth": np.zeros(prediction, "float32")},
        {"depth": np.zeros(target, dtype)},
        sample_weight=None if weight is None else {"depth": np.ones(weight, "float32")},
    )


def two_tasks():
    return UncertaintyWeighting({"depth": Laplace(), "classes": Categorical()})


def arrays():
    predictions = {"depth": np.zeros((8, 1)), "classes": np.zeros((8, 3))}
    targets = {"depth": np.zeros((8, 1)), "classes": np.zeros(8, "int32")}
    return predictions, targets


def without(structure, task):
    return {name: value for name, value in structure.items() if name != task}


CONSTRUCTIONS = {
    "no tasks": (lambda: UncertaintyWeighting({}), "one task or more. Received: tasks={}"),
    "tasks in a list": (lambda: UncertaintyWeighting([Gaussian()]), "must be a dict"),
    "an empty name": (lambda: UncertaintyWeighting({"": Gaussian()}), "not empty.*Received: ''"),
    "a name that is a number": (
        lambda: UncertaintyWeighting({3: Gaussian()}),
        "string.*Received: 3",
    ),
    "a name with a slash": (lambda: UncertaintyWeighting({"a/b": Gaussian()}), "no '/'.*'a/b'"),
    "a number for a likelihood": (
        lambda: UncertaintyWeighting({"depth": 3}),
        "Task 'depth': Expected a likelihood.*Received: 3",
    ),
    "no likelihood": (
        lambda: UncertaintyWeighting({"depth": None}),
        "Task 'depth'.*Received: None",
    ),
    "a likelihood's class": (
        lambda: UncertaintyWeighting({"depth": Gaussian}),
        "Task 'depth'.*Received: <class",
    ),
    "an unknown loss": (
        lambda: UncertaintyWeighting({"depth": "no_such_loss"}),
        "Task 'depth'.*Received: 'no_such_loss'",
    ),
    "a metric for a likelihood": (
        lambda: UncertaintyWeighting({"depth": keras.metrics.Mean()}),
        "Task 'depth'",
    ),
    "the exact form with probabilities": (
        lambda: Categorical(from_logits=False),
        "exact Categorical.*from_logits=False.*approximate=True",
    ),
    "the exact form with probabilities for two classes": (
        lambda: Bernoulli(from_logits=False),
        "exact Bernoulli.*from_logits=False.*approximate=True",
    ),
    "a sigma of zero": (lambda: Gaussian(initial_sigma=0.0), "positive and finite.*=0.0"),
    "a negative sigma": (lambda: Laplace(initial_sigma=-1), "positive and finite.*=-1"),
    "an infinite sigma": (lambda: Categorical(initial_sigma=np.inf), "positive and finite.*=inf"),
    "a sigma that is no number": (lambda: Gaussian(initial_sigma="big"), "positive and finite"),
    "a sigma of NaN": (lambda: Gibbs("mse", initial_sigma=np.nan), "positive and finite.*=nan"),
    "a bad sigma among good ones": (
        lambda: Gaussian(per_channel=True, initial_sigma=[1.0, -2.0]),
        "positive and finite",
    ),
    "several sigmas for one": (
        lambda: Gaussian(initial_sigma=[1.0, 2.0]),
        "one number.*per_channel=True",
    ),
    "several sigmas for classes": (lambda: Bernoulli(initial_sigma=[1.0, 2.0]), "one number"),
    "a missing value that is no number": (lambda: Gaussian(missing="nan"), "`missing`.*'nan'"),
    "a Gibbs without a loss": (lambda: Gibbs(None), "Gibbs expects a Keras loss.*None"),
    "a negative loss weight": (
        lambda: UncertaintyWeighting({"depth": "mse"}, loss_weights={"depth": -1.0}),
        "Task 'depth'.*not negative.*-1.0",
    ),
    "an infinite loss weight": (
        lambda: UncertaintyWeighting({"depth": "mse"}, loss_weights={"depth": np.inf}),
        "Task 'depth'.*finite.*inf",
    ),
    "a loss weight that is no number": (
        lambda: UncertaintyWeighting({"depth": "mse"}, loss_weights={"depth": "1"}),
        "Task 'depth'.*number.*'1'",
    ),
    "a loss weight of an unknown task": (
        lambda: UncertaintyWeighting({"depth": "mse"}, loss_weights={"dept": 1.0}),
        "unknown task 'dept'.*depth",
    ),
    "sigmas that are yet to be": (
        lambda: UncertaintyWeighting({"depth": "mse"}).sigmas(),
        "no log-variances yet.*Call it",
    ),
    "an unknown way to update": (
        lambda: UncertaintyWeighting({"depth": "mse"}, update="analytic"),
        '"trained" or "closed_form".*\'analytic\'',
    ),
    "loss weights in a list": (
        lambda: UncertaintyWeighting({"depth": "mse"}, loss_weights=[1.0]),
        "`loss_weights` must be a dict",
    ),
}

SHAPES = {
    "channels against a scalar": (
        lambda: weigh(prediction=(8, 3)),
        r"expects targets of shape \(8, 3\).*Received: targets of shape \(8, 1\)",
    ),
    "a scalar against channels": (
        lambda: weigh(target=(8, 3)),
        r"expects targets of shape \(8, 1\).*\(8, 3\)",
    ),
    "vectors against scalars": (lambda: weigh(prediction=(8,), target=(8, 8)), r"\(8, 8\)"),
    "an image of another size": (
        lambda: weigh(prediction=(2, 4, 4, 1), target=(2, 4, 5, 1)),
        r"\(2, 4, 4, 1\).*\(2, 4, 5, 1\)",
    ),
    "a matrix against its transpose": (
        lambda: weigh(prediction=(2, 1, 3), target=(2, 3, 1)),
        r"\(2, 1, 3\).*\(2, 3, 1\)",
    ),
    "one-hot targets for class ids": (
        lambda: weigh(Categorical(), (8, 3), (8, 3)),
        r"shape \(8,\).*\(8, 3\).*sparse=False",
    ),
    "class ids for one-hot targets": (
        lambda: weigh(Categorical(sparse=False), (8, 3), (8,)),
        r"shape \(8, 3\).*\(8,\).*sparse=True",
    ),
    "another number of classes": (
        lambda: weigh(Categorical(sparse=False), (8, 3), (8, 4)),
        r"\(8, 3\).*\(8, 4\)",
    ),
    "one channel for classes": (
        lambda: weigh(Categorical(), (8, 1), (8,)),
        r"2 classes or more.*\(8, 1\).*Bernoulli",
    ),
    "no channel for classes": (lambda: weigh(Categorical(), (8,), (8,)), r"\(batch, …, classes\)"),
    "flags of another number": (lambda: weigh(Bernoulli(), (8, 3), (8, 2)), r"\(8, 3\).*\(8, 2\)"),
    "sigmas of another number": (
        lambda: weigh(Gaussian(per_channel=True, initial_sigma=[1.0, 2.0]), (8, 3), (8, 3)),
        r"`initial_sigma` must be one number or 3.*Received: 2",
    ),
    "weights of another length": (lambda: weigh(weight=(7,)), r"`sample_weight`.*\(8, 1\).*\(7,\)"),
    "weights of channels that are none": (
        lambda: weigh(weight=(8, 3)),
        r"`sample_weight`.*\(8, 1\).*\(8, 3\)",
    ),
    "weights of too many axes": (lambda: weigh(weight=(8, 1, 2)), r"`sample_weight`.*\(8, 1, 2\)"),
    "a label left out of one number for the batch": (
        lambda: weigh(Gibbs(keras.losses.Dice(), missing=255), (8, 4, 4, 1), (8, 4, 4, 1)),
        r"one number for the whole batch.*Dice\(axis=",
    ),
    "weights of one number for the batch": (
        lambda: weigh(Gibbs(keras.losses.Dice()), (8, 4), (8, 4), weight=(8,)),
        r"one number for the whole batch.*Dice\(axis=",
    ),
    "weights finer than the loss": (
        lambda: weigh(Gibbs("huber"), (8, 3), (8, 3), weight=(8, 3)),
        r"`sample_weight`.*\(8,\).*\(8, 3\)",
    ),
}

STRUCTURES = {
    "a prediction too few": lambda p, t: two_tasks()(without(p, "depth"), t),
    "a target too few": lambda p, t: two_tasks()(p, without(t, "depth")),
    "a weight too few": lambda p, t: two_tasks()(p, t, sample_weight={"classes": np.ones(8)}),
    "an unknown prediction": lambda p, t: two_tasks()({**p, "dept": p["depth"]}, t),
    "an unknown target": lambda p, t: two_tasks()(p, {**t, "dept": t["depth"]}),
    "an unknown weight": lambda p, t: two_tasks()(
        p, t, sample_weight=dict.fromkeys(("depth", "classes", "dept"), np.ones(8))
    ),
    "a misspelt target": lambda p, t: two_tasks()(
        p, {"Depth": t["depth"], "classes": t["classes"]}
    ),
    "a list with a prediction too few": lambda p, t: two_tasks()([p["depth"]], t),
    "a list with a target too many": lambda p, t: two_tasks()(p, [*t.values(), t["depth"]]),
    "a list with a weight too few": lambda p, t: two_tasks()(p, t, sample_weight=[np.ones(8)]),
    "no prediction": lambda p, t: two_tasks()({**p, "depth": None}, t),
    "no target": lambda p, t: two_tasks()(p, {**t, "depth": None}),
    "one tensor for two predictions": lambda p, t: two_tasks()(p["depth"], t),
    "one tensor for two targets": lambda p, t: two_tasks()(p, t["depth"]),
}


def assert_raises(call, message):
    with pytest.raises(ValueError, match=re.compile(message, re.DOTALL)):
        call()


@pytest.mark.parametrize(("call", "message"), CONSTRUCTIONS.values(), ids=CONSTRUCTIONS)
def test_constructions(call, message):
    assert_raises(call, message)


@pytest.mark.parametrize(("call", "message"), SHAPES.values(), ids=SHAPES)
def test_shapes(call, message):
    assert_raises(call, "Task 'depth'.*" + message)


@pytest.mark.parametrize("call", STRUCTURES.values(), ids=STRUCTURES)
def test_structures(call):
    assert_raises(lambda: call(*arrays()), "depth.*Received")


class TestFunctionalModels:
    """What can be known before the first step is said when the model is made."""

    def outputs(self):
        x = keras.Input((4,), name="x")
        return x, {"depth": keras.layers.Dense(1)(x), "classes": keras.layers.Dense(3)(x)}

    def test_a_target_input_that_does_not_fit(self):
        _, outputs = self.outputs()
        targets = {"depth": keras.Input((2,)), "classes": keras.Input((), dtype="int32")}
        assert_raises(
            lambda: two_tasks()(outputs, targets), r"Task 'depth'.*\(None, 1\).*\(None, 2\)"
        )

    def test_target_inputs_of_unfit_predictions(self):
        x, outputs = self.outputs()
        assert_raises(
            lambda: two_tasks().target_inputs({**outputs, "classes": outputs["depth"]}),
            r"Task 'classes'.*Received: predictions of shape \(None, 1\)",
        )
        assert_raises(lambda: two_tasks().target_inputs([x]), "depth.*Received: 1")

    @pytest.mark.parametrize("wrong", ["unfit", "missing", "unknown", "too few"])
    def test_outputs(self, wrong):
        x, outputs = self.outputs()
        wrong = {
            "unfit": outputs | {"classes": outputs["depth"]},
            "missing": without(outputs, "classes"),
            "unknown": outputs | {"extra": outputs["depth"]},
            "too few": [outputs["depth"]],
        }[wrong]
        assert_raises(lambda: MultiTaskModel(x, wrong, two_tasks()), "classes.*Received")

    def test_no_weighting(self):
        assert_raises(lambda: MultiTaskModel(*self.outputs()), "expects a weighting")

    def test_what_is_no_weighting(self):
        assert_raises(lambda: MultiTaskModel(*self.outputs(), "mse"), "must be a dict.*'mse'")

    def test_a_loss_in_compile(self):
        model = MultiTaskModel(*self.outputs(), two_tasks())
        assert_raises(
            lambda: model.compile("adam", loss={"depth": "mse"}),
            r"takes no `loss`.*UncertaintyWeighting\(\{task: loss.*'depth': 'mse'",
        )

    def test_loss_weights_in_compile(self):
        model = MultiTaskModel(*self.outputs(), two_tasks())
        assert_raises(
            lambda: model.compile("adam", loss_weights={"depth": 2.0}),
            r"no `loss_weights`.*UncertaintyWeighting\(tasks, loss_weights=",
        )

    @pytest.mark.parametrize(
        "targets",
        [
            None,
            {"depth": np.zeros((8, 1))},
            {"depth": np.zeros((8, 2)), "classes": np.zeros(8)},
            {"depth": np.zeros((8, 1)), "classes": np.zeros((8, 3))},
            [np.zeros((8, 1))],
        ],
        ids=["none", "one missing", "channels", "one-hot", "too few"],
    )
    def test_targets_in_fit(self, targets):
        model = MultiTaskModel(*self.outputs(), two_tasks())
        model.compile("adam")
        before = model.get_weights()
        assert_raises(lambda: model.fit(np.zeros((8, 4)), targets, verbose=0), "depth|classes")
        for one, other in zip(before, model.get_weights(), strict=True):
            np.testing.assert_array_equal(one, other)
