"""Rules of the literature have the losses and weights of their papers' equations."""

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy import special

from benchmarks import methods
from keras_uncertainty_mtl import Bernoulli, Categorical, Gaussian, Gibbs, Laplace

pytestmark = pytest.mark.backends("tensorflow", reason="the benchmarks run on TensorFlow")

TASKS = {"square": Gaussian(), "value": Laplace(), "class": Categorical()}
LOSSES = np.array([4.0, 0.5, 1.25])


def network(**sizes):
    x = keras.Input((4,))
    return keras.Model(x, {task: keras.layers.Dense(size)(x) for task, size in sizes.items()})


def built(rule, *arguments, **keywords):
    return rule(network(**{"square": 1, "value": 1, "class": 3}), TASKS, *arguments, **keywords)


def loss_and_weights(rule, losses=LOSSES):
    """The combined loss, and its gradient in each of the tasks' losses."""
    losses = tf.constant(losses, "float32")
    with tf.GradientTape() as tape:
        tape.watch(losses)
        loss = rule.weigh(losses)
    return float(loss), tape.gradient(loss, losses).numpy()


def assert_weighs(rule, weights, losses=LOSSES):
    loss, found = loss_and_weights(rule, losses)
    np.testing.assert_allclose(found, weights, rtol=1e-5)
    assert loss == pytest.approx(np.dot(weights, losses), rel=1e-5)


def targets_and_predictions():
    rng = np.random.default_rng(0)
    targets = {
        "square": rng.normal(size=(8, 1)).astype("float32"),
        "value": rng.normal(size=(8, 1)).astype("float32"),
        "class": rng.integers(0, 3, size=8),
    }
    predictions = {
        task: rng.normal(size=(8, size)).astype("float32")
        for task, size in zip(TASKS, (1, 1, 3), strict=True)
    }
    return targets, predictions


def keras_losses(targets, predictions):
    losses = {
        "square": keras.losses.MeanSquaredError(),
        "value": keras.losses.MeanAbsoluteError(),
        "class": keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    }
    return [float(losses[task](targets[task], predictions[task])) for task in TASKS]


def test_raw_losses_are_those_of_keras_times_the_units():
    targets, predictions = targets_and_predictions()
    rule = built(methods.EqualWeights, {"square": 2.0, "value": 3.0, "class": 5.0})
    expected = np.dot([2, 3, 5], keras_losses(targets, predictions))
    loss = rule.compute_loss(y=targets, y_pred=predictions)
    assert float(loss) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("missing", "dtype"), [(float("nan"), "float32"), (-1, "int32")])
def test_a_missing_label_counts_as_if_it_were_not_there(missing, dtype):
    kind = Gaussian if dtype == "float32" else Categorical
    rule = methods.EqualWeights(network(task=3), {"task": kind(missing=missing)})
    rng = np.random.default_rng(0)
    predictions = rng.normal(size=(6, 3)).astype("float32")
    targets = rng.integers(0, 3, size=(6, 3) if kind is Gaussian else 6).astype(dtype)
    losses = rule.mean_losses({"task": targets[2:]}, {"task": predictions[2:]})
    targets[:2] = missing
    np.testing.assert_allclose(
        rule.mean_losses({"task": targets}, {"task": predictions}), losses, rtol=1e-6
    )
    targets[:] = missing
    assert rule.mean_losses({"task": targets}, {"task": predictions}).numpy() == [0.0]


def test_plain_uncertainty_is_equation_10():
    rule = built(methods.PlainUncertainty)
    assert_weighs(rule, np.ones(3))
    s = np.array([-1.0, 0.5, 2.0])
    rule.s.assign(s)
    loss, weights = loss_and_weights(rule)
    assert loss == pytest.approx(np.sum(np.exp(-s) * LOSSES + s / 2), rel=1e-5)
    np.testing.assert_allclose(weights, np.exp(-s), rtol=1e-5)


def test_the_positive_regulariser_adds_log_of_one_plus_variance():
    rule = built(methods.PositiveRegulariser)
    s = np.array([-1.0, 0.5, 2.0])
    rule.s.assign(s)
    loss, weights = loss_and_weights(rule)
    assert loss == pytest.approx(np.sum(LOSSES / (2 * np.exp(s)) + np.log(1 + np.exp(s))), rel=1e-5)
    np.testing.assert_allclose(weights, 0.5 / np.exp(s), rtol=1e-5)


def test_impartial_scaled_losses_are_1_at_the_optimum():
    rule = built(methods.ImpartialLosses)
    optimum = -np.log(LOSSES)
    for s in ([0.3, -0.2, 1.0], optimum):
        rule.s.assign(s)
        with tf.GradientTape() as tape:
            loss = rule.weigh(tf.constant(LOSSES, "float32"))
        gradient = tape.gradient(loss, rule.s).numpy()
        np.testing.assert_allclose(gradient, np.exp(s) * LOSSES - 1, atol=1e-5)
        assert float(loss) == pytest.approx(np.sum(np.exp(s) * LOSSES - s), rel=1e-5)


def test_analytical_weights_are_inverse_losses():
    assert_weighs(built(methods.AnalyticalUncertainty), 1 / LOSSES)


def test_logarithmic_losses_have_the_weights_of_inverse_losses():
    loss, weights = loss_and_weights(built(methods.LogarithmicLosses))
    assert loss == pytest.approx(np.log(LOSSES).sum(), rel=1e-5)
    np.testing.assert_allclose(weights, 1 / LOSSES, rtol=1e-5)


def test_the_geometric_loss_is_the_root_of_the_product():
    loss, weights = loss_and_weights(built(methods.GeometricLosses))
    assert loss == pytest.approx(np.prod(LOSSES) ** (1 / 3), rel=1e-5)
    np.testing.assert_allclose(weights, loss / 3 / LOSSES, rtol=1e-5)


def test_softmax_weights_are_the_softmax_of_inverse_losses():
    rule = built(methods.SoftmaxUncertainty, temperature=3.0)
    assert_weighs(rule, special.softmax(1 / LOSSES / 3))


def test_dynamic_weights_follow_the_ratio_of_two_epochs():
    rule = built(methods.DynamicWeightAverage, steps_per_epoch=2)
    epochs = np.array([[4.0, 2.0, 1.0], [2.0, 2.0, 3.0], [1.0, 8.0, 1.0]])
    for epoch, weights in enumerate(
        [
            np.ones(3),
            np.ones(3),
            3 * special.softmax(epochs[1] / epochs[0] / 2),
            3 * special.softmax(epochs[2] / epochs[1] / 2),
        ]
    ):
        for step in range(2):
            losses = epochs[min(epoch, 2)] * (0.5, 1.5)[step]  # whose mean is the epoch's
            assert_weighs(rule, weights, losses)


def test_the_smooth_maximum_is_of_losses_over_their_mean_after_the_warm_up():
    rule = built(methods.SmoothChebyshev, reference_steps=(1, 3))
    for factor in (7.0, 0.5, 1.5):  # The first does not count; the mean of the others is 1.
        loss, weights = loss_and_weights(rule, factor * LOSSES)
        assert loss == pytest.approx(np.log(factor * LOSSES).sum(), rel=1e-5)
        np.testing.assert_allclose(weights, 1 / (factor * LOSSES), rtol=1e-5)
    now = LOSSES * [0.9, 0.5, 0.1]
    loss, weights = loss_and_weights(rule, now)
    assert loss == pytest.approx(3 * np.log(np.sum(now / LOSSES)), rel=1e-5)
    np.testing.assert_allclose(weights, 3 / LOSSES / np.sum(now / LOSSES), rtol=1e-5)


@pytest.mark.parametrize("smoothness", [0.3, 0.02])
def test_the_smooth_maximum_tends_to_the_maximum(monkeypatch, smoothness):
    monkeypatch.setattr(methods.SmoothChebyshev, "SMOOTHNESS", smoothness)
    rule = built(methods.SmoothChebyshev, reference_steps=(0, 1))
    rule.weigh(tf.constant(LOSSES, "float32"))
    ratios = np.array([0.9, 0.5, 0.1])
    loss = float(rule.weigh(tf.constant(LOSSES * ratios, "float32"))) / 3
    maximum = np.log(0.9)
    assert maximum <= loss + 1e-6
    assert loss <= maximum + smoothness * np.log(3)  # the bound of any log-sum-exp
    assert loss == pytest.approx(smoothness * special.logsumexp(np.log(ratios) / smoothness), 1e-4)


def torch_famo_steps(sequence):
    """The authors' update, in PyTorch's autograd and Adam; the weights of each step."""
    import torch

    w = torch.zeros(3, requires_grad=True)
    optimizer = torch.optim.Adam([w], lr=0.025, weight_decay=0.01)
    for before, after in sequence:
        before, after = (torch.tensor(each) for each in (before, after))
        z = torch.softmax(w, -1).detach()
        c = 1 / (z / before).sum()
        yield (c * z / before).numpy()
        (w.grad,) = torch.autograd.grad(
            torch.softmax(w, -1), w, grad_outputs=(before.log() - after.log())
        )
        optimizer.step()


def test_adaptive_weights_are_those_of_the_algorithm_in_another_library():
    pytest.importorskip("torch")
    rule = built(methods.FastAdaptive)
    rng = np.random.default_rng(0)
    sequence = [
        (LOSSES * rng.uniform(0.5, 2, 3), LOSSES * rng.uniform(0.5, 2, 3)) for _ in range(20)
    ]
    for (before, after), expected in zip(sequence, torch_famo_steps(sequence), strict=True):
        _, weights = loss_and_weights(rule, before)
        np.testing.assert_allclose(weights, expected, rtol=1e-3)
        rule.follow(tf.constant(after, "float32"))
    assert np.ptp(rule.logits.numpy()) > 0.1


def test_adaptive_weights_compare_the_losses_of_one_batch_before_and_after_its_step(monkeypatch):
    targets, _ = targets_and_predictions()
    x = np.random.default_rng(1).normal(size=(8, 4)).astype("float32")
    rule = built(methods.FastAdaptive)
    rule.compile(keras.optimizers.SGD(0.1), run_eagerly=True)
    seen = []
    monkeypatch.setattr(rule, "follow", lambda losses: seen.append(losses.numpy()))
    before = rule.predict(x, verbose=0)
    rule.fit(x, targets, batch_size=8, verbose=0)
    np.testing.assert_allclose(rule.before, keras_losses(targets, before), rtol=1e-4)
    after = keras_losses(targets, rule.predict(x, verbose=0))
    np.testing.assert_allclose(seen[0], after, rtol=1e-4)
    assert np.all(np.log(seen[0]) != np.log(rule.before.numpy()))


def test_aligned_weights_are_group_means_of_inverse_losses():
    rule = built(methods.GroupAlignment)
    losses = np.array([4.0, 0.5, 5.0])
    p = np.exp(-1e-4 * losses)
    values = p / p.sum() * losses.sum() / losses
    low = (values[0] + values[2]) / 2
    assert_weighs(rule, [low, values[1], low], losses)
    p = p * np.exp(-1e-4 * LOSSES)  # of two batches
    values = p / p.sum() * LOSSES.sum() / LOSSES
    low = (values[0] + values[2]) / 2
    assert_weighs(rule, [low, values[1], low])


def test_two_groups_have_the_least_sum_of_squares():
    from benchmarks.methods.adaptive import two_group_means

    rng = np.random.default_rng(0)
    for size in (2, 3, *[6] * 8):
        values = rng.gamma(0.5, size=size).astype("float32")

        def within(means, values=values):
            return np.sum((values - means) ** 2)

        splits = []
        for members in itertools.product((False, True), repeat=size):
            chosen = np.array(members)
            if 0 < chosen.sum() < size:
                splits.append(np.where(chosen, values[chosen].mean(), values[~chosen].mean()))
        best = min(splits, key=within)
        np.testing.assert_allclose(two_group_means(tf.constant(values)), best, rtol=1e-5)


def test_random_weights_are_drawn_anew_in_each_step():
    rule = built(methods.RandomWeights, seed=0)
    draws = np.array([loss_and_weights(rule)[1] for _ in range(3)])
    np.testing.assert_allclose(draws.sum(axis=1), 3, rtol=1e-5)
    assert len(np.unique(draws)) == draws.size


@pytest.mark.parametrize(
    ("rule", "options", "trained"),
    [
        (methods.PlainUncertainty, {}, 1),
        (methods.ImpartialLosses, {}, 1),
        (methods.AnalyticalUncertainty, {}, 0),
        (methods.FastAdaptive, {}, 0),
        (methods.SmoothChebyshev, {"reference_steps": (1, 2)}, 0),
    ],
)
def test_the_optimizer_moves_a_number_a_task_only_where_the_loss_has_it(rule, options, trained):
    targets, _ = targets_and_predictions()
    x = np.random.default_rng(1).normal(size=(8, 4)).astype("float32")
    model = built(rule, **options)
    assert len(model.trainable_variables) == 6 + trained
    before = [each.numpy() for each in model.trainable_variables]
    model.compile(keras.optimizers.Adam(0.1))
    model.fit(x, targets, batch_size=4, epochs=2, verbose=0)
    for old, new in zip(before, model.trainable_variables, strict=True):
        assert np.all(np.isfinite(new))
        assert np.any(new.numpy() != old)


def test_units_are_those_of_standardised_targets():
    rng = np.random.default_rng(0)
    tasks = TASKS | {"yes": Bernoulli(), "count": Gibbs("poisson")}
    targets = {
        "square": rng.normal(scale=10, size=100),
        "value": rng.normal(scale=0.1, size=100),
        "class": rng.integers(0, 3, size=100),
        "yes": rng.integers(0, 2, size=100),
        "count": rng.poisson(3, size=100).astype("float32"),
    }
    targets["square"][:10] = np.nan
    units = methods.standard_units(tasks, targets)
    assert units["square"] == pytest.approx(1 / np.nanvar(targets["square"]))
    assert units["value"] == pytest.approx(1 / targets["value"].std())
    assert units["class"] == units["yes"] == 1
    metrics = pytest.importorskip("sklearn.metrics")
    constant = np.full(100, targets["count"].mean())
    deviance = metrics.mean_poisson_deviance(targets["count"], constant) / 2
    assert units["count"] == pytest.approx(1 / deviance, rel=1e-4)
