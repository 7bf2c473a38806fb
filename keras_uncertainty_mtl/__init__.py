"""Multi-task loss weighting by homoscedastic uncertainty, for Keras 3."""

from keras_uncertainty_mtl.inference import inference_model
from keras_uncertainty_mtl.likelihoods import (
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
from keras_uncertainty_mtl.likelihoods.base import Likelihood
from keras_uncertainty_mtl.model import MultiTaskModel
from keras_uncertainty_mtl.weighting import UncertaintyWeighting

__version__ = "0.2.0"

__all__ = [
    "Bernoulli",
    "Categorical",
    "Gaussian",
    "Gibbs",
    "Laplace",
    "Likelihood",
    "MultiTaskModel",
    "NegativeBinomial",
    "Ordinal",
    "Poisson",
    "Quantile",
    "StudentT",
    "UncertaintyWeighting",
    "inference_model",
]
