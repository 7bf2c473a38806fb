"""Rules that see the losses of one batch: fixed, random, trained and scale-free weights.

`L` is a task's mean raw loss, and `L'` is L without its gradient.
"""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from benchmarks.methods.base import Rule, Tensor

# The smallest loss that a logarithm or an inverse takes, as in STCH's code.
TINY = 1e-20


class EqualWeights(Rule):
    """`Σ L`."""

    def weigh(self, losses: Tensor) -> Tensor:
        return ops.sum(losses)


class RandomWeights(Rule):
    """`Σ w·L`, where `w = T·softmax(z)` and every step draws a standard normal z.

    References:
        - [Lin et al., 2022](https://arxiv.org/abs/2111.10603), RLW
    """

    def __init__(self, *arguments: Any, seed: int) -> None:
        super().__init__(*arguments)
        self.seed_generator = keras.random.SeedGenerator(seed)

    def weigh(self, losses: Tensor) -> Tensor:
        normal = keras.random.normal((len(self.tasks),), seed=self.seed_generator)
        return len(self.tasks) * ops.sum(ops.softmax(normal) * losses)


class TrainedRule(Rule):
    """Base class of rules with a trained number `s` a task, 0 at first."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.s = self.vector(0.0, trainable=True)


class PlainUncertainty(TrainedRule):
    """`Σ exp(-s)·L + ½·s`, where s is trained like every other weight.

    References:
        - [Kendall, Gal & Cipolla, 2018](https://arxiv.org/abs/1705.07115), Eq. 10
    """

    def weigh(self, losses: Tensor) -> Tensor:
        s = ops.convert_to_tensor(self.s)
        return ops.sum(ops.exp(-s) * losses + 0.5 * s)


class PositiveRegulariser(TrainedRule):
    """`Σ ½·exp(-s)·L + log(1 + exp(s))`.

    References:
        - [Liebel & Körner, 2018](https://arxiv.org/abs/1805.06334), Eq. 4
    """

    def weigh(self, losses: Tensor) -> Tensor:
        s = ops.convert_to_tensor(self.s)
        return ops.sum(0.5 * ops.exp(-s) * losses + ops.softplus(s))


class ImpartialLosses(TrainedRule):
    """`Σ exp(s)·L - s`, so that all scaled losses tend to 1.

    References:
        - [Liu et al., 2021](https://openreview.net/forum?id=IMPnRXEWpvr), IMTL-L
    """

    def weigh(self, losses: Tensor) -> Tensor:
        s = ops.convert_to_tensor(self.s)
        return ops.sum(ops.exp(s) * losses - s)


class LogarithmicLosses(Rule):
    """`Σ log L`, whose weights are 1 / L: the scale-invariant baseline.

    References:
        - [Navon et al., 2022](https://arxiv.org/abs/2202.01017), "SI"
    """

    def weigh(self, losses: Tensor) -> Tensor:
        return ops.sum(ops.log(losses + TINY))


class GeometricLosses(Rule):
    """`(Π L)^(1/T)`, the geometric mean.

    References:
        - [Chennupati et al., 2019](https://arxiv.org/abs/1904.08492), GLS
    """

    def weigh(self, losses: Tensor) -> Tensor:
        return ops.exp(ops.mean(ops.log(losses + TINY)))


class AnalyticalUncertainty(Rule):
    """`Σ L / L'`: the closed form of every batch.

    References:
        - [Kirchdorfer et al., 2024](https://arxiv.org/abs/2408.07985), UW-O
    """

    def weigh(self, losses: Tensor) -> Tensor:
        return ops.sum(ops.divide_no_nan(losses, ops.stop_gradient(losses)))


class SoftmaxUncertainty(Rule):
    """`Σ w·L`, where `w = softmax((1 / L') / temperature)`.

    References:
        - [Kirchdorfer et al., 2024](https://arxiv.org/abs/2408.07985), UW-SO
    """

    def __init__(self, *arguments: Any, temperature: float) -> None:
        super().__init__(*arguments)
        self.temperature = temperature

    def weigh(self, losses: Tensor) -> Tensor:
        inverse = 1.0 / ops.maximum(ops.stop_gradient(losses), keras.config.epsilon())
        return ops.sum(ops.softmax(inverse / self.temperature) * losses)
