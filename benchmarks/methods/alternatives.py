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


class BalancedGradients(Rule):
    """`Σ log L`, with each task's gradient in the shared layers as long as the longest.

    The length is that of the gradient at the output of the network's layer named `shared`, as a
    running mean. A task's head sees these features through an identity, whose gradient has a
    factor. So one backward pass gives both the step and the lengths.

    References:
        - [Lin et al., 2023](https://arxiv.org/abs/2308.12029), DB-MTL, which averages the gradients
          themselves, and has a backward pass a task
    """

    def __init__(self, network: keras.Model, *arguments: Any) -> None:
        super().__init__(network, *arguments)
        shared = network.get_layer("shared").output
        self.trunk = keras.Model(network.input, shared)
        self.heads = {task: keras.Model(shared, network.output[task]) for task in self.tasks}
        self.lengths = self.vector(0.0)

    def train_step(self, data: Any) -> Any:
        x, y, _ = keras.utils.unpack_x_y_sample_weight(data)
        lengths = ops.convert_to_tensor(self.lengths)
        factors = ops.where(lengths > 0, ops.max(lengths) / (lengths + TINY), 1.0)
        with tf.GradientTape() as tape:
            features = self.trunk(x, training=True)
            fixed = ops.stop_gradient(features)
            seen = [fixed + factor * (features - fixed) for factor in ops.unstack(factors)]
            losses = [
                mean_loss(likelihood, y[task], self.heads[task](each, training=True))
                for (task, likelihood), each in zip(self.tasks.items(), seen, strict=True)
            ]
            loss = ops.sum(ops.log(ops.stack(losses) + TINY))
        weights = self.trainable_variables
        gradients = tape.gradient(loss, [*seen, *weights])
        now = ops.stack([ops.norm(each) for each in gradients[: len(seen)]])
        running = ops.where(lengths > 0, lengths + SHARE * (now - lengths), now)
        # A batch without labels of a task has no gradient of it.
        self.lengths.assign(ops.where(now > 0, running, lengths))
        self.optimizer.apply(gradients[len(seen) :], weights)
        return {"loss": loss}


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
