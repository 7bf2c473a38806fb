"""Diagrams draw the numbers that they are given."""

import io
import runpy
import sys

import keras
import numpy as np
import pytest
from matplotlib.figure import Figure
from scipy import stats
from sklearn.calibration import calibration_curve

from keras_uncertainty_mtl import Gaussian, Laplace, MultiTaskModel, plotting
from keras_uncertainty_mtl.plotting import (
    plot_coverage,
    plot_history,
    plot_noise,
    plot_reliability,
)

pytestmark = pytest.mark.backends("tensorflow", reason="draws NumPy arrays, whatever the backend")

HISTORY = {
    "loss": [3.0, 1.0, -1.0],
    "depth_loss": [400.0, 30.0, 2.0],
    "depth_sigma": [20.0, 5.0, 1.5],
    "classes_loss": [2.3, 1.1, 0.9],
    "classes_sigma": [1.0, 0.9, 0.8],
    "classes_accuracy": [0.1, 0.5, 0.6],
    "val_loss": [3.1, 1.2, -0.5],
    "val_depth_loss": [380.0, 40.0, 5.0],
    "val_depth_sigma": [20.0, 5.0, 1.5],
}


def panels(figure):
    """The axes of each task's loss and σ, by task."""
    pairs = zip(figure.axes[::2], figure.axes[1::2], strict=True)
    return {loss.get_title().removesuffix(": loss"): (loss, sigma) for loss, sigma in pairs}


def curve(line):
    return list(line.get_xdata()), list(line.get_ydata())


def test_each_task_has_a_panel_of_its_loss_and_sigma():
    drawn = panels(plot_history(HISTORY))
    assert list(drawn) == ["depth", "classes"]
    loss, sigma = drawn["depth"]
    assert [curve(line) for line in loss.lines] == [
        ([1, 2, 3], [400.0, 30.0, 2.0]),
        ([1, 2, 3], [380.0, 40.0, 5.0]),
    ]
    assert [text.get_text() for text in loss.get_legend().get_texts()] == ["training", "validation"]
    assert [curve(line) for line in sigma.lines] == [([1, 2, 3], [20.0, 5.0, 1.5])]


def test_without_validation_there_is_one_loss_and_no_legend():
    loss, _ = panels(plot_history(HISTORY))["classes"]
    assert [curve(line) for line in loss.lines] == [([1, 2, 3], [2.3, 1.1, 0.9])]
    assert loss.get_legend() is None


def test_the_history_that_fit_returns_is_drawn():
    history = keras.callbacks.History()
    history.history = HISTORY
    assert list(panels(plot_history(history))) == ["depth", "classes"]


def test_tasks_select_and_order():
    assert list(panels(plot_history(HISTORY, ["classes"]))) == ["classes"]
    assert list(panels(plot_history(HISTORY, ("classes", "depth")))) == ["classes", "depth"]


@pytest.mark.parametrize("validation_freq", [2, 3, 4, [1, 2, 6]])
def test_validation_is_drawn_at_the_epochs_that_had_it(validation_freq):
    x = np.ones((4, 1))
    inputs = keras.Input((1,))
    model = MultiTaskModel(inputs, {"depth": keras.layers.Dense(1)(inputs)}, {"depth": "mse"})
    model.compile("sgd")
    validated = []

    class Log(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            validated.extend([epoch + 1] if "val_loss" in logs else [])

    arguments = {"validation_data": (x, x), "validation_freq": validation_freq, "epochs": 10}
    history = model.fit(x, x, callbacks=[Log()], verbose=0, **arguments)
    figure = plot_history(history, validation_freq=validation_freq)
    assert list(figure.axes[0].lines[1].get_xdata()) == validated
    with pytest.raises(ValueError, match=f"left {len(validated)} values.* for 10 epochs"):
        plot_history(history)
    validated.clear()
    arguments["initial_epoch"] = 1
    history = model.fit(x, x, callbacks=[Log()], verbose=0, **arguments)
    training, validation = plot_history(history, validation_freq=validation_freq).axes[0].lines
    assert list(training.get_xdata()) == [*range(2, 11)]
    assert list(validation.get_xdata()) == validated


@pytest.mark.parametrize(
    ("losses", "scale"),
    [([3.0, 2.0], "log"), ([300.0, 2.0], "log"), ([1.0, -1.0], "linear"), ([1.0, 0.0], "linear")],
)
def test_axes_are_logarithmic_unless_a_loss_is_not_positive(losses, scale):
    history = {"depth_loss": losses, "depth_sigma": [2.0, 1.0]}
    loss, sigma = panels(plot_history(history))["depth"]
    assert (loss.get_yscale(), sigma.get_yscale()) == (scale, "log")


def test_fifty_tasks_are_still_a_picture():
    history = {f"t{index}_{what}": [1.0, 0.5] for index in range(50) for what in ("loss", "sigma")}
    figure = plot_history(history)
    assert len(panels(figure)) == 50
    width, height = figure.get_size_inches()
    assert width < height < 100


@pytest.mark.parametrize("epochs", [1, 2, 200])
def test_a_history_is_saved_without_a_screen(epochs):
    history = {"depth_loss": [2.0] * epochs, "depth_sigma": [1.0] * epochs}
    picture = io.BytesIO()
    plot_history(history).savefig(picture, format="png")
    assert picture.getvalue().startswith(b"\x89PNG")


def test_a_missing_curve_is_named():
    with pytest.raises(ValueError, match=r"\['depth_sigma'\]. Received: \['depth_loss'\]"):
        plot_history({"depth_loss": [1.0]}, ["depth"])
    with pytest.raises(ValueError, match=r"must hold the curves \['height_loss', 'height_sigma'\]"):
        plot_history(HISTORY, ["height"])


def test_nothing_to_draw_is_an_error():
    with pytest.raises(ValueError, match=r"\['{task}_loss', .*Received: \['loss'\]"):
        plot_history({"loss": [1.0]})


def curves(figure, of=lambda line: line.get_data()):
    """The curves of a diagram without its diagonal, by their entry in the legend."""
    (axes,) = figure.axes
    _diagonal, *lines = axes.lines
    entries = [text.get_text() for text in axes.get_legend().get_texts()]
    assert [line.get_label() for line in lines] == entries
    return {line.get_label(): of(line) for line in lines}


def test_reliability_diagram_draws_frequency_against_probability():
    rng = np.random.default_rng(0)
    sure = rng.uniform(0.5, 1, 2000)
    probabilities = np.stack([sure, 1 - sure], axis=1)
    # Predictions come true half as often as their probability says.
    labels = np.where(rng.random(2000) < 0.5 * sure, 0, 1)
    ((label, (confidence, frequency)),) = curves(plot_reliability(labels, probabilities, 5)).items()
    expected = calibration_curve(labels == 0, sure, n_bins=5)
    np.testing.assert_allclose((frequency, confidence), expected)
    areas = plot_reliability(labels, probabilities, 2).axes[0].collections[0].get_sizes()
    assert len(areas) == 1  # the most likely of two classes has a probability above a half
    assert float(label.removeprefix("ECE ").removesuffix("%")) == pytest.approx(37.5, abs=2)


def test_several_predictions_are_compared_by_name():
    labels, probabilities = np.array([0, 1]), np.array([[0.9, 0.1], [0.2, 0.8]])
    right = np.eye(2)
    drawn = curves(plot_reliability(labels, {"before": probabilities, "after": right}))
    assert list(drawn) == ["before: ECE 15.0%", "after: ECE 0.0%"]
    drawn = curves(plot_coverage([1.0, 2.0], [1.0, 2.5], {"a": [1.0, 1.0], "b": [0.1, 0.1]}))
    assert list(drawn) == ["a: 100.0% in 95% intervals", "b: 50.0% in 95% intervals"]


@pytest.mark.parametrize(
    ("name", "distribution"), [("gaussian", stats.norm), ("laplace", stats.laplace)]
)
def test_coverage_is_drawn_for_every_central_interval(name, distribution):
    rng = np.random.default_rng(0)
    locations, scales = rng.normal(size=(500, 2)), rng.exponential(size=(500, 2))
    targets = distribution.rvs(locations, 2 * scales, random_state=rng)
    ((label, (levels, shares)),) = curves(plot_coverage(targets, locations, scales, name)).items()
    assert (levels[0], levels[-1]) == (0, 1)
    for level in (0.3, 0.5, 0.95):
        lower, upper = distribution.interval(level, locations, scales)
        share = np.mean((lower <= targets) & (targets <= upper))
        assert np.interp(level, levels, shares) == pytest.approx(share)
        assert share < level
    assert label == f"{100 * share:.1f}% in 95% intervals"


def test_diagrams_are_saved_without_a_screen():
    for figure in (
        plot_reliability([0, 1], [[0.9, 0.1], [0.4, 0.6]]),
        plot_coverage([1.0], [2.0], [1.0]),
    ):
        picture = io.BytesIO()
        figure.savefig(picture, format="png")
        assert picture.getvalue().startswith(b"\x89PNG")


def test_importing_the_module_needs_no_matplotlib(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    module = runpy.run_path(plotting.__file__)
    for name, arguments in {
        "plot_history": (HISTORY,),
        "plot_reliability": ([1], [0.5]),
        "plot_coverage": ([1.0], [1.0], [1.0]),
        "plot_noise": ([1.0], [1.0], [1.0]),
    }.items():
        with pytest.raises(ImportError, match="matplotlib"):
            module[name](*arguments)


def test_the_effective_weight_is_the_factor_of_the_raw_loss():
    likelihoods = {"depth": Laplace(), "classes": Gaussian()}
    figure = plot_history(HISTORY, likelihoods=likelihoods)
    titles = [axes.get_title() for axes in figure.axes]
    assert titles[2::3] == ["depth: weight", "classes: weight"]
    depth, classes = (curve(axes.lines[0])[1] for axes in figure.axes[2::3])
    np.testing.assert_allclose(depth, np.sqrt(2) / np.array(HISTORY["depth_sigma"]))
    np.testing.assert_allclose(classes, 0.5 / np.array(HISTORY["classes_sigma"]) ** 2)


def test_a_history_is_drawn_on_axes_that_are_given():
    figure = Figure()
    axes = figure.subplots(2, 3)
    drawn = plot_history(HISTORY, ["depth", "classes"], axes=axes[:, 1:])
    assert drawn is figure
    assert [panel.get_title() for panel in axes.flat] == [
        *("", "depth: loss", "depth: σ"),
        *("", "classes: loss", "classes: σ"),
    ]
    with pytest.raises(ValueError, match=r"`axes` must be 4: 2 for each .* Received: 6"):
        plot_history(HISTORY, axes=axes)


@pytest.mark.parametrize("name", ["gaussian", "laplace"])
def test_errors_are_drawn_against_the_noise_that_was_predicted(name):
    rng = np.random.default_rng(0)
    scales = rng.lognormal(size=(40_000, 1))
    noise = rng.normal if name == "gaussian" else rng.laplace
    targets = 5 + 2 * scales * noise(size=scales.shape)
    locations = np.full_like(scales, 5.0)
    figure = plot_noise(targets, locations, {"before": scales, "after": 2 * scales}, name)
    before, after = curves(figure).values()
    for (noise, error), factor in ((before, 2), (after, 1)):
        assert len(noise) == 10
        np.testing.assert_allclose(error / noise, factor, rtol=0.06)
    # The first bin holds the tenth with the smallest scales.
    tenth = scales[scales <= np.quantile(scales, 0.1)]
    mean = np.sqrt(np.mean(tenth**2)) if name == "gaussian" else np.mean(tenth)
    assert before[0][0] == pytest.approx(mean, rel=1e-3)


def test_several_lines_differ_without_colour():
    p = np.array([[0.9, 0.1], [0.4, 0.6]])
    values = {"a": [1.0, 2.0], "b": [2.0, 3.0]}
    for figure in (
        plot_reliability([0, 1], {"a": p, "b": p[::-1]}),
        plot_coverage([1.0, 2.0], [1.0, 2.0], values),
        plot_noise([1.0, 2.0], [1.5, 2.5], values),
    ):
        assert len(set(curves(figure, of=lambda line: line.get_linestyle()).values())) == 2
