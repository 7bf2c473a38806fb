"""Reliability: events against their predicted probability, errors against their noise."""

import math
from typing import Any, NamedTuple

import numpy as np


class Reliability(NamedTuple):
    """Predicted probabilities in bins of equal width, empty ones left out."""

    confidence: Any  # Vector of the mean probability in each bin.
    frequency: Any  # Vector of the share of them that came true.
    share: Any  # Vector of the bin's share of all predictions.

    @property
    def expected_calibration_error(self) -> float:
        """The mean distance of confidence and frequency, `Σ share · |frequency - confidence|`."""
        return float(np.sum(self.share * np.abs(self.frequency - self.confidence)))


def reliability(labels: Any, probabilities: Any, bins: int = 10) -> Reliability:
    """Compares predicted probabilities with the frequency of what they predict.

    Args:
        labels: Array of class ids, to compare the probability of the most likely class with the
            share of right ones; or of 0 and 1, to compare each probability with the share of 1.
        probabilities: Array of shape `(*labels.shape, classes)`; for 0 and 1 also `labels.shape`.
        bins: Number of bins.

    Returns:
        A `Reliability`.

    Raises:
        ValueError: If the shapes do not fit, or a probability or a label is out of range.

    Example:

    >>> predicted = model.predictive_model().predict(x, verbose=0)
    >>> found = reliability(labels, predicted["classes_probabilities"])
    >>> error = found.expected_calibration_error

    References:
        - [Guo et al., 2017](https://arxiv.org/abs/1706.04599), section 2
    """
    predicted, is_true = _events(np.asarray(labels), np.asarray(probabilities, "float64"))
    bin_of_each = np.minimum((predicted * bins).astype(int), bins - 1)
    sums = [np.bincount(bin_of_each, each, bins) for each in (None, predicted, is_true)]
    counts, confidences, frequencies = np.stack(sums)[:, sums[0] > 0]
    return Reliability(confidences / counts, frequencies / counts, counts / counts.sum())


def central_mass(targets: Any, locations: Any, scales: Any, distribution: str = "gaussian") -> Any:
    """The probability of the smallest central interval of each prediction that holds its target.

    These are uniform between 0 and 1 if the predicted distributions are right.

    Args:
        targets: Array of targets, without those that are missing.
        locations: Gaussian means or Laplace medians, of `targets.shape` or `(*targets.shape, 1)`.
        scales: Gaussian standard deviations or Laplace scales `b`, in the same shape.
        distribution: `"gaussian"` or `"laplace"`.

    Returns:
        Array of probabilities, in the shape of the locations.

    Raises:
        ValueError: If shapes do not fit, a number is out of range, or the distribution is unknown.

    Example:

    >>> p = model.predictive_model().predict(x, verbose=0)
    >>> mass = central_mass(y1, p["depth_location"], p["depth_scale"], "laplace")
    >>> coverage = np.mean(mass <= 0.95)  # of the 95% intervals
    """
    targets, locations, scales = _checked(targets, locations, scales, distribution)
    return _MASS_WITHIN[distribution](np.abs(targets.reshape(scales.shape) - locations) / scales)


def errors_by_scale(
    targets: Any, locations: Any, scales: Any, distribution: str = "gaussian", bins: int = 10
) -> tuple[Any, Any]:
    """Compares the predicted noise of elements with their errors, in bins of equal number.

    Args:
        targets, locations, scales, distribution: As in `central_mass`.
        bins: Number of bins.

    Returns:
        Two vectors of one number a bin, equal if predictions are right: of a Gaussian the root mean
        squares of the standard deviations and of the errors, of a Laplace distribution the means of
        the scales and of the absolute errors.

    Raises:
        ValueError: As in `central_mass`.

    Example:

    >>> p = model.predictive_model().predict(x, verbose=0)
    >>> noise, error = errors_by_scale(y1, p["depth_location"], p["depth_scale"], "laplace")

    References:
        - [Levi et al., 2020](https://arxiv.org/abs/1905.11659)
    """
    targets, locations, scales = _checked(targets, locations, scales, distribution)
    power = 2.0 if distribution == "gaussian" else 1.0
    errors = np.abs(targets.reshape(scales.shape) - locations)
    order = np.argsort(scales, axis=None)
    parts = [np.array_split(each.ravel()[order] ** power, bins) for each in (scales, errors)]
    noise, error = ([np.mean(part) for part in each if part.size] for each in parts)
    return np.power(noise, 1.0 / power), np.power(error, 1.0 / power)


_MASS_WITHIN = {
    # NumPy has no erf, and Keras's is in single precision on some backends.
    "gaussian": lambda z: np.vectorize(math.erf, otypes=["float64"])(z / np.sqrt(2.0)),
    "laplace": lambda z: 1.0 - np.exp(-z),
}


def _events(labels: Any, probabilities: Any) -> tuple[Any, Any]:
    """Vectors of the probability of each event, and of 1 where it came true, else 0."""
    has_classes = probabilities.shape[:-1] == labels.shape and probabilities.shape[-1] > 1
    if not has_classes and probabilities.shape not in (labels.shape, (*labels.shape, 1)):
        raise ValueError(
            "`probabilities` must have the shape of `labels`, or one more axis, of classes. "
            f"Received: labels of shape {labels.shape}, probabilities of {probabilities.shape}"
        )
    classes, sums = (probabilities.shape[-1], probabilities.sum(-1)) if has_classes else (2, 1.0)
    # In half precision probabilities add up to 1 within some thousandths.
    if not np.all((probabilities >= 0) & (probabilities <= 1)) or np.any(np.abs(sums - 1) > 0.01):
        raise ValueError(
            "`probabilities` must be between 0 and 1, and add up to 1 over classes. Received: "
            f"values from {probabilities.min()} to {probabilities.max()}. Instead of logits take "
            "the output of `predictive_model()`, or their softmax or sigmoid."
        )
    if not np.all(np.isin(labels, np.arange(classes))):
        raise ValueError(
            f"`labels` must be whole numbers from 0 to {classes - 1}. Received: labels from "
            f"{labels.min()} to {labels.max()}. Leave out missing labels, as `labels[observed]`."
        )
    if has_classes:
        labels = labels == probabilities.argmax(-1)
        probabilities = probabilities.max(-1)
    return probabilities.ravel(), labels.ravel()


def _checked(targets: Any, locations: Any, scales: Any, distribution: str) -> list[Any]:
    """The arrays in double precision."""
    if distribution not in _MASS_WITHIN:
        raise ValueError(f"`distribution` is one of {[*_MASS_WITHIN]}. Received: {distribution!r}")
    targets, locations, scales = (np.asarray(a, "float64") for a in (targets, locations, scales))
    fits = locations.shape in (targets.shape, (*targets.shape, 1))
    if not fits or scales.shape != locations.shape:
        raise ValueError(
            "`targets`, `locations` and `scales` must have one shape. "
            f"Received: the shapes {targets.shape}, {locations.shape} and {scales.shape}"
        )
    for name, values in {"targets": targets, "locations": locations, "scales": scales}.items():
        # A NaN would count as one that is in no interval.
        if not np.all(np.isfinite(values)):
            raise ValueError(
                f"`{name}` must be finite. Received: {np.sum(~np.isfinite(values))} NaN or infinite"
                f" of {values.size}. Leave out missing targets, as `targets[~np.isnan(targets)]`."
            )
    if not np.all(scales > 0):
        raise ValueError(
            f"`scales` must be positive. Received: scales from {scales.min()}. "
            "Instead of log-variances take the output of `predictive_model()`."
        )
    return [targets, locations, scales]
