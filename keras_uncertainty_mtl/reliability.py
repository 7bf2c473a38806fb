"""Reliability: the frequency of events against their predicted probability."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np


class Reliability(NamedTuple):
    """Predicted probabilities in bins of equal width, empty ones left out.

    Args:
        confidence: Vector of the mean probability in each bin.
        frequency: Vector of the share of them that came true.
        share: Vector of the bin's share of all predictions.
    """

    confidence: Any
    frequency: Any
    share: Any

    @property
    def expected_calibration_error(self) -> float:
        """The mean distance of confidence and frequency, `Σ share · |frequency - confidence|`."""
        return float(np.sum(self.share * np.abs(self.frequency - self.confidence)))


def reliability(labels: Any, probabilities: Any, bins: int = 10) -> Reliability:
    """Compares predicted probabilities with the frequency of what they predict.

    Args:
        labels: Array of class ids, to compare the probability of the most likely class with the
            share of right ones; or of 0 and 1 in the shape of the probabilities, with or without an
            axis of size 1 at the end, to compare each probability with the share of 1.
        probabilities: Array of probabilities, for class ids of shape `(*labels.shape, classes)`.
        bins: Number of bins.

    Returns:
        A `Reliability`.

    Raises:
        ValueError: If the shapes do not fit, or a probability or a label is out of range.

    Example:

    ```python
    probabilities = model.predictive_model().predict(x)["classes_probabilities"]
    reliability(labels, probabilities).expected_calibration_error
    ```

    References:
        - [Guo et al., 2017](https://arxiv.org/abs/1706.04599), section 2
    """
    probabilities, is_true = _predicted(labels, probabilities)
    bin_of_each = np.minimum((probabilities * bins).astype(int), bins - 1).ravel()
    counts = np.bincount(bin_of_each, minlength=bins)
    filled = counts > 0
    confidence, frequency = (
        np.bincount(bin_of_each, weights=values.ravel(), minlength=bins)[filled] / counts[filled]
        for values in (probabilities, is_true)
    )
    return Reliability(confidence, frequency, counts[filled] / counts.sum())


def central_mass(targets: Any, locations: Any, scales: Any, distribution: str = "gaussian") -> Any:
    """The probability of the smallest central interval of each prediction that holds its target.

    These are uniform between 0 and 1 if the predicted distributions are right. The share of them up
    to 0.95 is the share of targets in their 95% intervals.

    Args:
        targets: Array of targets, without those that are missing.
        locations: Array of Gaussian means or Laplace medians, in the shape of the targets, with or
            without an axis of size 1 at the end.
        scales: Array of Gaussian standard deviations or Laplace scales `b`, in the same shape.
        distribution: `"gaussian"` or `"laplace"`.

    Returns:
        Array of probabilities, in the shape of the locations.

    Raises:
        ValueError: If the shapes do not fit, a number is not finite, a scale is not positive, or
            the distribution is unknown.

    Example:

    ```python
    predicted = model.predictive_model().predict(x)
    mass = central_mass(y1, predicted["depth_location"], predicted["depth_scale"], "laplace")
    np.mean(mass <= 0.95)  # how many are in their 95% intervals
    ```
    """
    if distribution not in _MASS_WITHIN:
        raise ValueError(
            f"`distribution` must be one of {list(_MASS_WITHIN)}. Received: {distribution!r}"
        )
    targets, locations, scales = (
        np.asarray(values, "float64") for values in (targets, locations, scales)
    )
    _check_intervals(targets, locations, scales)
    distances = np.abs(targets.reshape(locations.shape) - locations) / scales
    return _MASS_WITHIN[distribution](distances)


def _predicted(labels: Any, probabilities: Any) -> tuple[Any, Any]:
    """The probability of each predicted event, and whether it is true."""
    labels, probabilities = np.asarray(labels), np.asarray(probabilities, "float64")
    if probabilities.shape[:-1] == labels.shape and probabilities.shape[-1] > 1:
        _check_probabilities(probabilities, probabilities.sum(axis=-1))
        _check_labels(labels, classes=probabilities.shape[-1])
        is_true = probabilities.argmax(axis=-1) == labels
        probabilities = probabilities.max(axis=-1)
    elif probabilities.shape in (labels.shape, (*labels.shape, 1)):
        _check_probabilities(probabilities)
        _check_labels(labels, classes=2)
        is_true = labels.reshape(probabilities.shape)
    else:
        raise ValueError(
            "`probabilities` must have the shape of `labels`, with or without an axis of classes "
            f"at its end. Received: labels of shape {labels.shape} and probabilities of shape "
            f"{probabilities.shape}"
        )
    return probabilities, is_true


def _check_intervals(targets: Any, locations: Any, scales: Any) -> None:
    fits = locations.shape in (targets.shape, (*targets.shape, 1))
    if not fits or scales.shape != locations.shape:
        raise ValueError(
            "`targets`, `locations` and `scales` must have one shape. Received: the shapes "
            f"{targets.shape}, {locations.shape} and {scales.shape}"
        )
    for name, values in (("targets", targets), ("locations", locations), ("scales", scales)):
        # A NaN would count as one that is in no interval.
        if not np.all(np.isfinite(values)):
            raise ValueError(
                f"`{name}` must be finite. Received: {np.sum(~np.isfinite(values))} NaN or "
                f"infinite of {values.size}. Leave out missing targets, as "
                "`targets[~np.isnan(targets)]`."
            )
    if not np.all(scales > 0):
        raise ValueError(
            f"`scales` must be positive. Received: scales from {scales.min()}. Instead of "
            "log-variances take the output of `predictive_model()`."
        )


def _check_probabilities(probabilities: Any, sums: Any = 1.0) -> None:
    # In half precision probabilities add up to 1 within some thousandths.
    if not np.all((probabilities >= 0) & (probabilities <= 1)) or np.any(np.abs(sums - 1) > 0.01):
        raise ValueError(
            "`probabilities` must be between 0 and 1, and those of several classes add up to 1. "
            f"Received: values from {probabilities.min()} to {probabilities.max()}. Instead of "
            "logits take the output of `predictive_model()`, or their softmax or sigmoid."
        )


def _check_labels(labels: Any, classes: int) -> None:
    if not np.all(np.isin(labels, np.arange(classes))):
        raise ValueError(
            f"`labels` must be whole numbers from 0 to {classes - 1}. Received: labels from "
            f"{labels.min()} to {labels.max()}. Leave out missing labels, as "
            "`labels[observed]` and `probabilities[observed]`."
        )


# NumPy has no erf, and Keras's is in single precision on some backends.
_erf = np.vectorize(math.erf, otypes=["float64"])

_MASS_WITHIN = {
    "gaussian": lambda distances: _erf(distances / np.sqrt(2.0)),
    "laplace": lambda distances: 1.0 - np.exp(-distances),
}
