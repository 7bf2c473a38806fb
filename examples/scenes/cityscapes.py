"""Cityscapes at the size of the paper's "tiny Cityscapes", from the official archives.

The `cityscapes` of TensorFlow Datasets has the full size only, and not the benchmark's 19 classes.
Classes, instances and disparity are in separate configurations there.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf
import tensorflow_datasets as tfds
from cityscapesscripts.helpers.labels import id2label, trainId2label

from examples.scenes.features import class_metadata, scene_features
from examples.scenes.labels import INSTANCES_PER_CLASS, UNLABELLED

SITE = "https://www.cityscapes-dataset.com/downloads/"
# The official test split has no public labels. As in the paper, the validation split is tested on.
SPLITS = {"train": "train", "test": "val"}

TRAIN_IDS = sorted(train_id for train_id in trainId2label if train_id not in (-1, UNLABELLED))
CLASS_NAMES = [trainId2label[train_id].name for train_id in TRAIN_IDS]
INSTANCE_CLASSES = [train_id for train_id in TRAIN_IDS if trainId2label[train_id].hasInstances]
TRAIN_ID_OF_ID = np.full(256, UNLABELLED, np.uint8)
for _id, _label in id2label.items():
    if _id >= 0 and _label.trainId in TRAIN_IDS:
        TRAIN_ID_OF_ID[_id] = _label.trainId


@dataclass(frozen=True)
class Package:
    """The files of one kind in an archive.

    Args:
        archive: Archive name.
        folder: Top folder of the files.
        suffix: End of the file names, after `{city}_{sequence}_{frame}`.
    """

    archive: str
    folder: str
    suffix: str

    def member(self, split: str, scene: str) -> str:
        """The name of a scene's file in the archive."""
        city = scene.split("_")[0]
        return f"{self.folder}/{split}/{city}/{scene}{self.suffix}"


IMAGES = Package("leftImg8bit_trainvaltest.zip", "leftImg8bit", "_leftImg8bit.png")
CLASSES = Package("gtFine_trainvaltest.zip", "gtFine", "_gtFine_labelIds.png")
INSTANCES = Package("gtFine_trainvaltest.zip", "gtFine", "_gtFine_instanceIds.png")
DISPARITY = Package("disparity_trainvaltest.zip", "disparity", "_disparity.png")


@dataclass
class CityscapesConfig(tfds.core.BuilderConfig):
    """Cityscapes at one size.

    Args:
        height: Image height in pixels.
        width: Image width in pixels.
    """

    height: int = 128
    width: int = 256


class CityscapesScenes(tfds.core.GeneratorBasedBuilder):
    """Cityscapes with classes, instances and disparity, read directly from the archives.

    Example:

    ```python
    from examples.scenes import cityscapes  # registers the data set

    train, test = tfds.load("cityscapes_scenes", split=["train", "test"])
    ```

    References:
        - [Cordts et al., 2016](https://arxiv.org/abs/1604.01685)
    """

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS: list[CityscapesConfig] = [  # noqa: RUF012 - the name and type are TFDS's
        CityscapesConfig(name="128x256", description="The paper's tiny Cityscapes."),
    ]
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        f"Get {IMAGES.archive}, {CLASSES.archive} and {DISPARITY.archive} from {SITE}. "
        "Do not unpack them."
    )

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            description="Cityscapes with classes, instances and inverse depth.",
            homepage="https://www.cityscapes-dataset.com",
            features=scene_features(self.builder_config.height, self.builder_config.width),
            metadata=class_metadata(CLASS_NAMES, INSTANCE_CLASSES),
        )

    def _split_generators(
        self, dl_manager: tfds.download.DownloadManager
    ) -> dict[str, Iterator[tuple[str, dict[str, Any]]]]:
        archives = {
            package.archive: Archive(Path(dl_manager.manual_dir) / package.archive)
            for package in (IMAGES, CLASSES, DISPARITY)
        }
        return {name: self._generate_examples(archives, split) for name, split in SPLITS.items()}

    def _generate_examples(
        self, archives: dict[str, Archive], split: str
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        size = (self.builder_config.height, self.builder_config.width)

        def read(package: Package, scene: str, dtype: tf.DType) -> tf.Tensor:
            return archives[package.archive].read_png(package.member(split, scene), dtype)

        for scene in archives[IMAGES.archive].scenes(IMAGES, split):
            image = read(IMAGES, scene, tf.uint8)
            classes = _nearest(read(CLASSES, scene, tf.uint8), size)
            instances = _nearest(read(INSTANCES, scene, tf.uint16), size)
            disparity = read(DISPARITY, scene, tf.uint16)
            # Disparity is in pixels, so it scales with the image width.
            scale = size[1] / int(disparity.shape[1])
            yield (
                scene,
                {
                    "image": _averaged(image, size),
                    "classes": TRAIN_ID_OF_ID[classes],
                    "instances": instance_ids(instances),
                    "inverse_depth": disparity_in_pixels(_nearest(disparity, size)) * scale,
                },
            )


class Archive:
    """One of the official archives.

    Args:
        path: Path of the ZIP file.

    Raises:
        FileNotFoundError: If the file is missing.
        ValueError: If the file is damaged.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        if not path.exists():
            raise FileNotFoundError(self._advice("is missing"))
        try:
            self._zip = zipfile.ZipFile(path)
        except zipfile.BadZipFile as error:
            raise ValueError(self._advice("is damaged")) from error

    def scenes(self, package: Package, split: str) -> list[str]:
        """The scenes of a split.

        Args:
            package: The files whose names are read.
            split: An official split: `train` or `val`.

        Returns:
            Sorted list of names `{city}_{sequence}_{frame}`.

        Raises:
            ValueError: If the archive has no such files.
        """
        prefix = f"{package.folder}/{split}/"
        scenes = [
            name.rsplit("/", 1)[1].removesuffix(package.suffix)
            for name in self._zip.namelist()
            if name.startswith(prefix) and name.endswith(package.suffix)
        ]
        if not scenes:
            raise ValueError(self._advice(f"is another package, without '{prefix}'"))
        return sorted(scenes)

    def read_png(self, member: str, dtype: tf.DType) -> tf.Tensor:
        """Reads a PNG file.

        Args:
            member: Name of the file in the archive.
            dtype: `tf.uint8` or `tf.uint16`.

        Returns:
            Tensor of that dtype, (H, W, channels).

        Raises:
            ValueError: If the file is missing or damaged.
        """
        try:
            return tf.io.decode_png(self._zip.read(member), dtype=dtype)
        except KeyError as error:
            raise ValueError(self._advice(f"is another package, without '{member}'")) from error
        except (zipfile.BadZipFile, zlib.error, EOFError, tf.errors.InvalidArgumentError) as error:
            raise ValueError(self._advice(f"is damaged at '{member}'")) from error

    def _advice(self, problem: str) -> str:
        return (
            f"The Cityscapes archive {self._path} {problem}: get {self._path.name} from {SITE} "
            f"and put it, still packed, into {self._path.parent}."
        )


def instance_ids(ids: npt.NDArray[np.uint16]) -> npt.NDArray[np.int32]:
    """Replaces label ids by class ids in instance ids.

    Args:
        ids: Ids of a file: `label · 1000 + k` for an instance. Groups and labels without instances
            have the label id alone.

    Returns:
        Ids `class · 1000 + k`; 0 where there is no instance or no class.
    """
    label, number = np.divmod(ids.astype(np.int32), INSTANCES_PER_CLASS)
    classes = TRAIN_ID_OF_ID[label].astype(np.int32)
    # An id below 1000 gives label 0, which has no class.
    return np.where(classes != UNLABELLED, classes * INSTANCES_PER_CLASS + number, 0).astype(
        np.int32
    )


def disparity_in_pixels(encoded: npt.NDArray[np.uint16]) -> npt.NDArray[np.float32]:
    """Disparity in pixels of the full-size image: `(p - 1) / 256`, NaN where `p` is 0.

    Args:
        encoded: Pixel values `p` of a file.

    Returns:
        Array of the same shape.
    """
    values = (encoded.astype(np.float32) - 1.0) / 256.0
    return np.where(encoded > 0, values, np.float32(np.nan))


def _averaged(image: tf.Tensor, size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    resized = tf.image.resize(image, size, method="area")
    return np.rint(resized.numpy()).astype(np.uint8)


def _nearest(values: tf.Tensor, size: tuple[int, int]) -> npt.NDArray[Any]:
    return np.asarray(tf.image.resize(values, size, method="nearest").numpy()[..., 0])
