"""Figures of the documentation: `python -m docs.figures DIRECTORY` draws them as SVG.

Losses come from the package itself. Lines differ in lightness and in dashes, so they can be told
apart in greyscale too.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from scipy.special import gammaln

from docs.styles import LINES, STYLE
from docs.training_figures import corrupt, following
from keras_uncertainty_mtl import (
    Bernoulli,
    Categorical,
    Gaussian,
    Gibbs,
    Laplace,
    NegativeBinomial,
    Ordinal,
    Poisson,
    Quantile,
    StudentT,
)

SIGMAS = (0.5, 1.0, 2.0)
Array = np.ndarray[Any, Any]


def draw_all(directory: Path) -> None:
    """Draws every figure into a directory."""
    directory.mkdir(exist_ok=True)
    with rc_context(STYLE):
        for name, draw in FIGURES.items():
            draw().savefig(directory / f"{name}.svg", metadata={"Date": None})


def pair_of_axes(height: float = 2.6) -> tuple[Figure, Any, Any]:
    figure = Figure(figsize=(5.8, height), layout="constrained")
    left, right = figure.subplots(1, 2)
    return figure, left, right


def negative_log_likelihood(
    likelihood: Any, targets: Any, predictions: Any, s: float
) -> Array:
    """One number an element, by the package."""
    targets = keras.ops.convert_to_tensor(targets, likelihood.target_dtype)
    predictions = keras.ops.convert_to_tensor(predictions, "float32")
    losses = likelihood.negative_log_likelihood(
        targets, predictions, keras.ops.array(s, "float32")
    )
    return np.ravel(keras.ops.convert_to_numpy(losses))


def of_errors(likelihood: Any) -> Callable[[], Figure]:
    """The density of a target around the network's output, and the loss of an error."""

    def draw() -> Figure:
        figure, left, right = pair_of_axes()
        errors = np.linspace(-60, 60, 24001)
        shown = np.abs(errors) <= 5
        for sigma, line in zip(SIGMAS, LINES, strict=True):
            outputs = np.zeros((len(errors), 1))
            losses = negative_log_likelihood(
                likelihood, errors[:, None], outputs, 2 * np.log(sigma)
            )
            density = np.exp(-losses) / np.trapezoid(np.exp(-losses), errors)
            left.plot(errors[shown], density[shown], label=f"σ = {sigma:g}", **line)
            right.plot(errors[shown], losses[shown], **line)
        left.set(xlabel="target − output", ylabel="density", ylim=(0, None))
        right.set(xlabel="target − output", ylabel="loss", ylim=(-1.2, 8))
        left.legend()
        return figure

    return draw


def of_margins(
    likelihood: Any, logits: Callable[[Array], Array]
) -> Callable[[], Figure]:
    """The probability of the right class, and its loss, against the lead of its logit."""

    def draw() -> Figure:
        figure, left, right = pair_of_axes()
        margins = np.linspace(-5, 5, 401)
        for sigma, line in zip(SIGMAS, LINES, strict=True):
            right_class = np.full(
                len(margins), 1 if isinstance(likelihood, Bernoulli) else 0
            )
            targets = (
                right_class[:, None]
                if isinstance(likelihood, Bernoulli)
                else right_class
            )
            losses = negative_log_likelihood(
                likelihood, targets, logits(margins), 2 * np.log(sigma)
            )
            left.plot(margins, np.exp(-losses), label=f"σ² = {sigma**2:g}", **line)
            right.plot(margins, losses, **line)
        left.set(
            xlabel="lead of its logit",
            ylabel="probability of the right class",
            ylim=(0, 1),
        )
        right.set(xlabel="lead of its logit", ylabel="loss", ylim=(0, 8))
        left.legend()
        return figure

    return draw


def three_classes(margins: Array) -> Array:
    return np.stack([margins, 0 * margins, 0 * margins], axis=-1)


def of_counts(
    likelihood: Any, log_base: Callable[[Array], Array]
) -> Callable[[], Figure]:
    """The probabilities of counts at a rate of 6, and the loss of a count of 6.

    The package's losses leave out the logarithm of a factor of the count alone, `log_base`.
    """

    def draw() -> Figure:
        figure, left, right = pair_of_axes()
        counts, rates = np.arange(0, 200.0), np.linspace(0.5, 20, 200)
        for sigma, line in zip(SIGMAS, LINES, strict=True):
            s = 2 * np.log(sigma)
            outputs = np.full((len(counts), 1), np.log(6.0))
            losses = negative_log_likelihood(likelihood, counts[:, None], outputs, s)
            mass = np.exp(log_base(counts) - losses)
            left.plot(
                counts[:18], (mass / mass.sum())[:18], label=f"σ = {sigma:g}", **line
            )
            sixes = np.full((len(rates), 1), 6.0)
            losses = negative_log_likelihood(
                likelihood, sixes, np.log(rates)[:, None], s
            )
            right.plot(rates, losses - losses.min(), **line)
        left.set(xlabel="count", ylabel="probability", ylim=(0, None))
        right.set(xlabel="rate exp(f)", ylabel="loss above its lowest", ylim=(0, 6))
        left.legend()
        return figure

    return draw


def ordinal() -> Figure:
    """The probabilities of five ratings for an output of 3.6, and the loss of a rating of 4."""
    figure, left, right = pair_of_axes()
    likelihood, ratings, outputs = (
        Ordinal(1, 5),
        np.arange(1.0, 6.0),
        np.linspace(0, 8, 200),
    )
    for sigma, line in zip(SIGMAS, LINES, strict=True):
        s = 2 * np.log(sigma)
        fixed = np.full((5, 1), 3.6)
        losses = negative_log_likelihood(likelihood, ratings[:, None], fixed, s)
        left.plot(ratings, np.exp(-losses), marker="o", label=f"σ = {sigma:g}", **line)
        fours = np.full((len(outputs), 1), 4.0)
        losses = negative_log_likelihood(likelihood, fours, outputs[:, None], s)
        right.plot(outputs, losses, **line)
    left.set(xlabel="rating", ylabel="probability", ylim=(0, 1), xticks=ratings)
    right.set(xlabel="output f", ylabel="loss of a rating of 4", ylim=(0, 8))
    left.legend()
    return figure


def heteroscedastic() -> Figure:
    """A band of one σ that differs from input to input, and the loss of its log-variance."""
    figure, left, right = pair_of_axes()
    x = np.linspace(0, 1, 200)
    output, h = np.sin(6 * x), 4 * x - 3
    sigma = np.exp(h / 2)
    noise = np.random.default_rng(0).normal(size=x.size)
    left.plot(
        x, output + sigma * noise, ".", color="#909090", markersize=3, label="targets"
    )
    left.plot(x, output, label="f", **LINES[0])
    left.plot(x, output + sigma, label="f ± σ · exp(h/2)", **LINES[1])
    left.plot(x, output - sigma, **LINES[1])
    left.set(xlabel="input", ylim=(-4, 4.5))
    left.legend(loc="upper left")
    log_variances = np.linspace(-5, 5, 201)
    for error, line in zip((0.5, 1.0, 2.0), LINES, strict=True):
        predictions = np.stack([0 * log_variances, log_variances], axis=-1)
        targets = np.full((len(log_variances), 1), error)
        losses = negative_log_likelihood(
            Gaussian(heteroscedastic=True), targets, predictions, 0.0
        )
        right.plot(log_variances, losses, label=f"|y − f| = {error:g}", **line)
    right.set(xlabel="s + h", ylabel="loss", ylim=(-2, 8))
    right.legend()
    return figure


def optimum() -> Figure:
    """The loss against σ for three mean squared errors, and the loss at its lowest."""
    figure, left, right = pair_of_axes()
    sigma = np.geomspace(0.1, 10, 400)
    for mean, line in zip((0.04, 0.25, 1.0), LINES, strict=True):
        loss = 0.5 * mean / sigma**2 + np.log(sigma)
        left.plot(sigma, loss, label=f"{mean:g}", **line)
        left.plot(np.sqrt(mean), 0.5 + np.log(np.sqrt(mean)), "o", color=line["color"])
    left.set(xscale="log", xlabel="σ", ylabel="loss", ylim=(-2, 12))
    left.legend(loc="upper right", title="mean squared error")
    right.plot(sigma, 0.5 + np.log(sigma), **LINES[0])
    right.axhline(0, **LINES[2])
    right.axvline(np.exp(-0.5), **LINES[2])
    right.set(
        xscale="log", xlabel="σ = root mean squared error", ylabel="loss at its lowest"
    )
    return figure


def approximation() -> Figure:
    """Eq. 10 beside the exact likelihood, and the term that it replaces."""
    figure, left, right = pair_of_axes()
    sigma = np.geomspace(0.4, 3, 200)
    for target, name, line in ((0, "right", LINES[0]), (1, "wrong", LINES[1])):
        for approximate, width in ((False, 2.0), (True, 1.0)):
            likelihood = Categorical(approximate=approximate)
            logits = np.array([[3.0, 0.0, 0.0]])
            losses = [
                negative_log_likelihood(likelihood, [target], logits, 2 * np.log(s))
                for s in sigma
            ]
            form = "Eq. 10" if approximate else "exact"
            left.plot(sigma, losses, label=f"{name}, {form}", linewidth=width, **line)
    left.set(xscale="log", xlabel="σ", ylabel="loss", ylim=(-1, 8))
    left.legend()
    right.plot(sigma, np.log(sigma), label="log σ, as in Eq. 10", **LINES[0])
    for spread, line in ((3.0, LINES[1]), (0.0, LINES[2])):
        logits = np.array([spread, 0, 0])
        at_temperature = np.log(np.exp(logits[:, None] / sigma**2).sum(axis=0))
        term = at_temperature - np.log(np.exp(logits).sum()) / sigma**2
        right.plot(sigma, term, label=f"exact, logits ({spread:g}, 0, 0)", **line)
    right.set(xscale="log", xlabel="σ", ylabel="term", ylim=(-4, 2))
    right.legend()
    for axes in (left, right):
        axes.set_xticks([0.5, 1, 2], ["0.5", "1", "2"])
        axes.minorticks_off()
    return figure


def temperature() -> Figure:
    """Class probabilities at three temperatures, and an over-confident network's held-out loss."""
    figure, left, right = pair_of_axes()
    logits = np.array([2.0, 1.0, 0.0, -1.0])
    fills = ("#000000", "#1f6fb4", "#c0c0c0")
    for place, (sigma, fill) in enumerate(zip((0.7, 1.0, 2.0), fills, strict=True)):
        scaled = np.exp(logits / sigma**2)
        bars = np.arange(4) + 0.27 * (place - 1)
        left.bar(
            bars, scaled / scaled.sum(), 0.25, color=fill, label=f"σ² = {sigma**2:.2g}"
        )
    left.set(xticks=range(4), xticklabels=[f"logit {each:g}" for each in logits])
    left.set(ylabel="probability")
    left.legend()
    rng = np.random.default_rng(0)
    true_logits = rng.normal(size=(20_000, 4))
    labels = np.argmax(true_logits + rng.gumbel(size=true_logits.shape), axis=-1)
    temperatures = np.geomspace(0.5, 20, 60)
    losses = [
        negative_log_likelihood(
            Categorical(), labels, 3 * true_logits, np.log(each)
        ).mean()
        for each in temperatures
    ]
    right.plot(temperatures, losses, **LINES[0])
    right.axvline(3, label="three times too sure", **LINES[1])
    right.set(xscale="log", xlabel="temperature σ²", ylabel="held-out loss")
    right.set_xticks([1, 3, 10], ["1", "3", "10"])
    right.minorticks_off()
    right.legend()
    return figure


FIGURES: dict[str, Callable[[], Figure]] = {
    "gaussian": of_errors(Gaussian()),
    "laplace": of_errors(Laplace()),
    "quantile": of_errors(Quantile(0.9)),
    "student_t": of_errors(StudentT()),
    "poisson": of_counts(Poisson(), lambda counts: -0.5 * np.log(counts + 1 / 6)),
    "negative_binomial": of_counts(
        NegativeBinomial(), lambda counts: -gammaln(counts + 1)
    ),
    "ordinal": ordinal,
    "gibbs": of_errors(Gibbs(keras.losses.Huber())),
    "categorical": of_margins(Categorical(), three_classes),
    "bernoulli": of_margins(Bernoulli(), lambda margins: margins[:, None]),
    "heteroscedastic": heteroscedastic,
    "optimum": optimum,
    "approximation": approximation,
    "temperature": temperature,
    "following": following,
    "corrupt": corrupt,
}


if __name__ == "__main__":
    draw_all(Path(sys.argv[1]))
