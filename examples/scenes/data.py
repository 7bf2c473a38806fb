"""A data set of scenes as the examples take it: images and targets, and what the classes are."""

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
    """Some splits of a data set.

    Args:
        examples: A `tf.data.Dataset` of the data set's own features for each split.
        image_shape: Height, width and channels.
        class_names: Names of the classes, by their ids.
        instance_classes: Ids of the classes whose instances are told apart.
    """

    examples: list[Any]
    image_shape: tuple[int, int, int]
    class_names: list[str]
    instance_classes: list[int]

    def splits(self) -> list[Any]:
        """A `tf.data.Dataset` of pairs of an image and its targets for each split.

        What has been read once is kept, so that one epoch alone decodes it.
        """
        return [split.map(to_targets).cache() for split in self.examples]


def load(dataset: str, splits: Sequence[str], data_dir: str | None = None) -> Scenes:
    """Loads a data set, which is made first where it is not on this disk.

    Args:
        dataset: `streets` or `cityscapes`, and the size if it is not the default:
            `streets/32x64`.
        splits: The splits, as TensorFlow Datasets names them: `train`, `train[:80%]`, `test`.
        data_dir: Where TensorFlow Datasets keeps its data. `None`: where it does so by itself,
            which `TFDS_DATA_DIR` may say.

    Returns:
        A `Scenes`.

    Raises:
        ValueError: If there is no such data set.
    """
    name, slash, config = dataset.partition("/")
    if name not in BUILDERS:
        raise ValueError(f"`dataset` must be one of {list(BUILDERS)}. Received: {dataset!r}")
    logging.set_verbosity(logging.ERROR)  # TensorFlow Datasets warns of itself
    examples, info = tfds.load(
        BUILDERS[name].name + slash + config, split=list(splits), data_dir=data_dir, with_info=True
    )
    return Scenes(
        examples=examples,
        image_shape=info.features["image"].shape,
        class_names=info.metadata["class_names"],
        instance_classes=info.metadata["instance_classes"],
    )
