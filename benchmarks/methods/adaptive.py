"""Rules that remember the losses of earlier batches."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from benchmarks.methods.base import Rule, Tensor
from benchmarks.methods.losses import TINY


class DynamicWeightAverage(Rule):
    """`Σ w·L`, where `w = T·softmax(r / 2)` and r is the ratio of the last two epochs' mean losses.

    References:
        - [Liu, Johns & Davison, 2019](https://arxiv.org/abs/1803.10704), Eq. 7
    """

    TEMPERATURE = 2.0

    def __init__(self, *arguments: Any, steps_per_epoch: int) -> None:
        super().__init__(*arguments)
        self.steps_per_epoch = steps_per_epoch
        self.running, self.last, self.weights_now = map(self.vector, (0.0, 1.0, 1.0))
        self.step = self.add_weight((), "zeros", trainable=False)

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


class SmoothChebyshev(Rule):
    """`T·μ·log Σ exp(log(L / r) / μ)`: a smooth maximum of the logarithms of the losses over r.

    In the first epochs the loss is `Σ log L`. r is the mean loss of the last of them, and the
    reference point is 0 in logarithms. With the authors' μ = 1 this is `T·log Σ L / r`.

    Args:
        reference_steps: The first and the last step, counted from 0, of the mean r.

    References:
        - [Lin et al., 2024](https://arxiv.org/abs/2402.19078), STCH, in the form of the authors'
          code for networks
    """

    SMOOTHNESS = 1.0

    def __init__(self, *arguments: Any, reference_steps: tuple[int, int]) -> None:
        super().__init__(*arguments)
        self.first, self.end = reference_steps
        self.reference = self.vector(0.0)
        self.step = self.add_weight((), "zeros", trainable=False)

    def weigh(self, losses: Tensor) -> Tensor:
        is_known = self.step >= self.end
        counts = ops.cast(
            ops.logical_and(self.step >= self.first, self.step < self.end), losses.dtype
        )
        share = counts / (self.end - self.first)
        reference = self.reference + share * ops.stop_gradient(losses)
        self.reference.assign(reference)
        self.step.assign(self.step + 1.0)
        logarithms = ops.log(losses + TINY)
        # Before r is known, a number with a logarithm takes its place.
        ratios = logarithms - ops.log(ops.where(is_known, reference, ops.ones_like(losses)) + TINY)
        smooth_maximum = self.SMOOTHNESS * ops.logsumexp(ratios / self.SMOOTHNESS)
        return ops.where(is_known, len(self.tasks) * smooth_maximum, ops.sum(logarithms))


class FastAdaptive(Rule):
    """`Σ c·z·log L`, where `z = softmax(ξ)` and `c = 1 / Σ z / L'`.

    After each step Adam moves the logits ξ against `Jᵀ·δ + γ·ξ`, where J is the Jacobian of z, and
    δ how much the step has lowered each `log L`. As in the paper and its authors' code, both losses
    are those of one batch, so a second forward pass follows the step. The losses of the next step
    would need none, but their difference is mostly that of the two batches.

    References:
        - [Liu et al., 2023](https://arxiv.org/abs/2306.03792), FAMO, Algorithm 1; γ and the rate
          are those of the authors' `famo.py`
    """

    DECAY, RATE, SMALL = 0.01, 0.025, 1e-8

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.logits, self.before = self.vector(0.0), self.vector(0.0)
        self.logit_optimizer = keras.optimizers.Adam(self.RATE, epsilon=1e-8)
        self.logit_optimizer.build([self.logits])

    def weigh(self, losses: Tensor) -> Tensor:
        self.before.assign(ops.stop_gradient(losses))
        losses = losses + self.SMALL
        z = ops.softmax(ops.convert_to_tensor(self.logits))
        c = 1.0 / ops.sum(z / ops.stop_gradient(losses))
        return ops.sum(c * z * ops.log(losses))

    def train_step(self, data: Any) -> Any:
        logs = super().train_step(data)
        x, y, _ = keras.utils.unpack_x_y_sample_weight(data)
        self.follow(self.mean_losses(y, self(x, training=True)))
        return logs

    def follow(self, losses: Tensor) -> None:
        """Moves the logits, by the losses of the batch after the step."""
        decrease = ops.log(self.before + self.SMALL) - ops.log(losses + self.SMALL)
        z = ops.softmax(ops.convert_to_tensor(self.logits))
        gradient = z * (decrease - ops.sum(z * decrease)) + self.DECAY * self.logits
        self.logit_optimizer.apply([ops.stop_gradient(gradient)], [self.logits])


class GroupAlignment(Rule):
    """`Σ w·L`, where w is the mean of `v = p·Σ L' / L'` over the task's group.

    `p` is 1 / T at first, and then in proportion to `p·exp(-ε·L')` of every batch. Two groups are
    those of k-means on the numbers v, found exactly: they are parts of the sorted numbers.

    References:
        - [Shen et al., 2024](https://arxiv.org/abs/2404.06486), GO4Align, in the form of the
          authors' code, whose ε this is
    """

    STEP_SIZE = 1e-4

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.p = self.vector(1.0 / len(self.tasks))

    def weigh(self, losses: Tensor) -> Tensor:
        fixed = ops.stop_gradient(losses)
        p = self.p * ops.exp(-self.STEP_SIZE * fixed)
        p = p / ops.sum(p)
        self.p.assign(p)
        return ops.sum(two_group_means(p * ops.sum(fixed) / (fixed + TINY)) * losses)


def two_group_means(values: Tensor) -> Tensor:
    """The mean of each number's group, for the two groups of least sum of squares."""
    if values.shape[0] < 2:
        return values
    ordered = ops.sort(values)
    sizes = ops.arange(1.0, values.shape[0])
    lower = ops.cumsum(ordered)[:-1]
    low, high = lower / sizes, (ops.sum(values) - lower) / (values.shape[0] - sizes)
    # The sum of squares within the groups is least where that between them is largest.
    best = ops.argmax(sizes * (values.shape[0] - sizes) * ops.square(high - low))
    return ops.where(values <= ops.take(ordered, best), ops.take(low, best), ops.take(high, best))
