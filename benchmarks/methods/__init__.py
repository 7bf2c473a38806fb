"""Loss-weighting rules of the literature, to compare this package with."""

from benchmarks.methods.adaptive import (
    DynamicWeightAverage,
    FastAdaptive,
    GroupAlignment,
    SmoothChebyshev,
)
from benchmarks.methods.alternatives import (
    BalancedGradients,
    HeldOutSigma,
    KernelEigenvalues,
    PriorVariance,
)
from benchmarks.methods.base import Rule, standard_units
from benchmarks.methods.losses import (
    AnalyticalUncertainty,
    EqualWeights,
    GeometricLosses,
    ImpartialLosses,
    LogarithmicLosses,
    PlainUncertainty,
    PositiveRegulariser,
    RandomWeights,
    SoftmaxUncertainty,
)

__all__ = [
    "AnalyticalUncertainty",
    "BalancedGradients",
    "DynamicWeightAverage",
    "EqualWeights",
    "FastAdaptive",
    "GeometricLosses",
    "GroupAlignment",
    "HeldOutSigma",
    "ImpartialLosses",
    "KernelEigenvalues",
    "LogarithmicLosses",
    "PlainUncertainty",
    "PositiveRegulariser",
    "PriorVariance",
    "RandomWeights",
    "Rule",
    "SmoothChebyshev",
    "SoftmaxUncertainty",
    "standard_units",
]
