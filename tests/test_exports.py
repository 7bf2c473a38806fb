"""Exported models answer in their own runtimes as they do in Keras."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_uncertainty_mtl import (
    Bernoulli,
    Categorical,
    Gaussian,
    Gibbs,
    Laplace,
    MultiTaskModel,
    UncertaintyWeighting,
    inference_model,
)
