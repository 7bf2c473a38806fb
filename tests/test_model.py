"""Models train with `fit`, are saved, and are exported without the weighting."""

import functools
import subprocess
import sys
import textwrap

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy import special

from keras_uncertainty_mtl import (
    Bernoulli,
    Categorical,
    Gaussian,
    Gibbs,
    Laplace,
    Likelihood,
    MultiTaskModel,
    UncertaintyWeighting,
    inference_model,
)

TAKES_SEVERAL_STEPS = pytest.mark.backends(
    "tensorflow", "jax", reason="Keras on PyTorch takes no steps_per_execution"
)


@keras.saving.register_keras_serializable(package="tests")
class Cubic(Likelihood):
    scale, power = 1 / 3, 1.5

    def loss(self, targets, predictions):
        return keras.ops.abs(targets - predictions) ** 3


def data(samples=100):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(samples, 4)).astype("float32")
    y = {
        "metres": (1000 * x[:, :1] + rng.normal(size=(samples, 1))).astype("float32"),
        "classes": (x[:, 1] > 0).astype("int32"),
        "price": np.exp(x[:, 2:3]).astype("float32"),
    }
    y["price"][::3] = np.nan
    return x, y


def tasks():
    return {
        "metres": Gaussian(),
        "classes": Categorical(),
        "price": Laplace(missing=np.nan),
    }


def network(structure=dict, **dense):
    x = keras.Input((4,), name="x")
    hidden = keras.layers.Dense(8, activation="tanh", **dense)(x)
    outputs = {
        # The order of the tasks is neither that of the layers' names nor of the alphabet.
        "metres": keras.layers.Dense(1, name="last")(hidden),
        "classes": keras.layers.Dense(2, name="middle")(hidden),
        "price": keras.layers.Dense(1, name="first")(hidden),
    }
    return x, outputs if structure is dict else structure(outputs.values())


def multi_task_model(structure=dict, optimizer=None, likelihoods=None, **compile_arguments):
    model = MultiTaskModel(*network(structure), likelihoods or tasks())
    model.compile(optimizer or keras.optimizers.Adam(0.01), **compile_arguments)
    return model


def layer_model(structure=dict, optimizer=None, **compile_arguments):
    x, outputs = network(structure)
    weighting = UncertaintyWeighting(tasks())
    targets = weighting.target_inputs(outputs)
    given = targets if structure is dict else structure(targets.values())
    model = keras.Model(
        {"x": x, **{t.name: t for t in targets.values()}}, weighting(outputs, given)
    )
    model.compile(optimizer or keras.optimizers.Adam(0.01), **compile_arguments)
    return model


def as_inputs(x, y):
    return {"x": x, **{f"{task}_target": target for task, target in y.items()}}


def fit(model, x, y, **arguments):
    arguments = {"batch_size": 32, "epochs": 2, "shuffle": False, "verbose": 0} | arguments
    history = model.fit(x, y, **arguments).history
    return {name: np.array(values) for name, values in history.items()}


def assert_equal_histories(one, other, rtol=1e-5):
    assert one.keys() == other.keys()
    for name, values in one.items():
        np.testing.assert_allclose(values, other[name], rtol=rtol, err_msg=name)


def assert_equal_weights(one, other):
    for a, b in zip(one.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def given_to(make, x, y):
    """The data as the model takes them: targets as `y`, or as inputs."""
    return (x, y) if make is multi_task_model else (as_inputs(x, y), None)


@functools.cache
def default_history(make):
    """Four epochs with the defaults of `compile`, as several tests compare with."""
    keras.utils.set_random_seed(1)
    return fit(make(), *given_to(make, *data()), epochs=4)


class TestFit:
    @pytest.mark.parametrize("structure", [list, tuple])
    def test_sequences_train_as_dicts_do(self, structure):
        x, y = data()
        keras.utils.set_random_seed(1)
        history = fit(multi_task_model(structure), x, structure(y.values()), epochs=4)
        assert_equal_histories(history, default_history(multi_task_model))

    @pytest.mark.backends("tensorflow", "torch", reason="Keras on JAX drops a layer's metrics")
    @pytest.mark.parametrize("structure", [dict, list])
    def test_the_bare_layer_trains_as_the_model_does(self, structure):
        x, y = data()
        keras.utils.set_random_seed(1)
        expected = fit(multi_task_model(), x, y, validation_data=(x, y))
        keras.utils.set_random_seed(1)
        inputs = as_inputs(x, y)
        layer = fit(layer_model(structure), inputs, None, validation_data=(inputs,))
        assert_equal_histories(layer, expected)

    @pytest.mark.parametrize(
        "arguments",
        [
            {"jit_compile": True},
            pytest.param({"steps_per_execution": 3}, marks=TAKES_SEVERAL_STEPS),
            {"run_eagerly": True},
        ],
        ids=lambda arguments: next(iter(arguments)),
    )
    @pytest.mark.parametrize("make", [multi_task_model, layer_model])
    def test_every_way_of_execution_takes_the_same_path(self, make, arguments):
        keras.utils.set_random_seed(1)
        history = fit(make(**arguments), *given_to(make, *data()), epochs=4)
        assert_equal_histories(history, default_history(make), rtol=1e-4)

    def test_a_model_learns_both_of_its_tasks(self):
        x, y = data(1000)
        x, y = x[:, :2], {"a": 50 * x[:, 0], "b": (x[:, 1] > 0).astype(int)}
        inputs = keras.Input((2,))
        outputs = [keras.layers.Dense(units)(inputs) for units in (1, 2)]
        model = MultiTaskModel(inputs, outputs, {"a": Gaussian(), "b": Categorical()})
        model.compile(keras.optimizers.Adam(0.1), metrics={"b": ["accuracy"]})
        history = fit(model, x, list(y.values()), epochs=40)
        assert history["a_loss"][-1] < 0.01 * history["a_loss"][0]
        assert history["b_accuracy"][-1] > 0.97

    def test_reported_losses_are_those_of_stock_keras(self):
        x, y = data(96)
        model = multi_task_model(list, metrics={"classes": ["accuracy"]})
        reported = model.evaluate(x, list(y.values()), batch_size=32, return_dict=True, verbose=0)
        stock = inference_model(model)
        labelled = ~np.isnan(y["price"][:, 0])
        stock.compile(
            loss=["mse", keras.losses.SparseCategoricalCrossentropy(from_logits=True), None],
            metrics=[None, ["accuracy"], None],
        )
        stock.evaluate(x, list(y.values()), verbose=0)
        expected = stock.get_metrics_result()
        price = np.abs(stock.predict(x, verbose=0)[2] - y["price"])[labelled].mean()
        assert reported["metres_loss"] == pytest.approx(float(expected["last_loss"]), rel=1e-5)
        assert reported["classes_loss"] == pytest.approx(
            float(expected["classes_temperature_loss"]), rel=1e-5
        )
        assert reported["classes_accuracy"] == pytest.approx(
            float(expected["classes_temperature_accuracy"])
        )
        assert reported["price_loss"] == pytest.approx(price, rel=1e-5)

    def test_callbacks_see_every_task_in_training_and_validation(self, tmp_path):
        x, y = data()
        seen = {}
        callbacks = [
            keras.callbacks.CSVLogger(tmp_path / "log.csv"),
            keras.callbacks.TensorBoard(tmp_path / "board"),
            keras.callbacks.LambdaCallback(on_train_batch_end=lambda _, logs: seen.update(logs)),
        ]
        model = multi_task_model()
        history = fit(model, x, y, validation_data=(x, y), callbacks=callbacks)
        names = {f"{task}_{value}" for task in tasks() for value in ("loss", "sigma")} | {"loss"}
        assert set(seen) == names
        assert set(history) == names | {f"val_{name}" for name in names}
        logged = (tmp_path / "log.csv").read_text().splitlines()[0].split(",")
        assert set(logged) == set(history) | {"epoch"}
        tags = {
            value.tag
            for part, prefix in (("train", ""), ("validation", ""))
            for file in (tmp_path / "board" / part).glob("events*")
            for event in tf.compat.v1.train.summary_iterator(str(file))
            for value in event.summary.value
        }
        assert {f"epoch_{name}" for name in names} <= tags
        for task, sigma in model.weighting.sigmas().items():
            # Training reports the σ of the last step, validation the σ after it.
            assert history[f"{task}_sigma"][-1] == pytest.approx(sigma, rel=0.2)
            assert history[f"val_{task}_sigma"][-1] == pytest.approx(sigma, rel=1e-5)

    def test_datasets_generators_and_arrays_train_the_same(self):
        x, y = data(96)
        weights = {task: np.linspace(0, 1, 96, dtype="float32") for task in y}

        class Batches(keras.utils.PyDataset):
            def __len__(self):
                return 3

            def __getitem__(self, index):
                part = slice(32 * index, 32 * index + 32)
                return keras.tree.map_structure(lambda a: a[part], (x, y, weights))

        sources = [
            Batches(),
            tf.data.Dataset.from_tensor_slices((x, y, weights)).batch(32),
            (Batches()[index % 3] for index in range(6)),
        ]
        keras.utils.set_random_seed(1)
        expected = fit(multi_task_model(), x, y, sample_weight=weights)
        for source in sources:
            keras.utils.set_random_seed(1)
            model = multi_task_model()
            history = model.fit(source, epochs=2, steps_per_epoch=3, shuffle=False, verbose=0)
            assert_equal_histories(history.history, expected)

    def test_class_weights_count_in_the_loss_of_one_task(self):
        x, y = data()
        inputs, outputs = network()
        model = MultiTaskModel(inputs, outputs["classes"], {"classes": Categorical()})
        model.compile(keras.optimizers.SGD(0.0))
        history = fit(
            model, x, y["classes"], class_weight={0: 1.0, 1: 5.0}, epochs=1, batch_size=100
        )
        logits = model.predict(x, verbose=0)
        each = keras.losses.sparse_categorical_crossentropy(y["classes"], logits, from_logits=True)
        expected = np.average(each, weights=np.where(y["classes"], 5.0, 1.0))
        assert history["classes_loss"][0] == pytest.approx(expected, rel=1e-5)

    def test_regularizers_of_the_network_count(self):
        x, y = data()
        inputs, outputs = network(kernel_regularizer=keras.regularizers.L2(0.5))
        model = MultiTaskModel(inputs, outputs, tasks())
        model.compile()
        total = model.evaluate(x, y, verbose=0, return_dict=True, batch_size=100)["loss"]
        plain = float(model.weighting.combined_loss(model(x), y, training=False))
        penalty = 0.5 * np.sum(np.square(model.layers[1].get_weights()[0]))
        assert total == pytest.approx(plain + penalty, rel=1e-5)

    @pytest.mark.backends("tensorflow", "torch", reason="Keras on JAX drops a layer's metrics")
    @pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
    def test_mixed_precision_keeps_losses_in_single_precision(self, policy):
        x, y = data()
        keras.config.set_dtype_policy(policy)
        try:
            models = multi_task_model(), layer_model()
        finally:
            keras.config.set_dtype_policy("float32")
        histories = fit(models[0], x, y), fit(models[1], as_inputs(x, y), None)
        for model, history in zip(models, histories, strict=True):
            (theta,) = [w for w in model.trainable_weights if w.name == "theta"]
            assert theta.dtype == "float32"
            assert all(np.all(np.isfinite(values)) for values in history.values())
            # Half precision cannot hold the squares of thousands.
            assert history["metres_loss"][0] > 1e5

    @pytest.mark.backends("tensorflow", "torch", reason="Keras on JAX drops a layer's metrics")
    def test_targets_keep_their_precision_under_mixed_precision(self):
        keras.config.set_dtype_policy("mixed_float16")
        try:
            inputs = keras.Input((1,))
            outputs = {"a": keras.layers.Dense(1, kernel_initializer="zeros")(inputs)}
            weighting = UncertaintyWeighting({"a": "mae"})
            targets = weighting.target_inputs(outputs)
            layer = keras.Model(
                {"x": inputs, "a_target": targets["a"]}, weighting(outputs, targets)
            )
            model = MultiTaskModel(inputs, outputs, {"a": "mae"})
        finally:
            keras.config.set_dtype_policy("float32")
        x, y = np.zeros((2, 1)), np.full((2, 1), 70001.25)
        for one, given in ((model, (x, {"a": y})), (layer, ({"x": x, "a_target": y},))):
            one.compile()
            assert one.evaluate(*given, verbose=0, return_dict=True)["a_loss"] == 70001.25


@pytest.mark.backends("tensorflow", "jax", reason="PyTorch exports no SavedModel")
@pytest.mark.parametrize("bare", [False, True])
def test_fifty_tasks_in_a_list_train_and_export(bare, tmp_path):
    rng = np.random.default_rng(0)
    names = [f"task_{index}" for index in range(50)]
    scales = np.geomspace(1e-3, 1e3, 50)
    y = [(scale * rng.normal(size=(64, 1))).astype("float32") for scale in scales]
    x = keras.Input((4,), name="x")
    outputs = [keras.layers.Dense(1, kernel_initializer="zeros")(x) for _ in names]
    weighting = UncertaintyWeighting(dict.fromkeys(names, "mse"))
    inputs = np.zeros((64, 4), "float32")
    if bare:
        targets = list(weighting.target_inputs(outputs).values())
        model, given = keras.Model([x, *targets], weighting(outputs, targets)), ([inputs, *y],)
    else:
        model, given = MultiTaskModel(x, outputs, weighting), (inputs, y)
    model.compile(keras.optimizers.SGD(0.0))
    model.fit(*given, batch_size=64, verbose=0)
    expected = [np.sqrt(np.mean(np.square(target))) for target in y]
    np.testing.assert_allclose(list(weighting.sigmas().values()), expected, rtol=1e-5)
    model.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    assert_equal_weights(model, loaded)
    inference_model(loaded).export(tmp_path / "saved_model", verbose=False)
    served = tf.saved_model.load(tmp_path / "saved_model")
    assert len(served.serve([inputs] if bare else inputs)) == 50


class TestMasks:
    """Masks of a tagger over padded sentences, beside a regression of whole sentences."""

    def sentences(self):
        rng = np.random.default_rng(0)
        tokens = rng.integers(1, 20, size=(64, 7))
        lengths = rng.integers(1, 8, size=64)
        tokens[np.arange(7) >= lengths[:, None]] = 0
        # Padding has an impossible tag, which must not count.
        tags = np.where(tokens, tokens % 3, 99).astype("int32")
        means = (tokens.sum(axis=1) / lengths).astype("float32")
        return tokens, {"tags": tags, "mean": means}

    def network(self):
        tokens = keras.Input((7,), dtype="int32", name="tokens")
        embedded = keras.layers.Embedding(20, 8, mask_zero=True)(tokens)
        pooled = keras.layers.GlobalAveragePooling1D()(embedded)
        return tokens, {
            "tags": keras.layers.Dense(3)(embedded),
            "mean": keras.layers.Dense(1)(pooled),
        }

    @pytest.mark.backends("tensorflow", "torch", reason="Keras on JAX drops a layer's metrics")
    @pytest.mark.parametrize("bare", [False, True])
    @pytest.mark.parametrize("weighted", [False, True])
    def test_masked_tokens_do_not_count(self, bare, weighted):
        tokens, y = self.sentences()
        inputs, outputs = self.network()
        weighting = UncertaintyWeighting({"tags": Categorical(), "mean": Gaussian()})
        weights = np.linspace(0, 2, 64).astype("float32") if weighted else np.ones(64, "float32")
        if bare:
            targets = weighting.target_inputs(outputs)
            weight = keras.Input((), name="weight")
            given = {"tokens": inputs, "weight": weight, **{t.name: t for t in targets.values()}}
            model = keras.Model(given, weighting(outputs, targets, sample_weight=weight))
            arguments = ({"tokens": tokens, "weight": weights, **{f"{k}_target": y[k] for k in y}},)
        else:
            model = MultiTaskModel(inputs, outputs, weighting)
            arguments = (tokens, y)
        model.compile(keras.optimizers.Adam(0.05))
        reported = model.evaluate(
            *arguments,
            sample_weight=weights if weighted and not bare else None,
            verbose=0,
            return_dict=True,
        )
        network = inference_model(model)
        predictions = network.predict({"tokens": tokens} if bare else tokens, verbose=0)
        sentence, position = np.nonzero(tokens)
        each = keras.losses.sparse_categorical_crossentropy(
            y["tags"][sentence, position],
            predictions["tags"][sentence, position],
            from_logits=True,
        )
        expected = np.average(each, weights=weights[sentence])
        assert reported["tags_loss"] == pytest.approx(expected, rel=1e-5)
        squares = (predictions["mean"][:, 0] - y["mean"]) ** 2
        assert reported["mean_loss"] == pytest.approx(
            np.average(squares, weights=weights), rel=1e-5
        )

    @pytest.mark.backends("tensorflow", reason="Keras's Adam moves embeddings less elsewhere")
    def test_a_masked_tagger_learns(self):
        tokens, y = self.sentences()
        model = MultiTaskModel(*self.network(), {"tags": Categorical(), "mean": Gaussian()})
        model.compile(keras.optimizers.Adam(0.05))
        history = fit(model, tokens, y, epochs=20)
        assert history["tags_loss"][-1] < 0.1
        assert history["mean_loss"][-1] < 1.5


class TestSaving:
    @pytest.mark.parametrize("make", [multi_task_model, layer_model])
    def test_a_loaded_model_goes_on_from_where_it_was(self, make, tmp_path):
        x, y = data()
        given = (x, y) if make is multi_task_model else (as_inputs(x, y), None)
        model = make(optimizer=keras.optimizers.Adam(0.01))
        fit(model, *given)
        model.save(tmp_path / "m.keras")
        loaded = keras.saving.load_model(tmp_path / "m.keras")
        assert type(loaded) is type(model)
        assert_equal_weights(model, loaded)
        assert loaded.optimizer.iterations == model.optimizer.iterations
        assert_equal_histories(fit(model, *given), fit(loaded, *given))
        assert_equal_weights(model, loaded)

    def test_another_process_loads_a_model_in_safe_mode(self, tmp_path):
        x, _y = data()
        likelihoods = tasks() | {"metres": keras.losses.Huber(delta=3.0), "price": "log_cosh"}
        model = multi_task_model(likelihoods=likelihoods)
        model.save(tmp_path / "m.keras")
        np.savez(tmp_path / "data.npz", x=x, **model.predict(x, verbose=0))
        script = f"""
            import keras, numpy as np, keras_uncertainty_mtl
            model = keras.saving.load_model(r"{tmp_path / "m.keras"}", safe_mode=True)
            data = np.load(r"{tmp_path / "data.npz"}")
            for task, prediction in model.predict(data["x"], verbose=0).items():
                np.testing.assert_allclose(prediction, data[task], rtol=1e-5, atol=1e-6)
            loss = model.weighting.tasks["metres"].loss(np.array([[0.0]]), np.array([[10.0]]))
            np.testing.assert_allclose(loss, 3 * (10 - 1.5))  # Huber's, beyond its delta of 3
        """
        subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True)

    def test_a_loaded_model_starts_sigma_only_where_it_had_not(self, tmp_path):
        x, y = data()
        model = multi_task_model(optimizer=keras.optimizers.SGD(0.0))
        model.save(tmp_path / "fresh.keras")
        fit(model, x, y, epochs=1, batch_size=100)
        fresh = keras.saving.load_model(tmp_path / "fresh.keras")
        assert all(sigma == 1 for sigma in fresh.weighting.sigmas().values())
        fit(fresh, x, y, epochs=1, batch_size=100)
        assert fresh.weighting.sigmas() == pytest.approx(model.weighting.sigmas())
        model.save(tmp_path / "started.keras")
        started = keras.saving.load_model(tmp_path / "started.keras")
        # A model whose σ has not started would start from these other targets.
        others = {**y, "metres": 7 * y["metres"]}
        for other in (started, model):
            fit(other, x, others, epochs=1, batch_size=100)
        assert started.weighting.sigmas() == pytest.approx(model.weighting.sigmas())
        restarted = multi_task_model(optimizer=keras.optimizers.SGD(0.0))
        fit(restarted, x, others, epochs=1, batch_size=100)
        assert started.weighting.sigmas()["metres"] < 0.5 * restarted.weighting.sigmas()["metres"]

    @pytest.mark.parametrize("make", [multi_task_model, layer_model])
    def test_weights_load_into_another_model(self, make, tmp_path):
        x, y = data()
        model = make()
        fit(model, *((x, y) if make is multi_task_model else (as_inputs(x, y), None)))
        model.save_weights(tmp_path / "m.weights.h5")
        other = make()
        other.load_weights(tmp_path / "m.weights.h5")
        assert_equal_weights(model, other)

    @pytest.mark.parametrize("make", [multi_task_model, layer_model])
    def test_clones_and_configs_make_the_same_model(self, make):
        model = make()
        for other in (
            keras.models.clone_model(model),
            type(model).from_config(model.get_config()),
            keras.models.model_from_json(model.to_json()),
        ):
            assert type(other) is type(model)
            assert [w.path for w in other.weights] == [w.path for w in model.weights]
            assert not {id(w) for w in other.weights} & {id(w) for w in model.weights}
            assert [t.name for t in other.inputs] == [t.name for t in model.inputs]

    def test_users_likelihoods_and_losses_survive_saving(self, tmp_path):
        x, y = data()
        likelihoods = {
            "metres": Cubic(initial_sigma=5.0),
            "classes": keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=7),
            "price": Gibbs(keras.losses.LogCosh(), missing=np.nan),
        }
        model = multi_task_model(likelihoods=likelihoods)
        fit(model, x, y)
        model.save(tmp_path / "m.keras")
        loaded = keras.saving.load_model(tmp_path / "m.keras").weighting.tasks
        assert isinstance(loaded["metres"], Cubic)
        assert loaded["metres"].initial_sigma == 5.0
        assert isinstance(loaded["classes"], Categorical)
        assert loaded["classes"].missing == 7
        assert isinstance(loaded["price"].keras_loss, keras.losses.LogCosh)
        assert np.isnan(loaded["price"].missing)

    def test_a_loaded_model_has_its_metrics(self, tmp_path):
        x, y = data()
        model = multi_task_model(list, metrics={"classes": ["accuracy"]})
        model.save(tmp_path / "m.keras")
        loaded = keras.saving.load_model(tmp_path / "m.keras")
        assert "classes_accuracy" in fit(loaded, x, list(y.values()))


class TestDoublePrecision:
    """Targets near 1e9 keep an error of ½, of which single precision knows nothing."""

    @pytest.fixture(params=["floatx", "policy", "layer"])
    def dtype(self, request):
        """The dtype of layers, from whatever a user sets."""
        if keras.backend.backend() == "jax":
            pytest.skip("JAX has double precision only if told so before it starts.")
        if request.param == "floatx":
            keras.config.set_floatx("float64")
        if request.param != "layer":
            keras.config.set_dtype_policy("float64")
        yield "float64" if request.param == "layer" else None
        keras.config.set_floatx("float32")
        keras.config.set_dtype_policy("float32")

    def network(self, dtype):
        x = keras.Input((1,), dtype="float64", name="x")
        bias = keras.initializers.Constant(1e9)
        dense = keras.layers.Dense(1, kernel_initializer="ones", bias_initializer=bias, dtype=dtype)
        return x, dense(x)

    def data(self):
        rng = np.random.default_rng(0)
        x = rng.normal(size=(512, 1))
        y = 1e9 + x + 0.475 * rng.normal(size=(512, 1))
        # Keras casts arrays to `floatx`, and leaves data sets alone.
        return x, y, np.sqrt(np.mean((y - 1e9 - x) ** 2))

    @pytest.mark.parametrize("likelihood", [Gaussian(), Gaussian(per_channel=True)])
    def test_a_model_sees_the_true_errors(self, dtype, likelihood):
        x, y, rmse = self.data()
        model = MultiTaskModel(*self.network(dtype), {"a": likelihood})
        assert model.weighting.log_variances()["a"].dtype == "float64"
        model.compile(keras.optimizers.SGD(0.0))
        dataset = tf.data.Dataset.from_tensor_slices((x, y)).batch(512)
        model.fit(dataset, verbose=0)
        np.testing.assert_allclose(model.weighting.sigmas()["a"], rmse, rtol=1e-6)
        model.weighting.set_log_variances({"a": 0 * model.weighting.log_variances()["a"]})
        np.testing.assert_allclose(model.calibrate(dataset, verbose=0)["a"], rmse, rtol=1e-6)
        predicted = model.predictive_model()(x)
        mean, deviation = (
            keras.ops.convert_to_numpy(predicted[f"a_{name}"])
            for name in ("mean", "standard_deviation")
        )
        assert np.sqrt(np.mean((mean - y) ** 2)) == pytest.approx(rmse, rel=1e-6)
        np.testing.assert_allclose(deviation, rmse, rtol=1e-6)

    def test_target_inputs_hand_on_the_true_targets(self, dtype):
        x, y, rmse = self.data()
        weighting = UncertaintyWeighting({"a": Gaussian()}, dtype=dtype)
        inputs, output = self.network(dtype)
        (target,) = weighting.target_inputs(output).values()
        model = keras.Model({"x": inputs, "a_target": target}, weighting(output, target))
        model.compile(keras.optimizers.SGD(0.0))
        arrays = {"x": x, "a_target": y}
        model.fit(tf.data.Dataset.from_tensor_slices(arrays).batch(512), verbose=0)
        assert weighting.sigmas()["a"] == pytest.approx(rmse, rel=1e-6)

    def test_temperatures_are_of_double_precision(self, dtype):
        x = keras.Input((2,), dtype="float64")
        logits = keras.layers.Dense(3, dtype=dtype)(x)
        model = MultiTaskModel(x, logits, {"k": Categorical(initial_sigma=0.7)})
        batch = np.random.default_rng(0).normal(size=(9, 2))
        answer, inferred, probabilities = (
            keras.ops.convert_to_numpy(keras.tree.flatten(each(batch))[0])
            for each in (model, inference_model(model), model.predictive_model())
        )
        np.testing.assert_allclose(inferred, answer, rtol=1e-14)
        np.testing.assert_allclose(probabilities, special.softmax(answer, axis=-1), rtol=1e-14)


class TestInsideOfAnotherModel:
    @pytest.mark.parametrize("subclassed", [False, True])
    def test_it_reports_nothing(self, subclassed):
        x, y = data()
        inner = multi_task_model()
        fit(inner, x, y)

        class Around(keras.Model):
            def __init__(self):
                super().__init__()
                self.inner = inner

            def call(self, inputs):
                return self.inner(inputs)

        inputs = keras.Input((4,))
        outer = Around() if subclassed else keras.Model(inputs, inner(inputs))
        losses = dict.fromkeys(inner.weighting.tasks, lambda y, f: keras.ops.mean(f**2))
        outer.compile(keras.optimizers.SGD(0.0), loss=losses)
        reported = outer.fit(x, y, verbose=0).history
        assert set(reported) == {"loss", *(f"{task}_loss" for task in losses)}
        for task, prediction in inner.predict(x, verbose=0).items():
            loss = outer.evaluate(x, y, batch_size=100, verbose=0, return_dict=True)[f"{task}_loss"]
            assert loss == pytest.approx(np.mean(prediction**2), rel=1e-4)
        assert inner.evaluate(x, y, verbose=0, return_dict=True)["metres_sigma"] > 0


@pytest.mark.backends("tensorflow", reason="TensorFlow loads what is exported")
class TestExport:
    @pytest.mark.parametrize("make", [multi_task_model, layer_model])
    def test_a_saved_model_holds_the_network_alone(self, make, tmp_path):
        x, y = data()
        model = make()
        fit(model, *((x, y) if make is multi_task_model else (as_inputs(x, y), None)))
        network = inference_model(model)
        network.export(tmp_path / "network", verbose=False)
        if make is multi_task_model:
            model.export(tmp_path / "model", verbose=False)
        expected = network.predict(x if make is multi_task_model else {"x": x}, verbose=0)
        for directory in tmp_path.iterdir():
            loaded = tf.saved_model.load(directory)
            signature = loaded.signatures["serving_default"]
            assert list(signature.structured_input_signature[1]) == ["x"]
            names = [variable.name for variable in loaded.variables]
            assert len(names) == 8
            assert not any("log_variance" in name for name in names)
            stored = {
                name for name, _ in tf.train.list_variables(directory / "variables/variables")
            }
            assert not any("log_variance" in name or "started" in name for name in stored)
            outputs = loaded.serve(x if make is multi_task_model else {"x": x})
            for task, prediction in outputs.items():
                np.testing.assert_allclose(prediction, expected[task], rtol=1e-5, atol=1e-5)

    def test_a_lite_model_holds_the_network_alone(self, tmp_path):
        x, _ = data()
        model = multi_task_model()
        file = tmp_path / "model.tflite"
        model.export(file, format="litert", verbose=False)
        interpreter = tf.lite.Interpreter(str(file))
        runner = interpreter.get_signature_runner()
        assert list(runner.get_input_details()) == ["x"]
        assert b"log_variance" not in file.read_bytes()
        expected = model.predict(x[:1], verbose=0)
        outputs = runner(x=x[:1])
        assert len(outputs) == len(expected)
        for task, prediction in expected.items():
            np.testing.assert_allclose(outputs[task], prediction, rtol=1e-4, atol=1e-5)


class TestInferenceModel:
    def test_layers_are_shared_and_targets_dropped(self):
        model = layer_model()
        network = inference_model(model)
        assert list(network.input) == ["x"]
        assert not any(isinstance(layer, UncertaintyWeighting) for layer in network.layers)
        assert {id(w) for w in network.weights} < {id(w) for w in model.weights}

    def test_lists_stay_lists(self):
        x, outputs = network(list)
        weighting = UncertaintyWeighting(tasks())
        targets = list(weighting.target_inputs(outputs).values())
        model = keras.Model([x, *targets], weighting(outputs, targets=targets))
        inferred = inference_model(model)
        assert [t.name for t in inferred.inputs] == ["x"]
        assert len(inferred.predict([np.zeros((2, 4))], verbose=0)) == 3

    @pytest.mark.backends("tensorflow", "torch", reason="Keras on JAX drops a layer's metrics")
    def test_an_input_that_is_its_own_target_stays(self):
        image = keras.Input((4,), name="image")
        decoded = keras.layers.Dense(4)(keras.layers.Dense(2)(image))
        weighting = UncertaintyWeighting({"image": Gaussian()})
        model = keras.Model(image, weighting(decoded, targets=image))
        model.compile()
        assert model.fit(np.ones((8, 4)), verbose=0).history["image_loss"][0] > 0
        assert inference_model(model).predict(np.ones((8, 4)), verbose=0).shape == (8, 4)

    def test_layers_behind_the_weighting_stay(self):
        x, outputs = network()
        weighting = UncertaintyWeighting(tasks())
        targets = weighting.target_inputs(outputs)
        weighted = weighting(outputs, targets)
        probabilities = keras.layers.Softmax()(weighted["classes"])
        model = keras.Model(
            {"x": x, **{t.name: t for t in targets.values()}},
            {**weighted, "probabilities": probabilities},
        )
        outputs = inference_model(model).predict({"x": np.zeros((2, 4))}, verbose=0)
        np.testing.assert_allclose(outputs["probabilities"].sum(axis=-1), 1.0, rtol=1e-5)

    def test_a_multi_task_model_inside_another_model_is_found(self):
        x = keras.Input((4,), name="x")
        network = inference_model(keras.Model(x, multi_task_model()(x)))
        assert len(network.weights) == 8
        assert not any("log_variance" in weight.path for weight in network.weights)

    def test_a_residual_network_takes_no_exponential_time(self):
        x = keras.Input((4,), name="x")
        hidden = x
        for _ in range(60):
            hidden = keras.layers.Add()([hidden, keras.layers.Dense(4)(hidden)])
        weighting = UncertaintyWeighting({"a": "mse"})
        targets = weighting.target_inputs(hidden)
        model = keras.Model([x, targets["a"]], weighting(hidden, targets))
        assert [t.name for t in inference_model(model).inputs] == ["x"]

    def test_a_subclassed_model_is_refused(self):
        class Subclassed(keras.Model):
            def call(self, x):
                return x

        with pytest.raises(ValueError, match="expects a functional model"):
            inference_model(Subclassed())


@keras.saving.register_keras_serializable(package="tests")
class Cauchy(Likelihood):
    """A user's likelihood with parameters of its own."""

    def loss(self, targets, predictions):
        return keras.ops.abs(targets - predictions)

    def predictive(self, predictions, sigma):
        return {"centre": predictions, "width": keras.ops.ones_like(predictions) * sigma}


class TestPredictiveModel:
    """Predicted distributions agree with NumPy and SciPy, also in other processes."""

    TEMPERATURE = 3.0

    def model(self, policy=None):
        sizes = {
            **{"normal": 1, "vector": 3, "noisy": 4, "channels": 4, "heavy": 1},
            **{"kind": 3, "kind_approximate": 3, "flags": 2, "huber": 2, "own": 1},
            **{"kind_probabilities": 3, "vague": 2},
        }
        activations = {"kind_probabilities": "softmax"}
        inputs = keras.Input((4,), name="x")
        outputs = {
            task: keras.layers.Dense(size, activation=activations.get(task), dtype=policy)(inputs)
            for task, size in sizes.items()
        }
        hot = self.TEMPERATURE**0.5
        likelihoods = {
            "normal": Gaussian(initial_sigma=2.0),
            "vector": Gaussian(per_channel=True, initial_sigma=[1.0, 2.0, 3.0]),
            "noisy": Gaussian(heteroscedastic=True, initial_sigma=2.0),
            "channels": Laplace(heteroscedastic=True, per_channel=True, initial_sigma=[1.0, 3.0]),
            "heavy": Laplace(initial_sigma=1e5),
            "kind": Categorical(initial_sigma=hot),
            "kind_approximate": Categorical(approximate=True, initial_sigma=hot),
            "kind_probabilities": Categorical(
                from_logits=False, approximate=True, initial_sigma=hot
            ),
            "flags": Bernoulli(initial_sigma=hot),
            "huber": Gibbs("huber", initial_sigma=2.0),
            "own": Cauchy(initial_sigma=2.0),
            "vague": Bernoulli(approximate=True, initial_sigma=hot),
        }
        return MultiTaskModel(inputs, outputs, likelihoods)

    def expected(self, f):
        root = np.sqrt(2)
        return {
            "normal_mean": f["normal"],
            "normal_standard_deviation": np.full((100, 1), 2.0),
            "vector_mean": f["vector"],
            "vector_standard_deviation": np.tile([1.0, 2.0, 3.0], (100, 1)),
            "noisy_mean": f["noisy"][:, :2],
            "noisy_standard_deviation": 2 * np.exp(f["noisy"][:, 2:] / 2),
            "channels_location": f["channels"][:, :2],
            "channels_scale": np.exp(f["channels"][:, 2:] / 2) * [1 / root, 3 / root],
            "heavy_location": f["heavy"],
            "heavy_scale": np.full((100, 1), 1e5 / root),
            "kind_probabilities": special.softmax(f["kind"], axis=-1),
            "kind_approximate_probabilities": special.softmax(f["kind_approximate"], axis=-1),
            "kind_probabilities_probabilities": f["kind_probabilities"],
            "flags_probabilities": special.expit(f["flags"]),
            "vague_probabilities": special.expit(f["vague"]),
            "huber_prediction": f["huber"],
            "own_centre": f["own"],
            "own_width": np.full((100, 1), 2.0),
        }

    def assert_predicted(self, predicted, model, x, rtol=1e-5):
        expected = self.expected(model.predict(x, verbose=0))
        assert predicted.keys() == expected.keys()
        for name, values in predicted.items():
            assert values.shape == expected[name].shape, name
            assert values.dtype == "float32", name
            np.testing.assert_allclose(values, expected[name], rtol, atol=1e-6, err_msg=name)

    def test_every_likelihood_predicts_its_parameters(self):
        x, _ = data()
        model = self.model()
        self.assert_predicted(model.predictive_model().predict(x, verbose=0), model, x)

    @pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
    def test_half_precision_holds_sigmas_of_any_size(self, policy):
        x, _ = data()
        model = self.model(policy)
        predicted = model.predictive_model().predict(x, verbose=0)
        np.testing.assert_allclose(predicted["heavy_scale"], 1e5 / np.sqrt(2), rtol=1e-5)
        assert all(values.dtype == "float32" for values in predicted.values())

    def test_sigma_is_a_constant_and_layers_are_shared(self):
        x, y = data()
        model = multi_task_model(list)
        early = model.predictive_model()
        fit(model, x, list(y.values()))
        late = model.predictive_model()
        assert {id(w) for w in late.weights} < {id(w) for w in model.weights}
        for network, sigma in ((early, 1.0), (late, model.weighting.sigmas()["metres"])):
            predicted = network.predict(x, verbose=0)
            np.testing.assert_allclose(predicted["metres_standard_deviation"], sigma, rtol=1e-6)
            np.testing.assert_allclose(
                predicted["metres_mean"], model.predict(x, verbose=0)[0], rtol=1e-5
            )

    @pytest.mark.backends("tensorflow", "jax", reason="PyTorch exports no SavedModel")
    def test_an_exported_model_holds_no_log_variances(self, tmp_path):
        x, _ = data()
        model = self.model()
        model.predictive_model().export(tmp_path / "saved_model", verbose=False)
        loaded = tf.saved_model.load(tmp_path / "saved_model")
        self.assert_predicted(loaded.serve(x), model, x)
        stored = tf.train.list_variables(tmp_path / "saved_model/variables/variables")
        assert not any("log_variance" in name or "started" in name for name, _ in stored)

    def test_a_process_without_the_package_loads_the_model(self, tmp_path):
        x, _ = data()
        model = self.model()
        model.predictive_model().save(tmp_path / "m.keras")
        np.save(tmp_path / "x.npy", x)
        script = f"""
            import sys
            sys.modules["keras_uncertainty_mtl"] = None
            import keras, numpy as np
            model = keras.saving.load_model(r"{tmp_path / "m.keras"}", safe_mode=True)
            x = np.load(r"{tmp_path / "x.npy"}")
            np.savez(r"{tmp_path / "loaded.npz"}", **model.predict(x, verbose=0))
        """
        subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True)
        with np.load(tmp_path / "loaded.npz") as loaded:
            self.assert_predicted(dict(loaded), model, x)


class TestOptimizers:
    DECAYING = (
        lambda: keras.optimizers.AdamW(0.1, weight_decay=0.5),
        lambda: keras.optimizers.Lion(0.1, weight_decay=0.5),
        lambda: keras.optimizers.SGD(0.1, weight_decay=0.5),
        lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.AdamW(0.1, weight_decay=0.5)),
        lambda: keras.optimizers.MultiOptimizer(
            keras.optimizers.OptimizerMap(keras.optimizers.AdamW(0.1, weight_decay=0.5))
        ),
        lambda: keras.optimizers.Muon(
            0.1, weight_decay=None, adam_weight_decay=0.5, exclude_layers=[".*"]
        ),
    )

    def decay(self, model, log_variance, given):
        """Trains with loss weights of 0, so that only weight decay moves variables."""
        log_variance.assign([0.25, 0.25, 0.25])
        kernel = np.abs(model.layers[1].get_weights()[0]).sum()
        fit(model, *given, epochs=1)
        assert np.abs(model.layers[1].get_weights()[0]).sum() < 0.9 * kernel
        return log_variance.numpy()

    def model(self, optimizer):
        weighting = UncertaintyWeighting(
            {task: Gaussian(initial_sigma=1.0) for task in ("metres", "price", "classes")},
            loss_weights=dict.fromkeys(tasks(), 0.0),
        )
        inputs, outputs = network()
        model = MultiTaskModel(inputs, outputs | {"classes": outputs["price"]}, weighting)
        model.compile(optimizer)
        return model

    @pytest.mark.parametrize("optimizer", DECAYING)
    def test_weight_decay_leaves_log_variances_alone(self, optimizer):
        x, y = data()
        y = {task: np.zeros(100) for task in y}
        model = self.model(optimizer())
        np.testing.assert_array_equal(
            self.decay(model, model.weighting.trainable_variables[0], (x, y)), 0.25
        )

    def test_weight_decay_leaves_log_variances_alone_after_loading(self, tmp_path):
        x, y = data()
        y = {task: np.zeros(100) for task in y}
        self.model(self.DECAYING[0]()).save(tmp_path / "m.keras")
        model = keras.saving.load_model(tmp_path / "m.keras")
        np.testing.assert_array_equal(
            self.decay(model, model.weighting.trainable_variables[0], (x, y)), 0.25
        )

    def test_a_users_exclusions_from_weight_decay_stay(self):
        optimizer = keras.optimizers.AdamW(0.1, weight_decay=0.5)
        optimizer.exclude_from_weight_decay(var_names=["bias"])
        x, y = data()
        model = self.model(optimizer)
        model.layers[1].bias.assign(np.ones(8))
        self.decay(
            model, model.weighting.trainable_variables[0], (x, {task: np.zeros(100) for task in y})
        )
        np.testing.assert_array_equal(model.layers[1].bias.numpy(), 1.0)
        model.compile(optimizer)  # a built optimizer is accepted too

    def test_exclusions_after_compile_leave_log_variances_excluded(self):
        optimizer = keras.optimizers.AdamW(0.1, weight_decay=0.5)
        x, y = data()
        model = self.model(optimizer)
        optimizer.exclude_from_weight_decay(var_names=["bias"])
        y = {task: np.zeros(100) for task in y}
        np.testing.assert_array_equal(
            self.decay(model, model.weighting.trainable_variables[0], (x, y)), 0.25
        )

    @pytest.mark.parametrize("make", [multi_task_model, layer_model])
    def test_a_frozen_layer_keeps_its_sigmas(self, make):
        x, y = data()
        given = (x, y) if make is multi_task_model else (as_inputs(x, y), None)
        model = make()
        (weighting,) = [layer for layer in model.layers if isinstance(layer, UncertaintyWeighting)]
        fit(model, *given)
        sigmas, kernel = weighting.sigmas(), model.layers[1].get_weights()[0]
        weighting.trainable = False
        model.compile(keras.optimizers.Adam(0.01))
        fit(model, *given)
        assert weighting.sigmas() == sigmas
        assert not np.allclose(model.layers[1].get_weights()[0], kernel)
