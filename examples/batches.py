"""Batches that are shuffled anew in each epoch, and batches of several data sets.

After `keras.utils.set_random_seed`, `fit` hands arrays over in the same order in every epoch (Keras
3.15). A `tf.data.Dataset` of its own seed does not.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

Labels = dict[str, Any]


def shuffled(x: Any, y: Labels, batch_size: int, seed: int) -> tf.data.Dataset:
    """All examples in batches, in another order in each epoch, the same for the same seed."""
    examples = tf.data.Dataset.from_tensor_slices((x, y))
    return examples.shuffle(len(x), seed=seed, reshuffle_each_iteration=True).batch(batch_size)


def mixed(
    datasets: Mapping[str, tf.data.Dataset],
    missing: Mapping[str, Any],
    rates: Mapping[str, float],
    batch_size: int,
    seed: int,
) -> tf.data.Dataset:
    """Endless batches of data sets that each have the labels of one task.

    Args:
        datasets: Dict from task to a shuffled data set of pairs of an input and the task's label.
        missing: Dict from task to a label that its likelihood takes as missing, in the task's dtype
            and shape.
        rates: Dict from task to the share of its data set among all examples.
        batch_size: Examples a batch.
        seed: Random seed of the mixture.

    Returns:
        A `tf.data.Dataset` of pairs of inputs and the labels of all tasks, for `fit` with
        `steps_per_epoch`.
    """

    def with_all_labels(task: str) -> Any:
        return lambda x, label: (x, {**missing, task: label})

    examples = [each.map(with_all_labels(task)).repeat() for task, each in datasets.items()]
    weights = [rates[task] for task in datasets]
    return tf.data.Dataset.sample_from_datasets(examples, weights, seed).batch(batch_size)


class MixedArrays(keras.utils.PyDataset):
    """The same from arrays, without TensorFlow: `steps` batches an epoch.

    Args:
        arrays: Dict from task to a pair of arrays, inputs and labels.
        missing, rates, batch_size, seed: As in `mixed`.
        steps: Batches an epoch.
        **kwargs: Arguments of `keras.utils.PyDataset`.
    """

    def __init__(
        self,
        arrays: Mapping[str, tuple[Any, Any]],
        missing: Mapping[str, Any],
        rates: Mapping[str, float],
        batch_size: int,
        seed: int,
        steps: int,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.arrays, self.missing, self.rates = arrays, missing, rates
        self.batch_size, self.seed, self.steps, self.epoch = batch_size, seed, steps, 0

    def __len__(self) -> int:
        return self.steps

    def on_epoch_end(self) -> None:
        self.epoch += 1

    def __getitem__(self, index: int) -> tuple[Any, Labels]:
        draw = np.random.default_rng([self.seed, self.epoch, index])
        tasks = list(self.arrays)
        shares = np.array([self.rates[task] for task in tasks], "float64")
        counts = draw.multinomial(self.batch_size, shares / shares.sum())
        inputs: list[Any] = []
        labels: dict[str, list[Any]] = {task: [] for task in tasks}
        for task, count in zip(tasks, counts, strict=True):
            x, y = self.arrays[task]
            chosen = draw.integers(len(x), size=count)
            inputs.append(x[chosen])
            for other in tasks:
                empty = np.broadcast_to(
                    self.missing[other], (count, *self.arrays[other][1].shape[1:])
                )
                labels[other].append(y[chosen] if other == task else empty)
        return np.concatenate(inputs), {
            task: np.concatenate(parts) for task, parts in labels.items()
        }
