"""Loss-weighting rules of the literature, to compare this package with.

Every rule combines the tasks' mean raw losses `L` into one number. The package does the rest.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_uncertainty_mtl import Categorical, Likelihood, UncertaintyWeighting
from keras_uncertainty_mtl._reductions import global_mean

Tensor = Any
Tasks = dict[str, Likelihood]


class Rule(UncertaintyWeighting):
    """Base class. A rule overrides `weigh`; it sets `trains` if it trains a weight a task."""

    trains = False

    def build(self, predictions_shape: Any) -> None:
        super().build(predictions_shape)
        # The package's own log-variances stay at 0.
        self._log_variances.trainable = False
        self.log_variance = self.add_weight(
            name="log_variance",
            shape=(len(self.tasks),),
            initializer="zeros",
            trainable=self.trains,
        )

    def combined_loss(
        self,
        predictions: Any,
        targets: Any,
        sample_weight: Any = None,
        mask: Any = None,
        training: bool | None = None,
        report: bool = True,
    ) -> Tensor:
        losses: dict[str, Tensor] = {}
        batches = self.observe(predictions, targets, sample_weight, mask)
        for group, batch in zip(self.groups, batches, strict=True):
            means = global_mean(batch.loss_sum, batch.weight_sum)
            losses |= dict(zip(group.tasks, ops.unstack(means[:, 0]), strict=True))
        return self.weigh(ops.stack([losses[task] for task in self.tasks]))

    def weigh(self, losses: Tensor) -> Tensor:
        """The combined loss.

        Args:
            losses: Vector of the tasks' mean raw losses.

        Returns:
            Scalar tensor.
        """
        raise NotImplementedError


class FixedWeights(Rule):
    """`Σ w·L`, with constant weights from `loss_weights`."""

    def weigh(self, losses: Tensor) -> Tensor:
        return ops.sum(ops.multiply(list(self.loss_weights.values()), losses))


class PlainUncertainty(Rule):
    """`Σ exp(-s)·L + ½·s`, where s starts at 0 and is trained like every other weight.

    References:
        - [Kendall, Gal & Cipolla, 2018](https://arxiv.org/abs/1705.07115), Eq. 10
    """

    trains = True

    def weigh(self, losses: Tensor) -> Tensor:
        log_variance = ops.convert_to_tensor(self.log_variance)
        return ops.sum(ops.exp(-log_variance) * losses + 0.5 * log_variance)


class PositiveRegulariser(Rule):
    """`Σ ½·exp(-s)·L + log(1 + exp(s))`, where s starts at 0.

    References:
        - [Liebel & Körner, 2018](https://arxiv.org/abs/1805.06334), Eq. 4
    """

    trains = True

    def weigh(self, losses: Tensor) -> Tensor:
        log_variance = ops.convert_to_tensor(self.log_variance)
        return ops.sum(0.5 * ops.exp(-log_variance) * losses + ops.softplus(log_variance))


class AnalyticalUncertainty(Rule):
    """`Σ L / L'`, where L' is L without its gradient: the closed form of every batch.

    References:
        - [Kirchdorfer et al., 2024](https://arxiv.org/abs/2408.07985), UW-O
    """

    def weigh(self, losses: Tensor) -> Tensor:
        return ops.sum(ops.divide_no_nan(losses, ops.stop_gradient(losses)))


class SoftmaxUncertainty(Rule):
    """`Σ w·L`, where `w = softmax((1 / L') / temperature)` and L' is L without its gradient.

    References:
        - [Kirchdorfer et al., 2024](https://arxiv.org/abs/2408.07985), UW-SO
    """

    def __init__(self, tasks: Tasks, temperature: float) -> None:
        super().__init__(tasks)
        self.temperature = temperature

    def weigh(self, losses: Tensor) -> Tensor:
        inverse = 1.0 / ops.maximum(ops.stop_gradient(losses), keras.config.epsilon())
        return ops.sum(ops.softmax(inverse / self.temperature) * losses)


class DynamicWeightAverage(Rule):
    """`Σ w·L`, where `w = T·softmax(r / 2)` and r is the ratio of the last two epochs' mean losses.

    References:
        - [Liu, Johns & Davison, 2019](https://arxiv.org/abs/1803.10704), Eq. 7
    """

    TEMPERATURE = 2.0

    def __init__(self, tasks: Tasks, steps_per_epoch: int) -> None:
        super().__init__(tasks)
        self.steps_per_epoch = steps_per_epoch

    def build(self, predictions_shape: Any) -> None:
        super().build(predictions_shape)
        state = {"shape": (len(self.tasks),), "trainable": False}
        self.running = self.add_weight(**state, initializer="zeros", name="running")
        self.last = self.add_weight(**state, initializer="ones", name="last")
        self.weights_now = self.add_weight(**state, initializer="ones", name="weights_now")
        self.step = self.add_weight(shape=(), initializer="zeros", trainable=False, name="step")

    def weigh(self, losses: Tensor) -> Tensor:
        step = self.step + 1.0
        mean = self.running + ops.stop_gradient(losses) / self.steps_per_epoch
        ends = ops.equal(step % self.steps_per_epoch, 0)
        # Before two epochs have ended there is nothing to compare.
        compares = ops.logical_and(ends, step > self.steps_per_epoch)
        ratio = ops.divide_no_nan(mean, self.last) / self.TEMPERATURE
        loss = ops.sum(self.weights_now * losses)
        self.weights_now.assign(
            ops.where(compares, len(self.tasks) * ops.softmax(ratio), self.weights_now)
        )
        self.last.assign(ops.where(ends, mean, self.last))
        self.running.assign(ops.where(ends, ops.zeros_like(mean), mean))
        self.step.assign(step)
        return loss


class RandomWeights(Rule):
    """`Σ w·L`, where `w = T·softmax(z)` and every step draws a standard normal z.

    References:
        - [Lin et al., 2022](https://arxiv.org/abs/2111.10603), RLW
    """

    def __init__(self, tasks: Tasks, seed: int) -> None:
        super().__init__(tasks)
        self.seed_generator = keras.random.SeedGenerator(seed)

    def weigh(self, losses: Tensor) -> Tensor:
        normal = keras.random.normal((len(self.tasks),), seed=self.seed_generator)
        return len(self.tasks) * ops.sum(ops.softmax(normal) * losses)


def units(tasks: Tasks, targets: dict[str, Any]) -> dict[str, float]:
    """Returns the weights that are equivalent to standardised regression targets."""
    return {
        task: 1.0
        if isinstance(likelihood, Categorical)
        # A squared error has the squared unit of its target, an absolute error the unit itself.
        else float(np.nanstd(targets[task]) ** (-2.0 * likelihood.power))
        for task, likelihood in tasks.items()
    }
