"""Rules that were tried in place of the package's default."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from benchmarks.methods.base import Rule, Tensor, mean_loss
from benchmarks.methods.losses import TINY
from benchmarks.problems.base import is_of_classes
from keras_uncertainty_mtl import MultiTaskModel

# The part that a batch has in a running mean.
SHARE = 0.1


class PriorVariance(Rule):
    """`Σ scale·σ^(-2·power)·L`, where `σ² = (σ²(m) + κ·σ₀²) / (1 + κ)`.

    m is the running mean of a task's loss, σ²(m) its closed form, and σ₀² that of the first batch.
    Classes have the weight 1.
    """

    def __init__(self, *arguments: Any, strength: float) -> None:
        super().__init__(*arguments)
        self.strength = strength
        each = list(self.tasks.values())
        self.powers = np.array([task.power for task in each], "float32")
        self.scales = np.array([task.scale for task in each], "float32")
        self.is_number = np.array([not is_of_classes(task) for task in each])
        self.means, self.first = self.vector(0.0), self.vector(0.0)

    def weigh(self, losses: Tensor) -> Tensor:
        seen, means = ops.stop_gradient(losses), ops.convert_to_tensor(self.means)
        means = ops.where(means > 0, means + SHARE * (seen - means), seen)
        first = ops.where(ops.equal(self.first, 0), seen, self.first)
        self.means.assign(means)
        self.first.assign(first)
        variances = (self.variance(means) + self.strength * self.variance(first)) / (
            1.0 + self.strength
        )
        weights = self.scales * ops.maximum(variances, TINY) ** -self.powers
        return ops.sum(ops.where(self.is_number, weights, 1.0) * losses)

    def variance(self, losses: Tensor) -> Tensor:
        return (2.0 * self.powers * self.scales * losses) ** (1.0 / self.powers)


class BranchedRule(Rule):
    """Weights of each task's gradient in its head, and in the shared layers, by one backward pass.

    The heads branch off at the output of the network's layer named `shared`.
    """

    def __init__(self, network: keras.Model, *arguments: Any) -> None:
        super().__init__(network, *arguments)
        shared = network.get_layer("shared").output
        self.trunk = keras.Model(network.input, shared)
        self.heads = {task: keras.Model(shared, network.output[task]) for task in self.tasks}

    def branch_weights(self, losses: Tensor, gradients: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the weights of each task in its head and in the shared layers.

        Args:
            losses: (tasks,).
            gradients: (tasks, batch, ...), of each task's loss at the output of the shared layers.
        """
        raise NotImplementedError

    def train_step(self, data: Any) -> Any:
        x, y, _ = keras.utils.unpack_x_y_sample_weight(data)
        with tf.GradientTape() as trunk_tape:
            features = self.trunk(x, training=True)
        copies = [tf.identity(features) for _ in self.tasks]
        with tf.GradientTape() as tape:
            tape.watch(copies)
            losses = [
                mean_loss(likelihood, y[task], self.heads[task](each, training=True))
                for (task, likelihood), each in zip(self.tasks.items(), copies, strict=True)
            ]
            loss = ops.sum(losses)
        in_heads = [self.heads[task].trainable_variables for task in self.tasks]
        gradients, of_heads = tape.gradient(loss, [copies, in_heads])
        gradients = ops.stack(gradients)
        head_weights, trunk_weights = self.branch_weights(ops.stack(losses), gradients)
        of_trunk = trunk_tape.gradient(
            features,
            self.trunk.trainable_variables,
            output_gradients=ops.tensordot(trunk_weights, gradients, 1),
        )
        pairs = list(zip(of_trunk, self.trunk.trainable_variables, strict=True))
        for weight, each, weights in zip(
            ops.unstack(head_weights), of_heads, in_heads, strict=True
        ):
            pairs += [(weight * one, of) for one, of in zip(each, weights, strict=True)]
        self.optimizer.apply(*zip(*pairs, strict=True))
        return {"loss": loss}


class BalancedGradients(BranchedRule):
    """`Σ log L`, with each task's gradient in the shared layers as long as the longest.

    The lengths are running means of those where the heads branch off.

    References:
        - [Lin et al., 2023](https://arxiv.org/abs/2308.12029), DB-MTL, which averages the gradients
          themselves, and has a backward pass a task
    """

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.lengths = self.vector(0.0)

    def branch_weights(self, losses: Tensor, gradients: Tensor) -> tuple[Tensor, Tensor]:
        lengths = ops.convert_to_tensor(self.lengths)
        factors = ops.where(lengths > 0, ops.max(lengths) / (lengths + TINY), 1.0)
        weights = 1.0 / (losses + TINY)
        now = weights * ops.sqrt(ops.sum(flat(gradients) ** 2, -1))
        running = ops.where(lengths > 0, lengths + SHARE * (now - lengths), now)
        # A batch without labels of a task has no gradient of it.
        self.lengths.assign(ops.where(now > 0, running, lengths))
        return weights, weights * factors


class KernelEigenvalues(BranchedRule):
    """`Σ √(Σλ / λ)·L`, with λ the largest eigenvalue of a task's neural tangent kernel.

    The kernel is that of the output of the shared layers, between a batch's parts. A part's loss
    has a gradient at its own samples alone. So the kernel is diagonal, and λ is the largest squared
    length.

    References:
        - [Qin et al., 2025](https://arxiv.org/abs/2510.18258), NTKMTL-SR, with four parts
    """

    parts = 4

    def branch_weights(self, losses: Tensor, gradients: Tensor) -> tuple[Tensor, Tensor]:
        squares = ops.sum(flat(gradients, leading=2) ** 2, -1)
        samples = ops.arange(ops.shape(squares)[1])
        members = ops.one_hot(samples % self.parts, self.parts, dtype=squares.dtype)
        largest = ops.max(squares @ members, -1)
        # A batch without labels of a task has no gradient of it.
        weights = ops.where(largest > 0, ops.sqrt(ops.sum(largest) / (largest + TINY)), 0.0)
        return weights, weights


def flat(gradients: Tensor, leading: int = 1) -> Tensor:
    """Joins the axes after the leading ones."""
    return ops.reshape(gradients, (*ops.shape(gradients)[:leading], -1))


class HeldOutSigma(MultiTaskModel):
    """The package, whose σ and temperatures `calibrate` sets on a tenth of the rows every epoch.

    The other rows train the network, in as many steps.
    """

    def __init__(self, *arguments: Any, rows: Any, batches: Any, **kwargs: Any) -> None:
        super().__init__(*arguments, **kwargs)
        self.rows, self.batches = rows, batches

    def fit(self, batches: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        x, y = self.rows
        held_out = np.arange(len(x)) % 10 == 0

        def part(chosen: Any) -> Any:
            return x[chosen], {task: values[chosen] for task, values in y.items()}

        def calibrate(epoch: int, logs: Any = None) -> None:
            inputs, targets = part(held_out)
            self.calibrate(inputs, targets, batch_size=1000, verbose=0)

        callback = keras.callbacks.LambdaCallback(on_epoch_begin=calibrate)
        steps = int(batches.cardinality())
        data = self.batches(*part(~held_out)).repeat()
        return super().fit(data, steps_per_epoch=steps, callbacks=[callback], **kwargs)
