"""Loading of scene data sets: images, targets and class names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import tensorflow_datasets as tfds
from absl import logging

from examples.scenes import cityscapes, streets
from examples.scenes.targets import to_targets

BUILDERS: dict[str, Any] = {
    "streets": streets.Streets,
    "cityscapes": cityscapes.CityscapesScenes,
}


@dataclass(frozen=True)
class Scenes:
    """Splits of a scene data set.

    Args:
        examples: A `tf.data.Dataset` of unmapped features for each split.
        image_shape: Height, width and channels.
        class_names: Class names, by class id.
        instance_classes: Ids of the classes with instances.
    """

    examples: list[Any]
    image_shape: tuple[int, int, int]
    class_names: list[str]
    instance_classes: list[int]

    def splits(self) -> list[Any]:
        """A cached `tf.data.Dataset` of pairs of an image and its targets for each split."""
        return [split.map(to_targets).cache() for split in self.examples]


def load(dataset: str, splits: Sequence[str], data_dir: str | None = None) -> Scenes:
    """Loads a data set, and prepares it first unless it is on disk.

    Args:
        dataset: `streets` or `cityscapes`, with or without a configuration: `streets/32x64`.
        splits: Splits of TensorFlow Datasets: `train`, `train[:80%]`, `test`.
        data_dir: Data directory of TensorFlow Datasets. `None`: its default, which `TFDS_DATA_DIR`
            sets.

    Returns:
        A `Scenes`.

    Raises:
        ValueError: If `dataset` is unknown.
    """
    name, slash, config = dataset.partition("/")
    if name not in BUILDERS:
        raise ValueError(f"`dataset` must be one of {list(BUILDERS)}. Received: {dataset!r}")
    logging.set_verbosity(logging.ERROR)  # TensorFlow Datasets warns about its own code
    examples, info = tfds.load(
        BUILDERS[name].name + slash + config, split=list(splits), data_dir=data_dir, with_info=True
    )
    return Scenes(
        examples=examples,
        image_shape=info.features["image"].shape,
        class_names=info.metadata["class_names"],
        instance_classes=info.metadata["instance_classes"],
    )
