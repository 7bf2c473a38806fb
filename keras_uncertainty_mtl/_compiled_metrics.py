"""From the metrics that `compile` is given to metrics of observed elements, by task and by name."""

import re
import warnings
from collections import Counter
from collections.abc import Mapping
from typing import Any

import keras
from keras import losses, ops
from keras import metrics as keras_metrics

from keras_uncertainty_mtl._observed_metrics import ObservedMetric
from keras_uncertainty_mtl._shapes import Shape
from keras_uncertainty_mtl._structures import by_task, naming_task
from keras_uncertainty_mtl.likelihoods import Bernoulli, Categorical, Likelihood, Ordinal

# Functions of Keras that take probabilities unless they are told otherwise.
OF_PROBABILITIES = (
    *(losses.binary_crossentropy, losses.binary_focal_crossentropy, keras_metrics.binary_accuracy),
    *(losses.categorical_crossentropy, losses.categorical_focal_crossentropy),
    *(losses.sparse_categorical_crossentropy, losses.kl_divergence),
)


def observed_metrics(
    tasks: Mapping[str, Likelihood], outputs: Any, metrics: Any, weighted_metrics: Any
) -> dict[str, list[ObservedMetric]]:
    """The metrics of each task, by the names that Keras itself would give them.

    Raises:
        ValueError: If a metric belongs to no task, or if two numbers would have one name.
    """
    given = {
        "metrics": _by_task(tasks, metrics, "metrics", outputs),
        "weighted_metrics": _by_task(tasks, weighted_metrics, "weighted_metrics", outputs),
    }
    predictions = by_task(tasks, outputs, "predictions")
    observed: dict[str, list[ObservedMetric]] = {}
    for task, likelihood in tasks.items():
        shape = tuple(predictions[task].shape)
        with naming_task(task):
            plain, weighted = (
                [_metric_and_name(each, likelihood, shape) for each in by.get(task, [])]
                for by in given.values()
            )
        for metric, name in plain + weighted if likelihood.from_logits else []:
            _warn_of_probabilities(task, metric, name)
        is_classes = isinstance(likelihood, Categorical)
        has_class_axis = is_classes or len(likelihood.target_shape(shape)) < len(shape)
        names = _unique_names([name for _, name in plain], [name for _, name in weighted])
        observed[task] = [
            ObservedMetric(metric, name, index >= len(plain), has_class_axis)
            for index, ((metric, _), name) in enumerate(zip(plain + weighted, names, strict=True))
        ]
    _check_names(observed)
    return {task: metrics for task, metrics in observed.items() if metrics}


def _by_task(
    tasks: Mapping[str, Likelihood], given: Any, argument: str, outputs: Any
) -> dict[str, list[Any]]:
    """The list of what is given for each task. A dict may leave tasks out."""
    if given is None or isinstance(given, dict):
        if unknown := [key for key in given or {} if key not in tasks]:
            raise ValueError(
                f"`{argument}` must be a dict from tasks, which are {list(tasks)}. Received: the "
                f"unknown {unknown}"
            )
        given = dict.fromkeys(tasks) | (given or {})
    elif len(tasks) == 1:
        given = dict.fromkeys(tasks, keras.tree.flatten(given))
    entries = by_task(tasks, given, argument, optional=True, outputs=outputs)
    return {
        task: list(entry) if isinstance(entry, (list, tuple)) else [entry]
        for task, entry in entries.items()
        if entry is not None
    }


def _metric_and_name(identifier: Any, likelihood: Likelihood, shape: Shape) -> tuple[Any, str]:
    """The metric or function that is given, and the name that Keras takes from it."""
    if isinstance(identifier, str):
        is_accuracy = identifier.lower() in ("accuracy", "acc")
        metric = _accuracy(likelihood, shape) if is_accuracy else keras_metrics.get(identifier)
        return metric, identifier
    metric = keras_metrics.get(identifier)
    if metric is None:
        raise ValueError("Expected a metric. Received: None")
    if hasattr(metric, "name"):
        return metric, metric.name
    name = re.sub(r"\W+", "", getattr(metric, "__name__", type(metric).__name__))
    name = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", name)
    return metric, re.sub("([a-z])([A-Z])", r"\1_\2", name).lower()


def _warn_of_probabilities(task: str, metric: Any, name: str) -> None:
    """Warns of a metric of Keras that takes probabilities, where the model answers with logits."""
    if _takes_probabilities(metric):
        warnings.warn(
            f"Task '{task}': its metric '{name}' takes probabilities, and its predictions are "
            "logits. Give it from_logits=True, for yes or no a threshold of 0.0, or for classes "
            "top_k=1. If it takes none of these, wrap it in a function that has a sigmoid or a "
            "softmax first.",
            stacklevel=4,
        )


def _takes_probabilities(metric: Any) -> bool:
    kind = type(metric)
    if kind not in (getattr(each, kind.__name__, None) for each in (keras_metrics, losses)):
        return any(metric is function for function in OF_PROBABILITIES)
    config = metric.get_config()
    if "from_logits" in config:
        return not config["from_logits"]
    # Without `thresholds` a metric that has them takes 0.5, unless it has `top_k`.
    given = config.get("thresholds", 0.0), config.get("top_k"), config.get("threshold")
    takes_half = given[0] is None and given[1] is None
    thresholds = [each for each in keras.tree.flatten(given[::2]) if each is not None]
    is_divergence = kind in (keras_metrics.KLDivergence, losses.KLDivergence)
    has_range = "num_thresholds" in config
    return takes_half or any(0 < each < 1 for each in thresholds) or has_range or is_divergence


def _accuracy(likelihood: Likelihood, shape: Shape) -> Any:
    """The accuracy of the likelihood's classes; for other likelihoods by shape, as in Keras."""
    if isinstance(likelihood, Bernoulli):
        # The logit of one half is 0.
        return keras_metrics.BinaryAccuracy(threshold=0.0 if likelihood.from_logits else 0.5)
    if isinstance(likelihood, Ordinal):
        return _accuracy_of_ratings
    target_shape = likelihood.target_shape(shape)
    if len(target_shape) < len(shape):
        return keras_metrics.SparseCategoricalAccuracy()
    is_binary = target_shape[-1] == 1
    return keras_metrics.BinaryAccuracy() if is_binary else keras_metrics.CategoricalAccuracy()


def _accuracy_of_ratings(ratings: Any, estimates: Any) -> Any:
    """The share of estimates that are next to the right rating."""
    return ops.equal(ops.reshape(ratings, ops.shape(estimates)), ops.round(estimates))


def _unique_names(plain: list[str], weighted: list[str]) -> list[str]:
    """The names of a task's metrics: `mae`, a second `mae_1`, a weighted `weighted_mae`."""
    counts, names = Counter[str](), []
    for index, name in enumerate([*plain, *weighted]):
        if index >= len(plain) and counts[name]:
            name = f"weighted_{name}"
        names.append(f"{name}_{counts[name]}" if counts[name] else name)
        counts[name] += 1
    return names


def _check_names(observed: Mapping[str, list[ObservedMetric]]) -> None:
    """Refuses metrics that would be reported by the name of another number."""
    taken = {"loss", *(f"{task}_{number}" for task in observed for number in ("loss", "sigma"))}
    for task, metrics in observed.items():
        for metric in metrics:
            name = metric.name if len(observed) == 1 else f"{task}_{metric.name}"
            if name in taken or name.startswith("val_"):
                raise ValueError(
                    f"Task '{task}': its metric '{metric.name}' would be reported as '{name}', "
                    "which is the name of another number, or of one of validation. Give the metric "
                    "another `name`."
                )
            taken.add(name)
