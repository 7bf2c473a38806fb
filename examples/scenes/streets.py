"""Rendered street scenes, as a TensorFlow data set that is made at its first load.

The scenes are laid out by `rendering.layout` and ray-cast with Embree (`embreex`), the meshes come
from `trimesh`, light and textures are computed with NumPy. Also tried, on a machine without a
screen or a graphics card:

- `mitsuba`: light that is truer than ours, but 0.1 s for 150 untextured boxes at 16 rays a pixel,
  a binary of 190 MB, and its faster variants need LLVM installed beside it.
- `open3d`: the same Embree within 900 MB, and no import without the system's libusb.
- `pyrender`: no import without the system's OSMesa.
- `moderngl`, `vtk`: draw with whatever OpenGL driver there is, so that the same seed would give
  other bytes on another machine; the second is 560 MB.

`embreex` and `trimesh` are 50 MB, need nothing of the system, cast 65,000 rays in some 20 ms, and
answer what the labels and the stereo camera's holes need: which face, how far, and seen from there
or not.
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
    """One set of street scenes.

    Args:
        height: Of the images in pixels.
        width: Of the images in pixels.
        train_images: How many examples there are to train on.
        test_images: How many there are to test on.
        seed: The same seed gives the same bytes.
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
    from examples.scenes import streets  # tells TensorFlow Datasets of it

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
        # Each image has a generator of its own, so that it does not depend on those before it.
        jobs = (
            joblib.delayed(render)((config.seed, split, index), config.height, config.width)
            for index in range(images)
        )
        # Processes, because threads would wait for each other: half of the work is Python's.
        yield from enumerate(joblib.Parallel(n_jobs=-1, return_as="generator")(jobs))
