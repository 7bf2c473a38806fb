"""Wrong calls raise a `ValueError` with the task, the expected and the received value.

A likelihood made by itself has no task yet, so the errors of the first table name none. In all
other tables the message begins with the package's own words. Keras may append the arguments of the
call.
"""

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


def weigh(
    likelihood=None,
    prediction=(8, 1),
    target=(8, 1),
    weight=None,
    dtype="float32",
    prediction_dtype="float32",
    weight_dtype="float32",
):
    """Calls a layer of one task, "depth", on arrays of these shapes."""
    layer = UncertaintyWeighting({"depth": likelihood or Gaussian()})
    layer(
        {"depth": np.zeros(prediction, prediction_dtype)},
        {"depth": np.zeros(target, dtype)},
        sample_weight=None if weight is None else {"depth": np.ones(weight, weight_dtype)},
    )


def weigh_tensors(targets):
    import tensorflow as tf

    layer = UncertaintyWeighting({"depth": Gaussian()})
    layer.build((8, 1))
    layer.combined_loss(np.zeros((8, 1), "float32"), {"depth": targets(tf)})


def two_tasks():
    return UncertaintyWeighting({"depth": Laplace(), "classes": Categorical()})


def arrays():
    predictions = {"depth": np.zeros((8, 1)), "classes": np.zeros((8, 3))}
    targets = {"depth": np.zeros((8, 1)), "classes": np.zeros(8, "int32")}
    return predictions, targets


def config_of(likelihood, **changes):
    serialized = keras.saving.serialize_keras_object(likelihood)
    return serialized | {"config": serialized["config"] | changes}


def without(structure, task):
    return {name: value for name, value in structure.items() if name != task}


TASKLESS = {
    "no tasks": (lambda: UncertaintyWeighting({}), "one task or more.*Received: {}"),
    "tasks in a list": (lambda: UncertaintyWeighting([Gaussian()]), "must be a dict"),
    "an empty name": (lambda: UncertaintyWeighting({"": Gaussian()}), "not empty.*Received: ''"),
    "a name that is a number": (
        lambda: UncertaintyWeighting({3: Gaussian()}),
        "string.*Received: 3",
    ),
    "a name with a slash": (lambda: UncertaintyWeighting({"a/b": Gaussian()}), "no '/'.*'a/b'"),
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
    "a Gibbs without a loss": (lambda: Gibbs(3.0), r"Gibbs expects a Keras loss.*3\.0"),
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

WEIGHTINGS = {
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
        r"unknown task 'dept'.*\['depth'\]",
    ),
    "several sigmas for one, in a config": (
        lambda: UncertaintyWeighting({"depth": config_of(Gaussian(), initial_sigma=[1.0, 2.0])}),
        "Task 'depth'.*one number",
    ),
    "a loss in a config that is unknown": (
        lambda: UncertaintyWeighting({"depth": {"class_name": "NoLoss", "config": {}}}),
        "Task 'depth': Expected a likelihood.*Received.*NoLoss",
    ),
    "a sparse cross-entropy over another axis": (
        lambda: UncertaintyWeighting(
            {"depth": keras.losses.SparseCategoricalCrossentropy(from_logits=True, axis=1)}
        ),
        r"Task 'depth'.*over the last axis.*axis=1\. Move",
    ),
    "a sigma that is too small": (
        lambda: weigh(Gaussian(initial_sigma=1e-20)),
        "Task 'depth'.*between 1e-13 and 1e13.*1e-20.*unit",
    ),
    "a sigma that is too large": (
        lambda: weigh(Laplace(initial_sigma=1e20)),
        r"Task 'depth'.*between 1e-13 and 1e13.*1e\+20.*unit",
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
        r"`initial_sigma` must be one number or 3.*Received: initial_sigma=\[1\.0, 2\.0\]",
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
    "a heteroscedastic output against as many channels": (
        lambda: weigh(Gaussian(heteroscedastic=True), (8, 2), (8, 2)),
        r"targets of shape \(8, 1\).*\(8, 2\).*heteroscedastic=True.*twice as many channels",
    ),
    "a heteroscedastic output without a half": (
        lambda: weigh(Laplace(heteroscedastic=True), (8, 3), (8, 1)),
        r"even size: `Dense\(2\)` for one number.*\(8, 3\)",
    ),
    "a heteroscedastic output without channels": (
        lambda: weigh(Laplace(heteroscedastic=True), (8,), (8,)),
        r"even size.*\(8,\)",
    ),
    "a sigma for each channel of none": (
        lambda: weigh(Gaussian(per_channel=True), (8,), (8,)),
        r"per_channel=True.*last axis is of channels.*\(8,\)",
    ),
    "an output of fewer axes than the images": (
        lambda: weigh(Laplace(), (8, 3), (8, 4, 4, 3)),
        r"\(8, 3\).*\(8, 4, 4, 3\)",
    ),
    "labels of other pixels": (
        lambda: weigh(Categorical(), (2, 4, 4, 3), (2, 4, 5)),
        r"\(2, 4, 4\).*\(2, 4, 5\)",
    ),
    "strings for targets": pytest.param(
        lambda: weigh(dtype="U3"),
        r"targets must be real numbers.*Received: dtype str.*StringLookup",
        marks=pytest.mark.backends("tensorflow", reason="only TensorFlow has tensors of strings"),
    ),
    "ragged targets": pytest.param(
        lambda: weigh_tensors(lambda tf: tf.RaggedTensor.from_row_lengths(np.ones(12), [1, 2] * 4)),
        r"targets must be a dense tensor.*Received: a RaggedTensor.*to_tensor.*missing=-1",
        marks=pytest.mark.backends("tensorflow", reason="only TensorFlow has ragged tensors"),
    ),
    "sparse targets": pytest.param(
        lambda: weigh_tensors(lambda tf: tf.sparse.from_dense(np.ones((8, 1)))),
        r"targets must be a dense tensor.*Received: a SparseTensor.*to_dense",
        marks=pytest.mark.backends("tensorflow", reason="only TensorFlow has these sparse tensors"),
    ),
    "complex targets": (
        lambda: weigh(dtype="complex64"),
        "targets must be real numbers.*Received: dtype complex64",
    ),
    "complex predictions": (
        lambda: weigh(prediction_dtype="complex64"),
        "predictions must be real numbers.*Received: dtype complex64",
    ),
    "complex weights": (
        lambda: weigh(weight=(8,), weight_dtype="complex64"),
        "`sample_weight` must be real numbers.*Received: dtype complex64",
    ),
    "weights finer than the loss": (
        lambda: weigh(Gibbs("cosine_similarity"), (8, 3), (8, 3), weight=(8, 3)),
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
    "a nested prediction": lambda p, t: two_tasks()({**p, "depth": dict.fromkeys("ab", p)}, t),
    "a nested target": lambda p, t: two_tasks()(p, {**t, "depth": {"near": t["depth"]}}),
    "a list of targets": lambda p, t: two_tasks()(p, {**t, "depth": [t["depth"], t["depth"]]}),
    "one tensor for two predictions": lambda p, t: two_tasks()(p["depth"], t),
    "one tensor for two targets": lambda p, t: two_tasks()(p, t["depth"]),
}


def assert_raises(call, message):
    with pytest.raises(ValueError, match=re.compile(message, re.DOTALL)) as caught:
        call()
    assert caught.type is ValueError


@pytest.mark.parametrize(("call", "message"), TASKLESS.values(), ids=TASKLESS)
def test_a_wrong_argument_is_refused(call, message):
    assert_raises(call, message)


@pytest.mark.parametrize(("call", "message"), WEIGHTINGS.values(), ids=WEIGHTINGS)
def test_a_wrong_likelihood_or_loss_weight_names_its_task(call, message):
    assert_raises(call, message)


@pytest.mark.parametrize(("call", "message"), SHAPES.values(), ids=SHAPES)
def test_a_wrong_shape_or_dtype_names_its_task(call, message):
    assert_raises(call, "Task 'depth': .*" + message)


@pytest.mark.parametrize("call", STRUCTURES.values(), ids=STRUCTURES)
def test_a_wrong_structure_names_its_task(call):
    assert_raises(lambda: call(*arrays()), "depth.*Received: ")


def symbolic():
    x = keras.Input((4,), name="x")
    return x, {"depth": keras.layers.Dense(1)(x), "classes": keras.layers.Dense(3)(x)}


def fit(targets, sample_weight=None, **arguments):
    model = MultiTaskModel(*symbolic(), two_tasks())
    model.compile("adam", **arguments)
    model.fit(np.zeros((8, 4)), targets, sample_weight=sample_weight, verbose=0)


def model_of(change):
    """A model of two tasks with changed outputs."""
    x, outputs = symbolic()
    return MultiTaskModel(x, change(outputs), two_tasks())


def named_layers(*names):
    x = keras.Input((4,))
    return x, [keras.layers.Dense(3, name=name)(x) for name in names]


def in_a_model(inputs, outputs):
    x = keras.Input((4,))
    return x, keras.Model(inputs, outputs)(x)


def target_inputs(change):
    return two_tasks().target_inputs(change(symbolic()[1]))


# These errors are raised before the first step, when the model is made.
MODELS = {
    "an unfit output": (
        lambda: model_of(lambda outputs: outputs | {"classes": outputs["depth"]}),
        r"Task 'classes': Categorical expects.*2 classes or more.*\(None, 1\).*Bernoulli",
    ),
    "no output of a task": (
        lambda: model_of(lambda outputs: without(outputs, "classes")),
        r"\['depth', 'classes'\].*Received.*without \['classes'\]",
    ),
    "an output of no task": (
        lambda: model_of(lambda outputs: outputs | {"extra": outputs["depth"]}),
        r"\['depth', 'classes'\].*Received.*unknown \['extra'\]",
    ),
    "an output too few": (
        lambda: model_of(lambda outputs: [outputs["depth"]]),
        r"\['depth', 'classes'\].*Received: 1 entries",
    ),
    "outputs in another order": (
        lambda: MultiTaskModel(*named_layers("classes", "depth"), two_tasks()),
        r"`outputs`.*order of the tasks, \['depth', 'classes'\].*\['classes', 'depth'\].*dict",
    ),
    "outputs of a model in another order": (
        lambda: MultiTaskModel(*in_a_model(*named_layers("classes", "depth")), two_tasks()),
        r"`outputs`.*order of the tasks, \['depth', 'classes'\].*\['classes', 'depth'\]",
    ),
    "an output of another task": (
        lambda: MultiTaskModel(*named_layers("left", "depth"), two_tasks()),
        r"`outputs`.*order of the tasks, \['depth', 'classes'\].*\['left', 'depth'\]",
    ),
    "predictions in another order": (
        lambda: two_tasks()(named_layers("classes", "depth")[1]),
        r"`predictions`.*order of the tasks, \['depth', 'classes'\].*\['classes', 'depth'\]",
    ),
    "one output for two": (
        lambda: model_of(lambda outputs: outputs["depth"]),
        r"\['depth', 'classes'\].*Received: ",
    ),
    "a loss in compile": (
        lambda: MultiTaskModel(*symbolic(), two_tasks()).compile("adam", loss={"depth": "mse"}),
        r"takes no `loss`.*UncertaintyWeighting\(tasks.*'depth': 'mse'",
    ),
    "loss weights in compile": (
        lambda: MultiTaskModel(*symbolic(), two_tasks()).compile(loss_weights={"depth": 2.0}),
        r"no `loss_weights`.*UncertaintyWeighting\(tasks, loss_weights=.*'depth': 2.0",
    ),
    "a target input that does not fit": (
        lambda: two_tasks()(
            symbolic()[1], {"depth": keras.Input((2,)), "classes": keras.Input((), dtype="int32")}
        ),
        r"Task 'depth': Laplace expects targets of shape \(None, 1\).*\(None, 2\)",
    ),
    "a target input of strings": (
        lambda: two_tasks()(
            symbolic()[1], {"depth": keras.Input((1,)), "classes": keras.Input((), dtype="string")}
        ),
        "Task 'classes': targets must be real numbers.*Received: dtype string.*StringLookup",
    ),
    "no target input": (
        lambda: two_tasks()(symbolic()[1], {"depth": keras.Input((1,))}),
        r"`targets`.*\['depth', 'classes'\].*without \['classes'\]",
    ),
    "target inputs of an unfit prediction": (
        lambda: target_inputs(lambda outputs: outputs | {"classes": outputs["depth"]}),
        r"Task 'classes': .*Received: predictions of shape \(None, 1\)",
    ),
    "target inputs of a prediction too few": (
        lambda: target_inputs(lambda outputs: [outputs["depth"]]),
        r"`predictions`.*\['depth', 'classes'\].*Received: 1",
    ),
    "target inputs of no predictions": (
        lambda: target_inputs(lambda outputs: None),
        r"`predictions`.*\['depth', 'classes'\].*Received: None",
    ),
}

DEPTH, CLASSES = np.zeros((8, 1), "float32"), np.zeros(8, "int32")
FITS = {
    "no targets": (lambda: fit(None), r"`targets`.*\['depth', 'classes'\].*Received: None"),
    "targets of one task": (lambda: fit({"depth": DEPTH}), r"without \['classes'\]"),
    "targets of one task in a list": (
        lambda: fit([DEPTH]),
        r"`targets`.*\['depth', 'classes'\].*Received: ",
    ),
    "targets of an unknown task": (
        lambda: fit({"depth": DEPTH, "classes": CLASSES, "dept": DEPTH}),
        r"`targets`.*\['depth', 'classes'\].*unknown \['dept'\]",
    ),
    "channels": (
        lambda: fit({"depth": np.zeros((8, 2)), "classes": CLASSES}),
        r"Task 'depth': Laplace expects targets of shape \(.*, 1\).*\(.*, 2\)",
    ),
    "one-hot": (
        lambda: fit({"depth": DEPTH, "classes": np.zeros((8, 3))}),
        r"Task 'classes': Categorical expects.*\(.*, 3\).*sparse=False",
    ),
    "weights of channels that are none": (
        lambda: fit(
            {"depth": DEPTH, "classes": CLASSES},
            {"depth": np.ones((8, 3)), "classes": np.ones(8)},
        ),
        r"Task 'depth': `sample_weight` must have one entry for each.*\(.*, 3\)",
    ),
}


@pytest.mark.parametrize(("call", "message"), MODELS.values(), ids=MODELS)
def test_a_wrong_model_names_its_task(call, message):
    assert_raises(call, message)


@pytest.mark.parametrize(("call", "message"), FITS.values(), ids=FITS)
def test_wrong_targets_in_fit_name_their_task(call, message):
    assert_raises(call, message)


def test_the_order_of_named_layers_may_be_that_of_the_tasks():
    for inputs, outputs in (named_layers("depth", "classes"), named_layers("left", "right")):
        MultiTaskModel(inputs, outputs, two_tasks())
        MultiTaskModel(*in_a_model(inputs, outputs), two_tasks())


def test_one_layer_may_have_several_outputs():
    first, second = keras.Input((4,)), keras.Input((4,))
    shared = keras.layers.Dense(3, name="classes")
    MultiTaskModel([first, second], [shared(first), shared(second)], two_tasks())


def test_a_dict_says_itself_which_output_is_which():
    inputs, (classes, depth) = named_layers("classes", "depth")
    MultiTaskModel(inputs, {"depth": classes, "classes": depth}, two_tasks())


def test_a_model_without_a_weighting_is_refused():
    assert_raises(lambda: MultiTaskModel(*symbolic()), "expects a weighting.*Received: .*=None")


def test_a_string_for_a_weighting_is_refused():
    assert_raises(lambda: MultiTaskModel(*symbolic(), "mse"), "must be a dict.*'mse'")


def test_an_error_in_fit_leaves_the_weights_alone():
    model = MultiTaskModel(*symbolic(), two_tasks())
    model.compile("adam")
    before = model.get_weights()
    with pytest.raises(ValueError, match="without"):
        model.fit(np.zeros((8, 4)), {"depth": DEPTH}, verbose=0)
    for one, other in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.backends("tensorflow", reason="only TensorFlow has such tensors")
@pytest.mark.parametrize("part", ["predictions", "targets", "sample_weight"])
def test_a_tensor_of_unknown_rank_names_its_task(part):
    import tensorflow as tf

    layer = UncertaintyWeighting({"depth": Gaussian()})
    layer.build((8, 1))
    arrays = dict.fromkeys(("predictions", "targets", "sample_weight"), DEPTH)

    @tf.function(input_signature=[tf.TensorSpec(None)])
    def loss(tensor):
        return layer.combined_loss(**arrays | {part: tensor}, training=False)

    message = f"Task 'depth': .*{part}.* known number of axes.*unknown rank.*tf.ensure_shape"
    assert_raises(lambda: loss(DEPTH), message)
