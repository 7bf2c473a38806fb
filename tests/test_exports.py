"""Exported models answer in their own runtimes as they do in Keras."""

import os
import subprocess
import sys

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
    NegativeBinomial,
    Ordinal,
    Poisson,
    Quantile,
    StudentT,
    UncertaintyWeighting,
    inference_model,
)

SIZES = {"channels": 2, "flags": 2, "huber": 2, "kind": 3, "mean": 1, "noisy": 4}
X = np.random.default_rng(0).normal(size=(64, 4)).astype("float32")

# The formats that Keras exports such models to, and the packages that export and run each of them.
PACKAGES = {
    "tensorflow": {
        "tf_saved_model": ["tensorflow"],
        "onnx": ["tf2onnx", "onnxruntime"],
        "litert": ["ai_edge_litert"],
        "openvino": ["openvino"],
    },
    "jax": {"tf_saved_model": ["tensorflow"], "onnx": ["jax2onnx", "onnxruntime"]},
    "torch": {"onnx": ["onnx", "onnxruntime"]},
}[keras.backend.backend()]


def export_and_run(model, format, directory, batches):
    """The outputs of the exported model for each batch: lists in the order of their names."""
    for package in PACKAGES[format]:
        pytest.importorskip(package, reason=f"The format {format} needs {package}.")
    path = str(directory / ("model" + {"litert": ".tflite", "openvino": ".xml"}.get(format, "")))
    model.export(path, format=format, verbose=False)
    return [globals()[format](path, batch) for batch in batches]


def tf_saved_model(path, batch):
    import tensorflow as tf

    model = tf.saved_model.load(path)
    served = model.serve(batch)
    return [served[name].numpy() for name in sorted(served)]


def onnx(path, batch):
    import onnxruntime

    session = onnxruntime.InferenceSession(path)
    names = [each.name for each in session.get_inputs()]
    values = list(batch.values()) if isinstance(batch, dict) else [batch]
    served = session.run(None, dict(zip(names, values, strict=True)))
    if keras.backend.backend() != "tensorflow":
        return served  # The outputs have no names, and Keras's order.
    names = [each.name for each in session.get_outputs()]
    return [value for _, value in sorted(zip(names, served, strict=True))]


def litert(path, batch):
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(path)
    batch = batch if isinstance(batch, dict) else {"x": batch}
    served = interpreter.get_signature_runner()(**batch)
    return [served[name] for name in sorted(served)]


def openvino(path, batch):
    from openvino import Core

    # Some processors would compute in half precision.
    model = Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    served = {min(names.names, key=len): value for names, value in model(batch).to_dict().items()}
    return [served[name] for name in sorted(served)]


def outputs(x):
    hidden = keras.layers.Dense(8, activation="relu")(x)
    return {task: keras.layers.Dense(size)(hidden) for task, size in SIZES.items()}


@pytest.fixture(scope="module")
def models():
    keras.utils.set_random_seed(0)
    tasks = {
        "channels": Laplace(per_channel=True),
        "flags": Bernoulli(),
        "huber": Gibbs("huber"),
        "kind": Categorical(),
        "mean": Gaussian(),
        "noisy": Gaussian(heteroscedastic=True),
    }
    x = keras.Input((4,), name="x")
    model = MultiTaskModel(x, outputs(x), tasks)
    untrained = inference_model(model)
    rng = np.random.default_rng(1)
    y = {task: rng.normal(size=(64, size)) for task, size in (SIZES | {"noisy": 2}).items()}
    y["kind"] = np.argmax(X[:, :3] + rng.gumbel(size=(64, 3)), axis=-1)
    y["flags"] = (X[:, :2] + rng.logistic(size=(64, 2)) > 0).astype("float32")
    model.compile(keras.optimizers.Adam(0.02))
    model.fit(X, y, epochs=40, batch_size=16, verbose=0)
    trained = inference_model(model)
    model.calibrate(X[::2], {task: target[::2] for task, target in y.items()}, verbose=0)
    assert model.weighting.sigmas()["kind"] != pytest.approx(1, abs=0.01)
    return {
        "untrained": untrained,
        "trained": trained,
        "calibrated": model,
        "predictive": model.predictive_model,
    }


@pytest.mark.parametrize("format", PACKAGES)
@pytest.mark.parametrize("name", ["untrained", "trained", "calibrated", "predictive"])
def test_an_exported_model_answers_as_it_does_in_keras(models, name, format, tmp_path):
    model = models[name]() if name == "predictive" else models[name]
    sizes = (1, 5)
    served = export_and_run(model, format, tmp_path, [X[:size] for size in sizes])
    expected = model.predict(X, verbose=0)  # Export needs no prediction before.
    for size, values in zip(sizes, served, strict=True):
        for output, value in zip(sorted(expected), values, strict=True):
            np.testing.assert_allclose(
                value, expected[output][:size], rtol=1e-5, atol=1e-5, err_msg=output
            )


# Each likelihood, and the size of its output.
PREDICTIVE = {
    "answers": (Bernoulli(from_logits=False, approximate=True), 2),
    "classes": (Categorical(), 3),
    "columns": (Categorical(per_channel=True), (2, 3)),
    "counts": (Poisson(), 1),
    "flags": (Bernoulli(), 2),
    "flags_by_column": (Bernoulli(per_channel=True), 2),
    "mean": (Gaussian(per_channel=True), 2),
    "noisy": (Laplace(heteroscedastic=True), 2),
    "noisy_counts": (NegativeBinomial(heteroscedastic=True), 2),
    "noisy_stars": (Ordinal(0, 3, heteroscedastic=True), 2),
    "quantile": (Quantile(0.9), 1),
    "reads": (NegativeBinomial(), 1),
    "stars": (Ordinal(1, 5), 1),
    "student": (StudentT(), 1),
    "topics": (Categorical(approximate=True, from_logits=False), 3),
    "words": (Categorical(approximate=True), 3),
}


@pytest.fixture(scope="module")
def with_intervals():
    keras.utils.set_random_seed(0)
    x = keras.Input((4,), name="x")
    hidden, predictions = keras.layers.Dense(8, activation="relu")(x), {}
    rng, y = np.random.default_rng(2), {}
    for task, (likelihood, size) in PREDICTIVE.items():
        activation = {"answers": "sigmoid", "topics": "softmax"}.get(task)
        head = keras.layers.Dense(int(np.prod(size)), activation=activation)(hidden)
        predictions[task] = keras.layers.Reshape((2, 3))(head) if task == "columns" else head
        shape = (64, *likelihood.target_shape((None, *np.atleast_1d(size)))[1:])
        y[task] = rng.integers(1, 3, size=shape)
    for task in ("answers", "flags", "flags_by_column"):
        y[task] = y[task] - 1
    model = MultiTaskModel(x, predictions, {task: each for task, (each, _) in PREDICTIVE.items()})
    for intervals in (None, 0.8):
        model.calibrate(X, y, verbose=0, intervals=intervals)
    return model.predictive_model()


@pytest.mark.parametrize("format", PACKAGES)
def test_distributions_and_intervals_of_all_likelihoods_are_exported(
    with_intervals, format, tmp_path
):
    (served,) = export_and_run(with_intervals, format, tmp_path, [X])
    expected = with_intervals.predict(X, verbose=0)
    regions = {name for name in expected if name.endswith(("_lower", "_set"))}
    assert len(regions) == len(PREDICTIVE)
    for name, value in zip(sorted(expected), served, strict=True):
        np.testing.assert_allclose(value, expected[name], rtol=1e-5, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("format", PACKAGES)
@pytest.mark.parametrize("bare", [False, True])
def test_a_network_of_several_inputs_is_exported_before_any_training(bare, format, tmp_path):
    inputs = {name: keras.Input((2,), name=name) for name in ("left", "right")}
    joined = keras.layers.Concatenate()([*inputs.values()])
    predictions = outputs(joined)
    predictions = {task: predictions[task] for task in ("kind", "mean")}
    weighting = UncertaintyWeighting({"kind": Categorical(initial_sigma=0.5), "mean": Gaussian()})
    if bare:
        targets = weighting.target_inputs(predictions)
        more = {each.name: each for each in targets.values()}
        model = inference_model(keras.Model({**inputs, **more}, weighting(predictions, targets)))
    else:
        model = MultiTaskModel(inputs, predictions, weighting)
    batch = {"left": X[:3, :2], "right": X[:3, 2:]}
    (served,) = export_and_run(model, format, tmp_path, [batch])
    expected = model.predict(batch, verbose=0)
    for task, value in zip(("kind", "mean"), served, strict=True):
        np.testing.assert_allclose(value, expected[task], rtol=1e-5, atol=1e-5)


WITHOUT_KERAS = """
import sys
for module in ("keras", "keras_uncertainty_mtl"):
    sys.modules[module] = None  # blocks the import
import numpy as np
import tensorflow as tf
x = np.load("x.npy")
for name in sys.argv[1:]:
    network = tf.saved_model.load(name)
    for size in (1, 5):
        served = network.signatures["serving_default"](tf.constant(x[:size]))
        np.savez(f"{name}_{size}.npz", **served)
"""


@pytest.mark.backends("tensorflow", "jax", reason="PyTorch exports no SavedModel")
def test_a_process_without_keras_and_the_package_serves_every_saved_model(models, tmp_path):
    pytest.importorskip("tensorflow", reason="TensorFlow serves the SavedModel.")
    networks = {name: models[name] for name in ("untrained", "trained", "calibrated")}
    networks["predictive"] = models["predictive"]()
    np.save(tmp_path / "x.npy", X)
    for name, model in networks.items():
        model.export(tmp_path / name, verbose=False)
    command = [sys.executable, "-c", WITHOUT_KERAS, *networks]
    subprocess.run(command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": ""}, check=True)
    for name, model in networks.items():
        expected = model.predict(X, verbose=0)
        for size in (1, 5):
            served = np.load(tmp_path / f"{name}_{size}.npz")
            assert {*served} == {*expected}
            for output, value in expected.items():
                np.testing.assert_allclose(served[output], value[:size], rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module", params=["mixed_float16", "mixed_bfloat16", "int8"])
def reduced(request):
    """Stock Keras's network in less than float32, and the same network with tasks."""
    policy = "float32" if request.param == "int8" else request.param
    tasks = {"kind": Categorical(initial_sigma=0.5), "mean": Gaussian(initial_sigma=3.0)}

    def network(model):
        keras.utils.set_random_seed(0)
        x = keras.Input((4,), name="x")
        hidden = keras.layers.Dense(8, activation="relu", dtype=policy)(x)
        heads = {task: keras.layers.Dense(SIZES[task], dtype="float32")(hidden) for task in tasks}
        network = model(x, heads)
        if request.param == "int8":
            network.quantize("int8")
        return network

    return network(keras.Model), network(lambda *graph: MultiTaskModel(*graph, tasks))


@pytest.mark.parametrize("format", PACKAGES)
def test_less_than_float32_answers_in_each_runtime_as_stock_keras_does(reduced, format, tmp_path):
    def run(name, model):
        (tmp_path / name).mkdir()
        return export_and_run(model, format, tmp_path / name, [X[:1], X])

    stock, model = reduced
    stock(X[:1])  # as for `inference_model`
    try:
        expected = run("stock", stock)
    except Exception as error:
        pytest.skip(f"Stock Keras's own network fails: {str(error)[:200]}")
    network, predictive = run("network", model), run("predictive", model.predictive_model())
    for (kind, mean), answer, distribution in zip(expected, network, predictive, strict=True):
        odds = np.exp(kind / 0.5**2)
        probabilities = odds / odds.sum(axis=-1, keepdims=True)
        wanted = [kind / 0.5**2, mean, probabilities, mean, np.full_like(mean, 3.0)]
        for value, received in zip(wanted, [*answer, *distribution], strict=True):
            np.testing.assert_allclose(received, value, rtol=1e-5, atol=1e-5)


def test_a_path_may_be_a_path_object(models, tmp_path):
    if "openvino" in PACKAGES:
        pytest.importorskip("openvino", reason="The format openvino needs openvino.")
        models["calibrated"].export(tmp_path / "model.xml", format="openvino", verbose=False)
        assert (tmp_path / "model.xml").exists()
