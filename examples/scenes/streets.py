"""Rendered street scenes, as a TensorFlow data set that is prepared at its first load.

`trimesh` makes the meshes, Embree (`embreex`) casts the rays, and NumPy computes light and
textures. Rendering needs no screen, graphics card or system library, and a seed fixes its bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import joblib
import tensorflow_datasets as tfds

from examples.scenes.features import class_metadata, scene_features
from examples.scenes.rendering.objects import Label
from examples.scenes.rendering.scene import render

CLASS_NAMES = [label.name.lower() for label in Label if label != Label.UNLABELLED]
INSTANCE_CLASSES = [int(Label.PERSON), int(Label.CAR)]


@dataclass
class StreetsConfig(tfds.core.BuilderConfig):
    """Size and seed of a set of street scenes.

    Args:
        height: Image height in pixels.
        width: Image width in pixels.
        train_images: Number of training images.
        test_images: Number of test images.
        seed: Random seed; the same seed gives the same bytes.
    """

    height: int = 64
    width: int = 128
    train_images: int = 2000
    test_images: int = 500
    seed: int = 0


class Streets(tfds.core.GeneratorBasedBuilder):
    """Street scenes with classes, instances and disparity, rendered at the first load.

    Example:

    ```python
    from examples.scenes import streets  # registers the data set

    train, test = tfds.load("streets", split=["train", "test"])
    small = streets.StreetsConfig(name="32x64", height=32, width=64)
    builder = tfds.builder("streets", config=small)
    ```
    """

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS: list[StreetsConfig] = [  # noqa: RUF012 - the name and type are those of TFDS
        StreetsConfig(name="64x128", description="The default."),
        StreetsConfig(name="32x64", description="A quarter of the pixels.", height=32, width=64),
    ]

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            description="Rendered street scenes with classes, instances and inverse depth.",
            features=scene_features(self.builder_config.height, self.builder_config.width),
            metadata=class_metadata(CLASS_NAMES, INSTANCE_CLASSES),
        )

    def _split_generators(
        self, dl_manager: tfds.download.DownloadManager
    ) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
        config = self.builder_config
        return {
            "train": self._generate_examples(0, config.train_images),
            "test": self._generate_examples(1, config.test_images),
        }

    def _generate_examples(self, split: int, images: int) -> Iterator[tuple[int, dict[str, Any]]]:
        config = self.builder_config
        # One seed per image, so that no image depends on the others.
        jobs = (
            joblib.delayed(render)((config.seed, split, index), config.height, config.width)
            for index in range(images)
        )
        # Processes rather than threads, because half of the work holds the GIL.
        yield from enumerate(joblib.Parallel(n_jobs=-1, return_as="generator")(jobs))
