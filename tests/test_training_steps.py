"""Only a training step moves σ, and every training step does."""

import keras
import numpy as np
import pytest

from keras_uncertainty_mtl import Categorical, Gaussian, MultiTaskModel, UncertaintyWeighting

X = np.ones((8, 2), "float32")
Y = {"a": np.full((8, 1), 5.0, "float32"), "b": np.full((8, 1), 50.0, "float32")}
TASKS = {"a": Gaussian(initial_sigma=1.0), "b": Gaussian(initial_sigma=1.0)}


def heads():
    inputs = keras.Input((2,))
    return inputs, {task: keras.layers.Dense(1)(inputs) for task in TASKS}


def model_as(base=MultiTaskModel):
    model = base(*heads(), dict(TASKS))
    model.compile(keras.optimizers.SGD(0.0))
    return model


def unmoved(sigmas):
    return sigmas == {"a": 1.0, "b": 1.0}


class TestMultiTaskModel:
    def test_a_call_of_compute_loss_leaves_sigma_alone(self):
        model = model_as()
        model.compute_loss(X, Y, model(X))
        model.compute_loss(X, Y, model(X, training=False))
        assert unmoved(model.weighting.sigmas())

    def test_a_call_of_compute_loss_after_fit_leaves_sigma_alone(self):
        model = model_as()
        model.predict(X, verbose=0)
        model.fit(X, Y, verbose=0)
        before = model.weighting.sigmas()
        predictions = model.predict(X, verbose=0)  # Not traced anew.
        model.compute_loss(X, {task: 100 + y for task, y in Y.items()}, predictions)
        assert model.weighting.sigmas() == before

    def test_a_call_after_a_training_call_moves_sigma(self):
        model = model_as()
        model.compute_loss(X, Y, model(X, training=True))
        assert not unmoved(model.weighting.sigmas())

    def test_a_test_step_of_keras_guide_leaves_sigma_alone(self):
        class Guide(MultiTaskModel):
            def test_step(self, *args):
                if keras.backend.backend() == "jax":
                    return super().test_step(*args)
                x, y = args[0]
                y_pred = self(x, training=False)
                loss = self.compute_loss(y=y, y_pred=y_pred)
                return {"loss": loss}

        model = model_as(Guide)
        model.evaluate(X, Y, verbose=0)
        assert unmoved(model.weighting.sigmas())
        model.fit(X, Y, validation_data=(X, Y), verbose=0)
        assert not unmoved(model.weighting.sigmas())

    @pytest.mark.backends("tensorflow", reason="uses a TensorFlow tape")
    def test_a_train_step_of_keras_guide_moves_sigma(self):
        import tensorflow as tf

        class Guide(MultiTaskModel):
            def train_step(self, data):
                x, y = data
                with tf.GradientTape() as tape:
                    loss = self.compute_loss(y=y, y_pred=self(x, training=True))
                gradients = tape.gradient(loss, self.trainable_weights)
                self.optimizer.apply(gradients, self.trainable_weights)
                return {"loss": loss}

        model = model_as(Guide)
        model.fit(X, Y, verbose=0)
        assert not unmoved(model.weighting.sigmas())

    @pytest.mark.parametrize("signature", ["with training", "without training"])
    def test_a_compute_loss_of_ones_own_trains_sigma_in_fit_alone(self, signature):
        class With(MultiTaskModel):
            def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
                return self.weighting.combined_loss(y_pred, y, sample_weight, training=training)

        class Without(MultiTaskModel):
            def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None):
                return self.weighting.combined_loss(y_pred, y, sample_weight)

        model = model_as(With if signature == "with training" else Without)
        model.evaluate(X, Y, verbose=0)
        assert unmoved(model.weighting.sigmas())
        model.fit(X, Y, verbose=0)
        assert not unmoved(model.weighting.sigmas())

    @pytest.mark.parametrize("argument", ["loss_weights", "update", "missing"])
    def test_an_argument_of_something_else_is_refused(self, argument):
        with pytest.raises(ValueError, match=f"unknown arguments.*'{argument}'"):
            MultiTaskModel(*heads(), dict(TASKS), **{argument: None})


class Subclass(keras.Model):
    """A model with targets among its inputs, and the layer in its call."""

    def __init__(self):
        super().__init__()
        self.heads = {task: keras.layers.Dense(1) for task in TASKS}
        self.weighting = UncertaintyWeighting(dict(TASKS))

    def answer(self, inputs, **training):
        x, y = inputs
        predictions = {task: head(x) for task, head in self.heads.items()}
        return self.weighting(predictions, y, **training)


class WithTraining(Subclass):
    def call(self, inputs, training=False):
        return self.answer(inputs, training=training)


class WithTrainingOfKeras(Subclass):
    def call(self, inputs, training=False):
        return self.answer(inputs)


class WithoutTraining(Subclass):
    def call(self, inputs):
        return self.answer(inputs)


class TestLayer:
    @pytest.mark.parametrize("kind", [WithTraining, WithTrainingOfKeras])
    def test_a_subclassed_model_trains_sigma(self, kind):
        if kind is WithTrainingOfKeras and keras.backend.backend() == "jax":
            pytest.skip("on JAX, Keras does not tell inner layers of training")
        model = kind()
        model.compile(keras.optimizers.SGD(0.0))
        model.evaluate((X, Y), verbose=0)
        assert unmoved(model.weighting.sigmas())
        model.fit((X, Y), verbose=0)
        assert not unmoved(model.weighting.sigmas())

    def test_a_subclassed_model_that_hides_training_is_refused(self):
        model = WithoutTraining()
        model.compile(keras.optimizers.SGD(0.0))
        with pytest.raises(ValueError, match="`training` must be known"):
            model.fit((X, Y), verbose=0)

    def test_a_loss_without_a_word_on_training_is_refused(self):
        layer = UncertaintyWeighting(dict(TASKS))
        with pytest.raises(ValueError, match="no log-variances yet"):
            layer.combined_loss(Y, Y)
        predictions = layer(Y)
        with pytest.raises(ValueError, match="`training` must be known"):
            layer.combined_loss(predictions, Y)
        layer(Y, training=True)
        layer.combined_loss(predictions, {task: 3 + y for task, y in Y.items()})
        assert not unmoved(layer.sigmas())


class TestLossWeights:
    def test_a_callback_changes_them_without_compiling_again(self):
        model = model_as()
        losses = []

        class Ramp(keras.callbacks.Callback):
            def on_epoch_begin(self, epoch, logs=None):
                self.model.weighting.loss_weights = {"a": 0.0, "b": epoch}

            def on_epoch_end(self, epoch, logs=None):
                losses.append(logs["loss"])

        model.fit(X, Y, epochs=3, verbose=0, callbacks=[Ramp()])
        assert losses[0] == 0
        assert losses[1] != 0
        model.weighting.loss_weights = {"b": 2.0, "a": 0.0}
        twice = model.evaluate(X, Y, verbose=0, return_dict=True)["loss"]
        model.weighting.loss_weights = {"b": 1.0, "a": 0.0}
        once = model.evaluate(X, Y, verbose=0, return_dict=True)["loss"]
        assert twice == pytest.approx(2 * once, rel=1e-6)

    def test_they_are_saved_as_they_are(self, tmp_path):
        model = model_as()
        model.weighting.loss_weights = {"a": 0.25}
        expected = model.evaluate(X, Y, verbose=0, return_dict=True)["loss"]
        model.save(tmp_path / "model.keras")
        loaded = keras.saving.load_model(tmp_path / "model.keras")
        assert dict(loaded.weighting.loss_weights) == {"a": 0.25, "b": 1.0}
        assert loaded.evaluate(X, Y, verbose=0, return_dict=True)["loss"] == pytest.approx(expected)

    def test_they_count_in_a_model_of_the_users_own(self):
        class Own(keras.Model):
            def __init__(self):
                super().__init__()
                self.heads = {task: keras.layers.Dense(1) for task in Y}
                tasks = {task: Gaussian() for task in Y}
                self.weighting = UncertaintyWeighting(tasks, loss_weights={"a": 0.5})

            def call(self, x):
                return self.weighting({task: head(x) for task, head in self.heads.items()})

            def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
                return self.weighting.combined_loss(y_pred, y, sample_weight, training=training)

        model = Own()
        model.compile("adam")
        model.fit(X, Y, verbose=0)
        assert dict(model.weighting.loss_weights) == {"a": 0.5, "b": 1.0}
        reported = model.evaluate(X, Y, verbose=0, return_dict=True)
        losses = {
            task: 0.5 * np.exp(-s) * reported[f"{task}_loss"] + 0.5 * s
            for task, s in model.weighting.log_variances().items()
        }
        assert reported["loss"] == pytest.approx(0.5 * losses["a"] + losses["b"], rel=1e-5)

    def test_they_read_as_they_count_once_weights_are_restored(self):
        model, other = model_as(), model_as()
        other.weighting.loss_weights = {"a": 0.1, "b": 0.0}
        model.set_weights(other.get_weights())
        assert dict(model.weighting.loss_weights) == pytest.approx({"a": 0.1, "b": 0.0})
        ends = [each.evaluate(X, Y, verbose=0, return_dict=True)["loss"] for each in (model, other)]
        assert ends[0] == pytest.approx(ends[1], rel=1e-6)

    def test_a_model_with_the_best_weights_restored_saves_its_loss(self, tmp_path):
        class Fade(keras.callbacks.Callback):
            def on_epoch_begin(self, epoch, logs=None):
                self.model.weighting.loss_weights = {"a": 0.5**epoch}

        model = model_as()
        first_is_best = keras.callbacks.EarlyStopping(
            "b_sigma", mode="max", patience=3, restore_best_weights=True, min_delta=1e9
        )
        model.fit(X, Y, epochs=3, verbose=0, callbacks=[Fade(), first_is_best])
        expected = model.evaluate(X, Y, verbose=0, return_dict=True)["loss"]
        model.save(tmp_path / "model.keras")
        loaded = keras.saving.load_model(tmp_path / "model.keras")
        assert loaded.evaluate(X, Y, verbose=0, return_dict=True)["loss"] == pytest.approx(expected)
        assert loaded.weighting.loss_weights == model.weighting.loss_weights

    def test_a_callback_changes_them_at_batches(self):
        class Off(keras.callbacks.Callback):
            def on_train_batch_end(self, batch, logs=None):
                self.model.weighting.loss_weights = {"a": 0.0, "b": 0.0}

        model = model_as()
        losses = model.fit(X, Y, epochs=2, verbose=0, callbacks=[Off()]).history["loss"]
        assert losses[1] == 0
        assert model.evaluate(X, Y, verbose=0, return_dict=True)["loss"] == 0

    def test_an_entry_is_not_changed_in_silence(self):
        weighting = model_as().weighting
        with pytest.raises(TypeError, match="does not support item assignment"):
            weighting.loss_weights["a"] = 100.0
        with pytest.raises(ValueError, match="unknown task 'c'"):
            weighting.loss_weights = {"c": 1.0}
        with pytest.raises(ValueError, match=r"Task 'a'.*not negative"):
            weighting.loss_weights = {"a": -1.0}


def classes_network(head):
    inputs = keras.Input((2,))
    return inputs, {"classes": head(inputs)}


def softmax_model():
    inputs = keras.Input((2,))
    return keras.Sequential([inputs, keras.layers.Dense(3, activation="softmax")])


class TestProbabilities:
    @pytest.mark.parametrize(
        "head",
        [
            lambda x: keras.layers.Dense(3, activation="softmax")(x),
            lambda x: keras.layers.Softmax()(keras.layers.Dense(3)(x)),
            lambda x: keras.layers.Activation("softmax", dtype="float32")(keras.layers.Dense(3)(x)),
            lambda x: keras.ops.softmax(keras.layers.Dense(3)(x)),
            lambda x: softmax_model()(x),
            lambda x: keras.Sequential([keras.Input((2,)), softmax_model()])(x),
            lambda x: keras.layers.Reshape((3,))(keras.layers.Dense(3, activation="softmax")(x)),
            lambda x: keras.layers.TimeDistributed(keras.layers.Dense(3, activation="softmax"))(
                keras.layers.Reshape((1, 2))(x)
            ),
            lambda x: keras.layers.TimeDistributed(softmax_model())(
                keras.layers.Reshape((1, 2))(x)
            ),
            lambda x: keras.layers.Activation("linear", dtype="float32")(softmax_model()(x)),
            lambda x: keras.layers.Dropout(0.1)(keras.layers.Identity()(softmax_model()(x))),
            lambda x: keras.ops.transpose(keras.ops.reshape(softmax_model()(x), (-1, 3)), (0, 1)),
        ],
        ids=[
            *("activation", "layer", "activation layer", "operation", "model", "models"),
            *("reshaped", "at each step", "model at each step", "cast", "dropped", "transposed"),
        ],
    )
    @pytest.mark.parametrize(
        "likelihood",
        [
            Categorical(),
            Categorical(approximate=True),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        ],
    )
    def test_a_softmax_under_a_likelihood_of_logits_is_refused(self, head, likelihood):
        with pytest.raises(ValueError, match=r"Task 'classes': .*logits.*softmax.*activation"):
            MultiTaskModel(*classes_network(head), {"classes": likelihood})

    def test_so_is_a_sigmoid(self):
        inputs = keras.Input((2,))
        outputs = {"tags": keras.layers.Dense(3, activation="sigmoid")(inputs)}
        for loss in (
            keras.losses.BinaryCrossentropy(from_logits=True),
            keras.losses.BinaryFocalCrossentropy(from_logits=True),
        ):
            with pytest.raises(ValueError, match=r"Task 'tags'.*sigmoid"):
                MultiTaskModel(inputs, outputs, {"tags": loss})

    def test_so_are_those_of_a_subclassed_model(self):
        layer = UncertaintyWeighting({"classes": Categorical()})
        probabilities = keras.activations.softmax(keras.ops.ones((4, 3)))
        with pytest.raises(ValueError, match=r"Task 'classes'.*logits"):
            layer(probabilities, np.zeros(4, "int32"), training=True)

    @pytest.mark.filterwarnings("error")
    def test_a_likelihood_of_probabilities_takes_them(self):
        network = classes_network(keras.layers.Dense(3, activation="softmax"))
        MultiTaskModel(*network, {"classes": "sparse_categorical_crossentropy"})
        MultiTaskModel(*network, {"classes": Categorical(from_logits=False, approximate=True)})
        cast = classes_network(lambda x: keras.layers.Activation("linear")(softmax_model()(x)))
        MultiTaskModel(*cast, {"classes": "sparse_categorical_crossentropy"})

    def test_and_warns_of_logits(self):
        network = classes_network(keras.layers.Dense(3))
        with pytest.warns(UserWarning, match=r"Task 'classes': .*probabilities.*Categorical\(\)"):
            MultiTaskModel(*network, {"classes": "sparse_categorical_crossentropy"})


@pytest.mark.backends("tensorflow", reason="TensorFlow's own checks")
def test_numeric_checks_let_a_healthy_model_train():
    import tensorflow as tf

    model = model_as()
    tf.debugging.enable_check_numerics()
    try:
        model.fit(X, Y, verbose=0)
    finally:
        tf.debugging.disable_check_numerics()
    assert not unmoved(model.weighting.sigmas())
