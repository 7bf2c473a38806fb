"""The ways to train one network that the comparison compares: methods by name."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from benchmarks import methods
from benchmarks.problems import Data, Problem
from benchmarks.problems.base import is_of_classes
from examples.batches import shuffled
from keras_uncertainty_mtl import (
    Gaussian,
    Laplace,
    Likelihood,
    MultiTaskModel,
    UncertaintyWeighting,
)

# Makes the model to train from a problem, its data, a network and a seed.
Method = Callable[[Problem, Data, keras.Model, int], keras.Model]

DEFAULT, APPROXIMATE = "this package", "…approximate=True"
SINGLE = "single "
FIXED = "fixed weights "
SOFTMAX = "UW-SO, temperature "
FIXED_WEIGHTINGS = 12
# Largest distance of a random weight from that of standardised targets, in powers of ten.
DECADES = 1.25
TEMPERATURES = (1, 2, 5, 10, 20)
# Epochs before those whose mean loss is the reference of STCH: the authors', at most a tenth.
WARM_UP, WARM_UP_SHARE = 4, 0.1


def single(task: str, problem: Problem, data: Data, network: keras.Model, seed: int) -> keras.Model:
    tasks = {task: problem.tasks[task]}
    return methods.EqualWeights(network, tasks, methods.standard_units(tasks, data.train.targets))


def changed(
    tasks: dict[str, Likelihood], data: Data, change: Callable[..., dict[str, Any]]
) -> dict[str, Likelihood]:
    """The tasks, with the arguments that `change` gives for a likelihood and its labels."""
    return {
        task: each.from_config(each.get_config() | change(each, data.train.targets[task]))
        for task, each in tasks.items()
    }


def package(
    problem: Problem,
    data: Data,
    network: keras.Model,
    seed: int,
    change: Callable[..., dict[str, Any]] | None = None,
    weight: Callable[[Likelihood], float] | None = None,
    **options: Any,
) -> keras.Model:
    """This package, with likelihoods `changed`, and the `weight` of each."""
    tasks = problem.tasks if change is None else changed(problem.tasks, data, change)
    if weight is not None:
        options["loss_weights"] = {task: weight(each) for task, each in tasks.items()}
    weighting = UncertaintyWeighting(tasks, **options)
    return MultiTaskModel(network.input, network.output, weighting)


def for_classes(**options: Any) -> Callable[..., dict[str, Any]]:
    """Arguments of likelihoods of classes."""
    return lambda likelihood, labels: options if is_of_classes(likelihood) else {}


def twice_for_classes(likelihood: Likelihood) -> float:
    return 2.0 if is_of_classes(likelihood) else 1.0


def floor(likelihood: Likelihood, labels: Any) -> dict[str, Any]:
    """A least σ of 30% of the standard deviation of the labels."""
    has_units = isinstance(likelihood, (Gaussian, Laplace))
    return {"min_sigma": 0.3 * float(np.nanstd(labels))} if has_units else {}


def held_out_sigma(problem: Problem, data: Data, network: keras.Model, seed: int) -> keras.Model:
    tasks = changed(problem.tasks, data, lambda likelihood, labels: {"trainable": False})
    batches = functools.partial(shuffled, batch_size=problem.batch_size, seed=seed)
    return methods.HeldOutSigma(
        network.input, network.output, tasks, rows=data.train, batches=batches
    )


def raw(rule: type[methods.Rule], **options: Any) -> Method:
    """The rule on the losses in the units of their targets."""
    return lambda problem, data, network, seed: rule(network, problem.tasks, **options)


def standard(rule: type[methods.Rule], **options: Any) -> Method:
    """The rule on the losses of standardised targets. An option may ask the problem and data."""

    def make(problem: Problem, data: Data, network: keras.Model, seed: int) -> keras.Model:
        given = {
            name: value(problem, data, seed) if callable(value) else value
            for name, value in options.items()
        }
        units = methods.standard_units(problem.tasks, data.train.targets)
        return rule(network, problem.tasks, units, **given)

    return make


def fixed_weights(
    index: int, problem: Problem, data: Data, network: keras.Model, seed: int
) -> keras.Model:
    """Index 0 stands for standardised targets; any other index is one draw for all seeds."""
    units = methods.standard_units(problem.tasks, data.train.targets)
    draws = np.random.default_rng(index).uniform(-DECADES, DECADES, len(units))
    weights = {
        task: unit * 10.0 ** (draw if index else 0)
        for (task, unit), draw in zip(units.items(), draws, strict=True)
    }
    return methods.EqualWeights(network, problem.tasks, weights)


def steps_per_epoch(problem: Problem, data: Data, seed: int = 0) -> int:
    return -(-len(data.train.inputs) // problem.batch_size)


def reference_steps(problem: Problem, data: Data, seed: int) -> tuple[int, int]:
    steps, epoch = steps_per_epoch(problem, data), min(WARM_UP, int(WARM_UP_SHARE * problem.epochs))
    return epoch * steps, (epoch + 1) * steps


# The headline first: it is run first.
METHODS: dict[str, Method] = {
    DEFAULT: package,
    APPROXIMATE: functools.partial(package, change=for_classes(approximate=True)),
    "STCH": standard(methods.SmoothChebyshev, reference_steps=reference_steps),
    "Σ log L": standard(methods.LogarithmicLosses),
    "equal weights, standardised": standard(methods.EqualWeights),
    "equal weights, raw units": raw(methods.EqualWeights),
    "plain Eq. 10": standard(methods.PlainUncertainty),
    "FAMO": standard(methods.FastAdaptive),
    '…update="closed_form"': functools.partial(package, update="closed_form"),
    "GLS": standard(methods.GeometricLosses),
    "IMTL-L": standard(methods.ImpartialLosses),
    "UW-O": standard(methods.AnalyticalUncertainty),
    "GO4Align": standard(methods.GroupAlignment),
    "dynamic weight average": standard(
        methods.DynamicWeightAverage, steps_per_epoch=steps_per_epoch
    ),
    "positive regulariser": standard(methods.PositiveRegulariser),
    "random weights": standard(methods.RandomWeights, seed=lambda problem, data, seed: seed),
    **{
        f"{SOFTMAX}{each}": standard(methods.SoftmaxUncertainty, temperature=each)
        for each in TEMPERATURES
    },
    **{f"{FIXED}{i}": functools.partial(fixed_weights, i) for i in range(1, FIXED_WEIGHTINGS)},
}
HEADLINE = 7
# Rules tried in place of the default. `log L` has the weight 1 / L, Eq. 10 half of it.
ALTERNATIVES: dict[str, Method] = {
    "temperature of 1": functools.partial(package, change=for_classes(trainable=False)),
    "classes count twice": functools.partial(package, weight=twice_for_classes),
    "log L of classes": functools.partial(
        package, change=for_classes(approximate=True), weight=twice_for_classes
    ),
    "log L of every task": functools.partial(
        package, change=for_classes(approximate=True), weight=lambda each: 2.0 * each.power
    ),
    "approximate, σ from 0.5": functools.partial(
        package, change=for_classes(approximate=True, min_sigma=0.5)
    ),
    "σ from 30% of the spread": functools.partial(package, change=floor),
    **{f"prior on σ², κ = {k}": raw(methods.PriorVariance, strength=k) for k in (0.1, 0.01)},
    "σ of held-out rows": held_out_sigma,
    "balanced gradients": raw(methods.BalancedGradients),
    "kernel eigenvalues": raw(methods.KernelEigenvalues),
}
# Searches, whose best run on validation data stands for all.
SEARCHES = {
    f"best of {FIXED_WEIGHTINGS} fixed": (
        "equal weights, standardised",
        *(f"{FIXED}{i}" for i in range(1, FIXED_WEIGHTINGS)),
    ),
    f"UW-SO, best of {len(TEMPERATURES)}": tuple(f"{SOFTMAX}{each}" for each in TEMPERATURES),
}
SHOWN = [name for name in METHODS if not name.startswith((FIXED, SOFTMAX))] + list(SEARCHES)


def methods_for(problem: Problem) -> dict[str, Method]:
    """Returns all methods: networks of one task, then the headline, then the rest."""
    singles = {f"{SINGLE}{task}": functools.partial(single, task) for task in problem.metrics()}
    return singles | METHODS
