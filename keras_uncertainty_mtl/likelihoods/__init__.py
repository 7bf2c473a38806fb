"""Likelihoods: the noise models that turn a task's raw loss into a negative log-likelihood."""

from keras_uncertainty_mtl.likelihoods.base import Likelihood
from keras_uncertainty_mtl.likelihoods.continuous import Gaussian, Laplace, Quantile, StudentT
from keras_uncertainty_mtl.likelihoods.counts import NegativeBinomial, Poisson
from keras_uncertainty_mtl.likelihoods.discrete import Bernoulli, Categorical
from keras_uncertainty_mtl.likelihoods.gibbs import Gibbs
from keras_uncertainty_mtl.likelihoods.identifiers import get
from keras_uncertainty_mtl.likelihoods.ordinal import Ordinal

# Those whose loss of an element depends on nothing but the element.
ELEMENTWISE = (
    *(Bernoulli, Categorical, Gaussian, Laplace, NegativeBinomial),
    *(Ordinal, Poisson, Quantile, StudentT),
)

__all__ = [
    "ELEMENTWISE",
    "Bernoulli",
    "Categorical",
    "Gaussian",
    "Gibbs",
    "Laplace",
    "Likelihood",
    "NegativeBinomial",
    "Ordinal",
    "Poisson",
    "Quantile",
    "StudentT",
    "get",
]
